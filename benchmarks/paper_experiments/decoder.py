"""The Bayesian neural network decoder: reconstruction error against epoch.

FashionMNIST where scikit-learn can fetch it; else the bundled digits, 8 x 8 pixels, with a smaller
decoder. The likelihood has unit variance, so that on [0, 1] the digits' 64 pixels would say nothing
beyond the prior: they are scaled to [0, 4], where about as many principal components stand above
the noise as of FashionMNIST. Errors are given in units of [0, 1] either way.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from joblib import Parallel, delayed
from sklearn.datasets import fetch_openml, load_digits

from .decoder_loop import Decoder, FreeLatents, NetworkLatents, train
from .published_loop import seeded
from .report import Report, Table


@dataclass(frozen=True)
class Settings:
    """The published settings: days. ``fetch`` tries FashionMNIST; else `ON_DIGITS` holds."""

    fetch: bool = True
    n_samples: int = 10_000
    widths: tuple[int, ...] = (1, 64, 128, 256)
    learning_rate: float = 1e-3
    n_batches: int = 10
    n_epochs: int = 5000
    seeds: tuple[int, ...] = (*range(1789, 1798), 1954)


ON_DIGITS = replace(
    Settings(),
    fetch=False,
    n_samples=1797,
    learning_rate=5e-3,
    n_epochs=400,
    seeds=tuple(range(1789, 1794)),
)
QUICK = replace(ON_DIGITS, n_samples=500, n_batches=5, n_epochs=600, seeds=(1789,))


@dataclass(frozen=True)
class Images:
    """Images in rows, how many noise sds a full pixel has, and the decoder that fits them."""

    name: str
    pixels: np.ndarray
    scale: float
    n_latents: int
    hidden: tuple[int, ...]
    mark: float | None


def images(settings) -> Images:
    """Return FashionMNIST's first rows if asked for and reachable, else the digits'."""
    if settings.fetch:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fetched = fetch_openml("Fashion-MNIST", version=1, as_frame=False, n_retries=1)
        except OSError as error:
            print(f"FashionMNIST cannot be fetched ({error}): digits instead.")
        else:
            pixels = fetched.data[: settings.n_samples] / 255
            return Images("FashionMNIST", pixels, 1.0, 64, (256, 256), 0.03)
    pixels = load_digits().data[: settings.n_samples] / 16
    return Images("digits", pixels, 4.0, 8, (32, 32), None)


def _one(pictures: Images, start: Callable, settings, seed):
    torch.set_num_threads(1)
    X = torch.tensor(pictures.pixels * pictures.scale, dtype=torch.float32)
    with seeded(seed):
        decoder = Decoder((pictures.n_latents, *pictures.hidden, X.shape[1]))
        return train(start(X, pictures.n_latents), decoder, X, settings) / pictures.scale**2


def run(settings: Settings = Settings(), n_jobs: int = 1) -> Report:
    """Compare reconstruction errors by epoch."""
    pictures = images(settings)
    if settings.fetch and pictures.name == "digits":
        settings = ON_DIGITS
    methods = {"F-VI": FreeLatents}
    for width in settings.widths:
        methods[f"A-VI, width {width}"] = lambda X, n, width=width: NetworkLatents(X, n, width)
    jobs = [(name, seed) for name in methods for seed in settings.seeds]
    curves = Parallel(n_jobs)(
        delayed(_one)(pictures, methods[name], settings, seed) for name, seed in jobs
    )
    errors = {
        name: np.array([c for (n, _), c in zip(jobs, curves, strict=True) if n == name])
        for name in methods
    }
    mark = pictures.mark or 1.05 * float(np.median(errors["F-VI"][:, -10:]))
    table = _table(errors, mark, pictures.name == "FashionMNIST")
    shape = "-".join(map(str, (pictures.n_latents, *pictures.hidden, pictures.pixels.shape[1])))

    def draw(figure):
        axes = figure.subplots()
        for name, values in errors.items():
            median = np.median(values, 0)
            axes.plot(np.arange(1, len(median) + 1), median, label=name)
        axes.axhline(mark, color="grey", linestyle=":", label=f"mark, {mark:.3g}")
        axes.set(xlabel="epoch", ylabel="reconstruction MSE", xscale="log", yscale="log")
        axes.legend(fontsize="small")

    return Report(
        "decoder",
        f"Bayesian neural network decoder {shape} on {pictures.name}",
        asdict(settings) | {"images": pictures.name, "scale": pictures.scale},
        [table],
        [
            f"{pictures.name}: {len(pictures.pixels):,} images, {len(settings.seeds)} seed(s), "
            f"{settings.n_epochs:,} epochs of {settings.n_batches} batches, learning rate "
            f"{settings.learning_rate:g}, decoder {shape} (published: FashionMNIST, 10,000 images, "
            "5,000 epochs of 10 batches, learning rate 0.001, decoder 64-256-256-784, 10 seeds).",
            "The mark is the published 0.03."
            if pictures.mark
            else "The mark is 1.05 times what F-VI reaches: the published 0.03 is FashionMNIST's.",
            *_verdict(errors, mark),
        ],
        {"error": draw},
    )


def _first_below(values, mark):
    """Return the median over seeds of the first epoch below the mark, None for never."""
    firsts = [np.flatnonzero(v < mark)[0] + 1 if (v < mark).any() else np.inf for v in values]
    median = float(np.median(firsts))
    return int(median) if np.isfinite(median) else None


def _table(errors, mark, comparable):
    published = {
        "F-VI": "~1,700",
        "A-VI, width 1": "never",
        "A-VI, width 64": "never",
        "A-VI, width 128": "~1,800",
        "A-VI, width 256": "~1,750",
    }
    rows = []
    for name, values in errors.items():
        first = _first_below(values, mark)
        rows.append(
            [name, published.get(name), first or "never", float(np.median(values[:, -10:]))]
        )
    columns = [
        "method",
        "published epoch" + ("" if comparable else " (FashionMNIST, 0.03)"),
        f"first epoch below {mark:.3g}",
        "MSE over the last epochs",
    ]
    return Table("Reconstruction error of the training images", columns, rows)


def _verdict(errors, mark):
    last = {name: float(np.median(values[:, -10:])) for name, values in errors.items()}
    reached = [name for name, error in last.items() if error <= mark and name != "F-VI"]
    behind = [name for name, error in last.items() if error > mark]
    return [
        f"At or below the mark in the end: {', '.join(reached) or 'no network'}; "
        f"behind: {', '.join(behind) or 'none'}."
    ]
