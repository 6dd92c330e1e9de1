"""The nonlinear model: the width of f closes the gap, the same width for any number of rows."""

import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from joblib import Parallel, delayed

from closed_forms import paper_nonlinear_data, published
from skavi.inference_functions import MLP
from skavi.models import NonlinearModel

from .blockwise_step import BlockwiseStep
from .exhaustive import exhaustive_search
from .fits import fit
from .log_joints import nonlinear as log_joint
from .published_loop import FreeFactors, TwoNetworks
from .race import Contestant
from .report import Report, Table
from .track import race

# -ELBO by width, None for F-VI; the others are not in the text
PUBLISHED = {None: 32398.9, 1: 35639.0, 8: 32392.0, 32: 32385.4}
WITHIN = 0.01


@dataclass(frozen=True)
class Settings:
    """The published settings, but for ``n_iter``: F-VI's loss has settled long before 20,000.

    ``sizes`` are those of the width-against-N table: every width is solved at sizes up to
    ``n_samples``, in at most ``max_iter`` iterations; at larger ones, in ``few_iter``, those from
    the width on that sufficed before. ``mark`` are the iterations whose mean loss sets the 1% mark.
    """

    n_samples: int = 10_000
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    sizes: tuple[int, ...] = (1000, 10_000, 100_000)
    max_iter: int = 200
    few_iter: int = 4
    n_race_samples: int = 10_000
    n_draws: int = 100
    n_iter: int = 6000
    mark: tuple[int, int] = (5500, 6000)
    race_widths: tuple[int, ...] = (1, 8, 16, 32)
    seeds: tuple[int, ...] = tuple(range(1789, 1799))
    rates: tuple[float, ...] = (1e-2, 1e-1)


QUICK = replace(
    Settings(), widths=(2, 4, 32), sizes=(1000, 10_000), max_iter=20, n_race_samples=500
)


@dataclass(frozen=True)
class Optimum:
    """What a fit by skavi's default solver reached: -ELBO in the published convention."""

    loss: float
    n_iter: int
    converged: bool
    seconds: float


class PublishedDensity(NonlinearModel):
    """The nonlinear model as the paper's code has it: without the likelihood's -log sd = -cos z."""

    def log_local(self, theta, z, X):
        return super().log_local(theta, z, X) + torch.cos(z).sum(-1)


def data(n_samples):
    """Return the paper's rows; where more are asked for, the same recipe goes on."""
    x, _, theta = paper_nonlinear_data()
    if n_samples <= len(x):
        return x[:n_samples]
    rng = np.random.default_rng(1789)
    z, noise = 5 * rng.normal(size=n_samples - len(x)), rng.normal(size=n_samples - len(x))
    return np.r_[x, theta + z * np.sin(z) + z + noise * np.exp(np.cos(z))]


def run(settings: Settings = Settings(), n_jobs: int = 1) -> Report:
    """Compare optima, gaps by width and number of rows, and iterations with the published ones."""
    optima, by_size, width_remark = _optima(settings, n_jobs)
    outcome = _race(settings, n_jobs)

    def draw_gaps(figure):
        axes = figure.subplots()
        for row in by_size.rows:
            shown = [np.nan if gap is None else max(gap, 1e-6) for gap in row[2:-1]]
            axes.plot(settings.widths, shown, "o-", label=f"N = {row[0]:,}")
        axes.axhline(0.01, color="grey", linestyle=":", label="1%")
        axes.set(xscale="log", xlabel="width of both hidden layers", ylabel="relative gap")
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.set_xticks(settings.widths, [str(width) for width in settings.widths])
        axes.legend(fontsize="small")

    return Report(
        "nonlinear",
        "Nonlinear model: x_n ~ N(theta + z_n sin z_n + z_n, exp(cos z_n)^2)",
        asdict(settings),
        [optima, by_size, *outcome.tables()],
        [
            "The published density leaves out the likelihood's -log sd = -cos z_n: a variant of "
            "NonlinearModel in this benchmark; the library keeps the full density.",
            "Published -ELBO = -ELBO - N log 2 pi + (N + 1) / 2 log 2 pi for that variant.",
            "Many rows have several local optima. The published F-VI (32,398.9) stopped in worse "
            "ones than its A-VI reached (32,385.4); the exhaustive search says what F-VI can do.",
            width_remark,
            f"A-VI by skavi's defaults, at most {settings.max_iter} iterations up to N = "
            f"{settings.n_samples:,} and {settings.few_iter} beyond, where a gap is therefore an "
            "upper bound.",
            f"Race: the paper's plain Adam loop, {len(settings.seeds)} seeds, {settings.n_draws} "
            f"draws, {settings.n_race_samples:,} rows (published: 10 seeds, 100 draws, 10,000 "
            f"rows); the mark is F-VI's mean loss over iterations {settings.mark[0]:,} to "
            f"{settings.mark[1]:,} (published: 19,000 to 20,000; on 1,000 rows that is 0.01% "
            "lower). The published common rate is 0.01, and some wide published runs ended in NaN.",
            *outcome.remarks(),
        ],
        {"loss": outcome.draw_curves, "iterations": outcome.draw_boxes, "gap": draw_gaps},
    )


