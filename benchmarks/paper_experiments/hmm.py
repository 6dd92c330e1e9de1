"""The counter-example: latents in a chain, whose gap no window closes.

Two stretches of the series are equal, far from its ends and from each other. Any f that reads no
more than such a stretch gives their middle rows one factor; F-VI gives them two, because q*(z_n)
listens to its neighbours' factors and so to everything around. A wider window narrows the gap.
The same of discrete states, and the authors' own setting, are in `switching`.
"""

from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np

from closed_forms import kalman_smoother, local_level_factorized, local_level_windowed_linear
from skavi.families import DiagonalNormal
from skavi.inference_functions import Polynomial
from skavi.models import LocalLevel

from . import switching
from .fits import fit
from .report import Report, Table

_SDS = {"initial_mean": 0.0, "initial_sd": 1.0, "level_sd": 0.5, "noise_sd": 1.0}
_POSITIONAL = tuple(_SDS.values())


@dataclass(frozen=True)
class Settings:
    """Rows of the series, the two places of equal stretches, half a stretch, the widest window."""

    n_samples: int = 400
    places: tuple[int, int] = (100, 300)
    stretch: int = 2
    widest: int = 10


QUICK = replace(Settings(), n_samples=120, places=(30, 90), widest=3)


def data(settings):
    """Return a series drawn from the model, (n_samples,), with one stretch copied elsewhere."""
    rng = np.random.default_rng(19)
    steps = _SDS["level_sd"] * rng.normal(size=settings.n_samples)
    x = np.cumsum(steps) + _SDS["noise_sd"] * rng.normal(size=settings.n_samples)
    first, second = (slice(n - settings.stretch, n + settings.stretch + 1) for n in settings.places)
    x[second] = x[first]
    return x


def run(settings: Settings = Settings(), n_jobs: int = 1) -> Report:
    """Compare F-VI with the smoother, windows with least squares, and the two equal places."""
    x = data(settings)
    factorized = fit(LocalLevel(**_SDS), x[:, None], family=DiagonalNormal())
    windows = [_windowed(x, w) for w in range(settings.widest + 1)]
    gaps, of_states = _gaps(x, factorized, windows), switching.gaps(settings.widest)

    def draw_gaps(figure):
        axes = figure.subplots()
        axes.plot([row[0] for row in gaps.rows], [row[1] for row in gaps.rows], "o", label="skavi")
        closed = [row[2] for row in gaps.rows]
        axes.plot([row[0] for row in gaps.rows], closed, label="closed form (least squares)")
        discrete = [row[1] for row in of_states.rows]
        axes.plot([row[0] for row in of_states.rows], discrete, "s", label="discrete states")
        axes.set(xlabel="rows read before and after", ylabel="gap, nats", yscale="log")
        axes.legend(fontsize="small")

    both = gaps.rows, of_states.rows
    falls = all(b[1] < a[1] for rows in both for a, b in pairwise(rows))
    stays = all(rows[-1][1] > 0 for rows in both)
    return Report(
        "hmm",
        "Hidden Markov counter-example: a random walk observed in noise",
        asdict(settings),
        [
            _against_smoother(x, factorized),
            _places(x, settings, factorized, windows),
            gaps,
            switching.factors_of_equal_rows(),
            of_states,
        ],
        [
            "ELBOs in nats, all constants kept; the paper gives no numbers for this example.",
            f"Either gap {'falls' if falls else 'DOES NOT FALL'} with every wider window and "
            f"{'stays positive' if stays else 'VANISHES'}.",
            "The closed form has one sd for all rows; skavi's f lets log sd vary with the window "
            "as well, which is worth the difference of the two gaps. The means are the same.",
            "Part of the gap sits at the ends of the series, where absent rows read as 0 and the "
            "sds are others; the rest is what rows beyond the window would have said.",
        ],
        {"gap": draw_gaps},
    )


def _windowed(x, width):
    return fit(LocalLevel(**_SDS), x[:, None], Polynomial(1, context=(width, width)))


def _against_smoother(x, factorized):
    exact, closed = kalman_smoother(x, *_POSITIONAL), local_level_factorized(x, *_POSITIONAL)
    posterior = factorized.estimator.posterior(x[:, None])
    rows = [
        ["means against the Kalman smoother's", _distance(posterior.mean[:, 0], exact.means)],
        [
            "variances against 1 / diag(precision)",
            _distance(posterior.sd[:, 0] ** 2, closed.z_sd**2),
        ],
        ["ELBO against the closed form", abs(factorized.elbo - closed.elbo)],
    ]
    return Table("F-VI against the truth", ["what", "largest difference"], rows)


def _distance(a, b):
    return float(np.abs(a - b).max())


def _places(x, settings, factorized, windows):
    """Means of the two middle rows: F-VI's, and A-VI's for windows up to one beyond the stretch."""
    first, second = settings.places
    fits = {"F-VI": factorized}
    for w in range(min(settings.stretch + 2, len(windows))):
        fits[f"A-VI, {w} before and after"] = windows[w]
    rows = []
    for name, fitted in fits.items():
        posterior = fitted.estimator.posterior(x[:, None])
        mean, sd = posterior.mean[[first, second], 0], posterior.sd[[first, second], 0]
        same = np.array_equal(mean, mean[::-1]) and np.array_equal(sd, sd[::-1])
        rows.append([name, *map(float, mean), *map(float, sd), bool(same)])
    title = f"Rows {first} and {second}, equal with {settings.stretch} neighbours on either side"
    columns = ["method", "mean", "mean'", "sd", "sd'", "equal"]
    return Table(title, columns, rows)


def _gaps(x, factorized, windows):
    best = local_level_factorized(x, *_POSITIONAL).elbo
    rows = []
    for w, fitted in enumerate(windows):
        closed = local_level_windowed_linear(x, *_POSITIONAL, context=(w, w))
        gap = factorized.elbo - fitted.elbo
        means = fitted.estimator.transform(x[:, None])[:, 0]
        rows.append([w, gap, best - closed.elbo, _distance(means, closed.z_mean), fitted.seconds])
    columns = ["window", "gap, nats", "closed form", "means' largest difference", "seconds"]
    return Table("Gap of a linear f against its window", columns, rows)
