"""The paper's small models as skavi states them, their data, and what counts as exact."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.paper_experiments import linear, nonlinear, saw
from benchmarks.paper_experiments.exhaustive import exhaustive_search
from closed_forms import linear_factorized, published, saw_factorized
from skavi.inference_functions import MLP, InferenceFunction, Polynomial
from skavi.models import HierarchicalModel, LinearModel, SawTimeSeries
from skavi.noise import GaussHermite


@dataclass(frozen=True)
class Problem:
    """A model of the paper.

    Attributes
    ----------
    title : str
    data : callable
        () -> x (n_rows,).
    model, function : callable
        () -> skavi's model, and the inference function of its A-VI.
    width : int
        Of the rivals' inference function; 0 is a line.
    context : int
        How many rows before its own an inference function reads.
    constants : dict
    sigma : float
        What the published convention divides residuals by.
    noise : GaussHermite
        Exact, or to 1e-9 near the optimum.
    optimum : callable
        x -> the published -ELBO of the best F-VI.
    """

    title: str
    data: Callable[[], np.ndarray]
    model: Callable[[], HierarchicalModel]
    function: Callable[[], InferenceFunction]
    width: int
    context: int
    constants: dict
    sigma: float
    noise: GaussHermite
    optimum: Callable[[np.ndarray], float]

    def inputs(self, x):
        """Return what an inference function reads of each row, standardised."""
        columns = [np.r_[np.zeros(lag), x[: len(x) - lag]] for lag in range(self.context, -1, -1)]
        inputs = np.column_stack(columns)
        return (inputs - inputs.mean(0)) / inputs.std(0)


def _linear_optimum(x):
    return published(linear_factorized(x, linear.TAU, linear.SIGMA).elbo, len(x), linear.SIGMA)


PROBLEMS = {
    "linear": Problem(
        "linear, N = 10,000",
        lambda: linear.data(10_000),
        lambda: LinearModel(linear.TAU, linear.SIGMA),
        lambda: Polynomial(1),
        0,
        0,
        {"tau": linear.TAU, "sigma": linear.SIGMA},
        linear.SIGMA,
        GaussHermite(2),
        _linear_optimum,
    ),
    "saw": Problem(
        "saw, T = 1,000",
        lambda: saw.data(1000),
        lambda: SawTimeSeries(saw.A),
        lambda: MLP((10, 10), context=(1, 0)),
        10,
        1,
        {"a": saw.A},
        1.0,
        GaussHermite(2),
        lambda x: published(saw_factorized(x, saw.A).elbo, len(x)),
    ),
    "nonlinear": Problem(
        "nonlinear, N = 10,000",
        lambda: nonlinear.data(10_000),
        nonlinear.PublishedDensity,
        lambda: MLP((16, 16)),
        16,
        0,
        {},
        1.0,
        GaussHermite((32, 2)),
        lambda x: exhaustive_search(x).loss,
    ),
}
