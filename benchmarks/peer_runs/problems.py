"""The contests' models as skavi states them, their data, and what counts as exact."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from sklearn.datasets import load_digits

from benchmarks.paper_experiments import linear, nonlinear, saw
from benchmarks.paper_experiments.exhaustive import exhaustive_search
from closed_forms import linear_factorized, published, saw_factorized
from skavi import FactorizedVI
from skavi.inference_functions import MLP, InferenceFunction, Polynomial
from skavi.models import FactorAnalysis, HierarchicalModel, LinearModel, SawTimeSeries
from skavi.noise import ClosedForm, GaussHermite, Noise


@dataclass(frozen=True)
class Problem:
    """A model of the paper, or factor analysis.

    Attributes
    ----------
    title : str
    data : callable
        () -> X (n_rows, n_features).
    model, function : callable
        () -> skavi's model, and the inference function of its A-VI.
    width : int
        Of the rivals' inference function; 0 is a line.
    context : int
        How many rows before its own an inference function reads.
    constants : dict
    loss : callable
        elbo, n_rows -> -ELBO, in the published convention where there is one.
    noise : Noise
        Exact, or to 1e-9 near the optimum.
    optimum : callable
        X -> that loss of the best F-VI.
    start : ndarray of shape (2, n_globals)
        Means and log sds of q(theta) that rivals start from.
    """

    title: str
    data: Callable[[], np.ndarray]
    model: Callable[[], HierarchicalModel]
    function: Callable[[], InferenceFunction]
    width: int
    context: int
    constants: dict
    loss: Callable[[float, int], float]
    noise: Noise
    optimum: Callable[[np.ndarray], float]
    start: np.ndarray = field(default_factory=lambda: np.array([[0.0], [-2.0]]))
    n_latents: int = 1

    def inputs(self, X):
        """Return what an inference function reads of each row, standardised."""
        rows = [np.roll(X, lag, 0) for lag in range(self.context, -1, -1)]
        for lag, column in zip(range(self.context, -1, -1), rows, strict=True):
            column[:lag] = 0
        inputs = np.hstack(rows)
        return (inputs - inputs.mean(0)) / np.where(inputs.std(0) > 0, inputs.std(0), 1)


def _linear_loss(elbo, n):
    return published(elbo, n, linear.SIGMA)


def _linear_optimum(X):
    return _linear_loss(linear_factorized(X[:, 0], linear.TAU, linear.SIGMA).elbo, len(X))


def _column(data, n):
    return lambda: data(n)[:, None]


# --- factor analysis ----------------------------------------------------------------------------

_DIGITS = load_digits().data
_SCALES = {
    "loading_scale": 4.3,  # about the cells' sd; all scales as FactorAnalysis takes them from data
    "mean_loc": _DIGITS.mean(0),
    "mean_scale": 43.0,
    "noise_shape": 1.0,
    "noise_scale": 0.19,
}
_N_FACTORS = 5


def _factor_analysis():
    return FactorAnalysis(_N_FACTORS, **_SCALES)


def _factors_optimum(X):
    """Return the best of a few starts, each run to the end."""
    fits = [FactorizedVI(_factor_analysis(), tol=1e-9, random_state=s) for s in range(3)]
    return -max(float(fit.fit(X).elbo_) for fit in fits)


def _factors_start():
    """Return small random loadings: where all are zero, the gradient is."""
    n_features = _DIGITS.shape[1]
    loadings = np.random.default_rng(1).normal(0, 1.0, n_features * _N_FACTORS)
    means = np.r_[np.log(_DIGITS.var(0).mean()), loadings, _DIGITS.mean(0)]
    return np.stack([means, np.full(len(means), -2.0)])


PROBLEMS = {
    "linear": Problem(
        "linear, N = 10,000",
        _column(linear.data, 10_000),
        lambda: LinearModel(linear.TAU, linear.SIGMA),
        lambda: Polynomial(1),
        0,
        0,
        {"tau": linear.TAU, "sigma": linear.SIGMA},
        _linear_loss,
        GaussHermite(2),
        _linear_optimum,
    ),
    "saw": Problem(
        "saw, T = 1,000",
        _column(saw.data, 1000),
        lambda: SawTimeSeries(saw.A),
        lambda: MLP((10, 10), context=(1, 0)),
        10,
        1,
        {"a": saw.A},
        published,
        GaussHermite(2),
        lambda X: published(saw_factorized(X[:, 0], saw.A).elbo, len(X)),
    ),
    "nonlinear": Problem(
        "nonlinear, N = 10,000",
        _column(nonlinear.data, 10_000),
        nonlinear.PublishedDensity,
        lambda: MLP((16, 16)),
        16,
        0,
        {},
        published,
        GaussHermite((32, 2)),
        lambda X: exhaustive_search(X[:, 0]).loss,
    ),
    "factors": Problem(
        "factor analysis of the digits, 5 components",
        lambda: _DIGITS,
        _factor_analysis,
        Polynomial,
        0,
        0,
        _SCALES | {"n_features": _DIGITS.shape[1], "n_latents": _N_FACTORS},
        lambda elbo, n: -elbo,
        ClosedForm(),
        _factors_optimum,
        _factors_start(),
        _N_FACTORS,
    ),
}