def _optimum(size, width, max_iter) -> Optimum:
    """Solve F-VI (width None) or A-VI on the first rows."""
    torch.set_num_threads(1)
    X = data(size)[:, None]
    if width is None:
        fitted = fit(PublishedDensity(), X)
    else:
        fitted = fit(PublishedDensity(), X, MLP((width, width)), max_iter=max_iter)
    estimator = fitted.estimator
    loss = published(fitted.elbo, size)
    return Optimum(loss, estimator.n_iter_, estimator.converged_, fitted.seconds)


def _optima(settings, n_jobs):
    """Return the table of optima, that of gaps by width and number of rows, and what it says."""
    every = (None, *settings.widths)
    jobs = [(n, w) for n in sorted(settings.sizes, reverse=True) for w in every[::-1]]
    jobs = [(n, w) for n, w in jobs if n <= settings.n_samples]
    found = Parallel(n_jobs)(delayed(_optimum)(*job, settings.max_iter) for job in jobs)
    solved = dict(zip(jobs, found, strict=True))
    enough = _enough(solved, settings.n_samples, settings.widths)
    for size in settings.sizes:
        if size > settings.n_samples:
            solved[size, None] = _optimum(size, None, None)
            for width in settings.widths[settings.widths.index(enough) if enough else 0 :]:
                solved[size, width] = _optimum(size, width, settings.few_iter)
                if _gap(solved, size, width) <= WITHIN:
                    break
    by_size = _gap_table(solved, settings)
    return _optima_table(solved, settings), by_size, _width_remark(by_size, settings)


def _gap(solved, size, width):
    best = solved[size, None].loss
    return (solved[size, width].loss - best) / best


def _enough(solved, size, widths):
    """Return the smallest width solved that comes within 1% of F-VI, None if none does."""
    return next(
        (w for w in widths if (size, w) in solved and _gap(solved, size, w) <= WITHIN), None
    )


def _optima_table(solved, settings):
    size = settings.n_samples
    whole = size == len(paper_nonlinear_data()[0])
    best = exhaustive_search(data(size)).loss
    rows = [["exhaustive search", None, best, 0.0, None, None, None]]
    for width in (None, *settings.widths):
        name = "F-VI" if width is None else f"A-VI 2 x {width}"
        optimum = solved[size, width]
        printed = PUBLISHED.get(width) if whole else None
        above = (optimum.loss - best) / best
        cost = optimum.n_iter, optimum.converged, optimum.seconds
        rows.append([name, printed, optimum.loss, above, *cost])
    columns = ["method", "published -ELBO", "measured", "above the search"]
    columns += ["iterations", "converged", "seconds"]
    return Table(f"Optima by skavi's default solvers, N = {size:,}", columns, rows)


def _gap_table(solved, settings):
    rows = []
    for size in settings.sizes:
        gaps = [_gap(solved, size, w) if (size, w) in solved else None for w in settings.widths]
        enough = _enough(solved, size, settings.widths)
        rows.append([size, solved[size, None].loss, *gaps, enough])
    columns = ["N", "F-VI -ELBO", *(f"width {w}" for w in settings.widths), "width within 1%"]
    return Table("Relative gap by width and number of rows", columns, rows)


def _width_remark(by_size, settings):
    needed = [math.inf if row[-1] is None else row[-1] for row in by_size.rows]
    return (
        "The width needed to come within 1% of F-VI "
        f"{'GROWS' if needed[-1] > needed[0] else 'does not grow'} from "
        f"N = {settings.sizes[0]:,} to {settings.sizes[-1]:,}."
    )


def _race(settings, n_jobs):
    x = torch.tensor(data(settings.n_race_samples), dtype=torch.float32)
    inputs = x[:, None]
    medians = {1: math.inf, 8: 1060, 16: 555, 32: 250}
    contestants = [Contestant("F-VI", lambda: FreeFactors(len(x), torch.rand), 1e-2, 1280)]
    for width in settings.race_widths:
        start = lambda width=width: TwoNetworks(inputs, width)  # noqa: E731
        contestants.append(Contestant(f"width {width}", start, 1e-2, medians[width]))
    step = BlockwiseStep(log_joint(x), settings.n_draws, settings.n_iter)
    return race(contestants, step, settings.rates, settings.seeds, slice(*settings.mark), n_jobs)
