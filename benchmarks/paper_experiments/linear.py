"""The linear model: the gap closes with a line, and part of A-VI's speed is its learning rate."""

import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from closed_forms import linear_constant, linear_factorized, published
from skavi.inference_functions import Constant, Polynomial
from skavi.models import LinearModel

from .fits import fit
from .log_joints import SIGMA, TAU
from .log_joints import linear as log_joint
from .published_loop import FreeFactors, PolynomialFactors
from .quadratic_step import SUMS, QuadraticStep
from .race import Contestant
from .report import Report, Table
from .track import race


@dataclass(frozen=True)
class Settings:
    """The published settings; the learning rates are the race's common ones."""

    n_samples: int = 10_000
    n_race_samples: int = 10_000
    n_draws: int = 100
    n_iter: int = 5000
    seeds: tuple[int, ...] = tuple(range(1954, 1964))
    rates: tuple[float, ...] = (1e-3, 1e-2, 1e-1)


QUICK = replace(Settings(), n_race_samples=1000)


def data(n_samples):
    """Return x (n_samples,), drawn from the model at theta = 0."""
    rng = np.random.default_rng(1954)
    z, noise = rng.normal(size=n_samples), rng.normal(size=n_samples)
    return TAU * z + SIGMA * noise


def run(settings: Settings = Settings(), n_jobs: int = 1) -> Report:
    """Compare optima and iterations with the published ones."""
    x = data(settings.n_samples)
    outcome = _race(settings, n_jobs)
    return Report(
        "linear",
        "Linear model: x_n ~ N(theta + tau z_n, sigma^2)",
        asdict(settings),
        [_optima(x), *outcome.tables()],
        [
            "Published -ELBO = -ELBO - N (log 2 pi + log sigma) + (N + 1) / 2 log 2 pi: the paper "
            "drops all constants of the log joint and log(2 pi) / 2 of each log q.",
            "The published draws of x are not known: ours are other draws of the same model, whose "
            f"-ELBO varies by {_spread(settings.n_samples):.0f} from draw to draw. Compare what "
            "each method loses against F-VI.",
            f"Iterations: the paper's plain Adam loop, {len(settings.seeds)} seeds, "
            f"{settings.n_draws} draws, {settings.n_race_samples:,} rows (published: 10 seeds, 100 "
            "draws, 10,000 rows). Published F-VI ran at a tenth of A-VI's learning rate.",
            SUMS,
            *outcome.remarks(),
        ],
        {"loss": outcome.draw_curves, "iterations": outcome.draw_boxes},
    )


def _spread(n_samples):
    """The -ELBO holds sum x^2 / (2 var x), whose standard deviation is sqrt(n / 2)."""
    return math.sqrt(n_samples / 2)


def _optima(x):
    functions = [
        ("F-VI", None, 6088.5, linear_factorized),
        ("A-VI constant", Constant(), 7232.2, linear_constant),
        ("A-VI degree 1", Polynomial(1), 6088.0, linear_factorized),
        ("A-VI degree 2", Polynomial(2), 6088.0, linear_factorized),
    ]
    rows, first = [], None
    for name, function, printed, closed_form in functions:
        fitted = fit(LinearModel(TAU, SIGMA), x[:, None], function)
        loss, truth = (
            published(elbo, len(x), SIGMA)
            for elbo in (fitted.elbo, closed_form(x, TAU, SIGMA).elbo)
        )
        first = first or (loss, fitted.elbo)
        rows.append(
            [
                name,
                printed,
                loss,
                truth,
                printed - 6088.5,
                loss - first[0],
                abs(fitted.elbo - first[1]) / abs(first[1]),
                fitted.estimator.n_iter_,
                fitted.seconds,
            ]
        )
    columns = [
        "method",
        "published -ELBO",
        "measured",
        "closed form",
        "published - F-VI",
        "measured - F-VI",
        "relative gap",
        "iterations",
        "seconds",
    ]
    return Table("Optima by skavi's default solvers", columns, rows)


def _race(settings, n_jobs):
    x = torch.tensor(data(settings.n_race_samples), dtype=torch.float32)
    contestants = [
        Contestant("F-VI", lambda: FreeFactors(len(x), torch.rand), 1e-3, 2135),
        Contestant("degree 1", lambda: PolynomialFactors(x, 1), 1e-2, 365),
        Contestant("degree 2", lambda: PolynomialFactors(x, 2), 1e-2, 700),
        Contestant("constant", lambda: PolynomialFactors(x, 0), 1e-2, math.inf),
    ]
    step = QuadraticStep(log_joint(x), settings.n_draws, settings.n_iter, len(x))
    last = slice(4 * settings.n_iter // 5, None)
    return race(contestants, step, settings.rates, settings.seeds, last, n_jobs)
