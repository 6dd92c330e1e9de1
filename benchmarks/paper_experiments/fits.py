"""Optima by skavi's default solvers, in the paper's convention."""

import warnings
from dataclasses import dataclass
from time import perf_counter

from sklearn.exceptions import ConvergenceWarning

from skavi import AmortizedVI, FactorizedVI
from skavi.closability import AmortizationWarning


@dataclass(frozen=True)
class Fit:
    """A fitted estimator and the seconds that it took."""

    estimator: FactorizedVI | AmortizedVI
    seconds: float

    @property
    def elbo(self) -> float:
        """Nats, all rows, all constants kept."""
        return self.estimator.elbo_


def fit(model, X, function=None, **arguments) -> Fit:
    """Fit F-VI, or A-VI with an inference function, at default settings.

    Too small a window and a stop before convergence are part of the experiments: the one is the
    point of them, the other is a column of their tables. Neither warns.
    """
    if function is None:
        estimator = FactorizedVI(model, random_state=0, **arguments)
    else:
        estimator = AmortizedVI(model, function, random_state=0, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", AmortizationWarning)
        begin = perf_counter()
        estimator.fit(X)
    return Fit(estimator, perf_counter() - begin)
