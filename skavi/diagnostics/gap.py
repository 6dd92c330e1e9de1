"""What amortizing costs: the amortization gap, row by row and in total."""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from skavi import _fit
from skavi._estimators import AmortizedVI, FactorizedVI
from skavi.noise import QuasiMonteCarlo

_N_SCRAMBLES = 8


@dataclass(frozen=True)
class AmortizationGap:
    """How far an amortized fit's ELBO is below the factorized optimum, in nats.

    Attributes
    ----------
    per_row : ndarray of shape (n_rows,)
        What each row gains when its factor is solved to its own optimum with q(theta) frozen at
        the amortized fit's. For models that couple rows all factors are solved together and the
        sum alone is certain not to be negative.
    total : float
        ``elbo_factorized - elbo_amortized``.
    relative : float
        ``total`` divided by the absolute value of ``elbo_factorized``.
    elbo_amortized, elbo_factorized : float
        ELBO of the rows under either fit.
    standard_error : float
        Of ``total``; 0 where expectations are exact.
    gradient_norm : ndarray of shape (n_rows,)
        Norm of factorized VI's gradient at the amortized fit, in the factors' natural units
        (nats a standard deviation): the cheap check that needs no solving.
    """

    per_row: np.ndarray = field(repr=False)
    total: float
    relative: float
    elbo_amortized: float
    elbo_factorized: float
    standard_error: float
    gradient_norm: np.ndarray = field(repr=False)


def amortization_gap(amortized, X, factorized=None) -> AmortizationGap:
    """Measure what amortizing costs on the training data.

    Parameters
    ----------
    amortized : AmortizedVI
        A fitted estimator.
    X : array-like of shape (n_samples, n_features)
        The rows it was fitted on, with unit weights.
    factorized : FactorizedVI, default=None
        A fit of the same model to the same rows. None: one is started at the amortized solution
        and run to convergence.

    Returns
    -------
    AmortizationGap

    Raises
    ------
    TypeError
        If an argument is not a fitted estimator of the right kind.

    Notes
    -----
    Source: Margossian & Blei (2024), section 2.3; Cremer, Li & Duvenaud (2018).

    Examples
    --------
    >>> from skavi import AmortizedVI, amortization_gap
    >>> from skavi.inference_functions import Constant
    >>> from skavi.models import LinearModel
    >>> X = [[0.0], [1.0], [5.0]]
    >>> gap = amortization_gap(AmortizedVI(LinearModel(), Constant()).fit(X), X)
    >>> gap.total > 0.1
    True
    """
    _check_kind(amortized, AmortizedVI, "amortized")
    if factorized is None:
        factorized = _from(amortized).fit(X)
    else:
        _check_kind(factorized, FactorizedVI, "factorized")
    X = amortized._validated(X)
    per_row, gradient_norm = _rows(amortized, X)
    low, high = _Elbo(amortized, X), _Elbo(factorized, X)
    elbo_amortized, elbo_factorized, se = _compared(low, high)
    total = elbo_factorized - elbo_amortized
    return AmortizationGap(
        per_row=per_row,
        total=total,
        relative=total / max(abs(elbo_factorized), 1e-300),
        elbo_amortized=elbo_amortized,
        elbo_factorized=elbo_factorized,
        standard_error=se,
        gradient_norm=gradient_norm,
    )


def _check_kind(estimator, kind, name):
    if not isinstance(estimator, kind):
        raise TypeError(f"{name} must be a fitted {kind.__name__}, got {type(estimator).__name__}.")
    check_is_fitted(estimator, "elbo_")


def _from(amortized):
    """A factorized fit of the same problem that starts at the amortized solution."""
    given = {k: v for k, v in amortized.get_params(deep=False).items() if k in _SHARED}
    return FactorizedVI(model=clone(amortized.model_), init=amortized, **given)


_SHARED = ("family", "global_family", "noise", "max_iter", "tol", "device", "random_state")


def _rows(amortized, X):
    """Each row's gain with q(theta) frozen, and the gradient before it."""
    rows = amortized._rows(X)
    problem, globals_ = amortized._frozen_problem(rows), amortized._globals(rows.X)
    start = amortized._raw_locals(rows)
    solved, _ = _fit.solve_rows(problem, globals_, amortized.tol, start=start)
    with torch.no_grad():
        before, after = problem.row_terms(start, globals_), problem.row_terms(solved, globals_)
    gain = after - before
    if not gain.dim():
        gain = gain.expand(len(X)) / len(X)  # one log joint for all: an even share each
    raw = start.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(problem.row_terms(raw, globals_).sum(), raw)
    steps = problem.objective.family.steps(problem.objective.local_factors(start))
    return gain.cpu().numpy().copy(), (gradient * steps).norm(dim=1).detach().cpu().numpy()


class _Elbo:
    """The ELBO of rows under a fit, as a function of the noise rule."""

    def __init__(self, estimator, X):
        rows = estimator._rows(X)
        self.problem = estimator._frozen_problem(rows)
        self.raw, self.globals_ = estimator._raw_locals(rows), estimator._globals(rows.X)

    def __call__(self, noise=None):
        problem = self.problem if noise is None else self.problem.with_noise(noise)
        with torch.no_grad():
            return float(problem.elbo_of(self.raw, self.globals_))


def _compared(low, high):
    """Both ELBOs and the standard error of their difference, under common noise."""
    if not hasattr(low.problem.noise, "n_draws"):
        return low(), high(low.problem.noise), 0.0
    n_draws = 2 * low.problem.noise.n_draws
    rules = [QuasiMonteCarlo(n_draws, seed=20_000 + i) for i in range(_N_SCRAMBLES)]
    pairs = np.array([[low(rule), high(rule)] for rule in rules])
    se = float(np.std(pairs[:, 1] - pairs[:, 0], ddof=1) / math.sqrt(len(rules)))
    return float(pairs[:, 0].mean()), float(pairs[:, 1].mean()), se
