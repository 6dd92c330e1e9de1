"""The amortization gap, row by row and in total."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from skavi._estimators.amortized import AmortizedVI
from skavi._estimators.base import VariationalInference
from skavi._estimators.factorized import FactorizedVI
from skavi._estimators.fitted_estimator import function_on, position_on
from skavi._fit.defaults import evaluation_noise
from skavi._fit.local_problems import solve_rows
from skavi._platform.array_types import TableLike
from skavi._platform.forks_and_threads import guarded
from skavi._platform.html import html_table
from skavi.inference_functions import Table
from skavi.solvers import LBFGS, State

#: Nats: a row's two factors may differ by so much and be equally good.
_ROUNDING = 1e-6
#: Sets of draws for the standard error: 7 degrees of freedom, as for the final ELBO.
_N_SCRAMBLES = 8
#: Nats a row to which rows are solved where no tol is given: far less than a network's own.
_ROWS_TOL = 1e-8
#: Iterations of L-BFGS on the factors of some rows: far more than usual. Not measured: order of
#: magnitude.
_MAX_ITER = 1000


@dataclass(frozen=True)
class AmortizationGap:
    """How far an amortized fit's ELBO is below the factorized optimum, in nats.

    Attributes
    ----------
    per_row : ndarray of shape (n_rows,)
        Gain of the ELBO when only this row's factor moves from the function's output to its
        optimum, with q(theta) and all other factors fixed: not negative beyond rounding. For rows
        that are independent given theta the sum is the gain of all rows together, and at most
        `total`; for coupled rows the sum has no meaning.
    total : float
        ``elbo_factorized - elbo_amortized``: not negative beyond the estimators' ``tol`` (nats a
        row) and `standard_error`.
    relative : float
        ``total`` divided by the absolute value of ``elbo_factorized``.
    elbo_amortized, elbo_factorized : float
        ELBO of the rows under either fit, by the amortized fit's noise rule. If the rows' optimal
        factors at the amortized q(theta) have a higher ELBO than the factorized fit (which stopped
        early, or at worse optima), their ELBO is taken.
    standard_error : float
        Of ``total``, in nats: over sets of common random draws if the noise rule uses draws; 0 for
        closed forms and quadrature.
    gradient_norm : ndarray of shape (n_rows,)
        Norm of factorized VI's gradient at the amortized fit, in the factors' natural units
        (nats a standard deviation): a cheap check without solving.
    n_amortized_better : int
        Rows whose factor by the function is better, under the same q(theta) and by more than 1e-6
        nats, than what the rows' own solver finds without it. Such a row's optimum is then sought
        from the function's factor, so that `per_row` is not negative.

    Examples
    --------
    >>> from skavi import AmortizedVI, amortization_gap
    >>> from skavi.inference_functions import Constant
    >>> from skavi.models import LinearModel
    >>> X = [[0.0], [1.0], [5.0]]
    >>> gap = amortization_gap(AmortizedVI(LinearModel(), Constant()).fit(X), X)
    >>> gap.per_row.round(2)
    array([0.06, 0.02, 0.14])
    >>> float(gap.elbo_factorized - gap.elbo_amortized - gap.total)
    0.0
    """

    per_row: np.ndarray = field(repr=False)
    total: float
    relative: float
    elbo_amortized: float
    elbo_factorized: float
    standard_error: float
    gradient_norm: np.ndarray = field(repr=False)
    n_amortized_better: int = 0

    def _repr_html_(self):
        largest = int(self.per_row.argmax())
        rows = [
            ("total", f"{self.total:.4g} ± {self.standard_error:.1g} nats"),
            ("relative to the factorized ELBO", f"{self.relative:.2%}"),
            ("ELBO, amortized", f"{self.elbo_amortized:.6g} nats"),
            ("ELBO, factorized", f"{self.elbo_factorized:.6g} nats"),
            ("largest gap of a row", f"{self.per_row[largest]:.4g} nats (row {largest})"),
            ("rows that the function solves better", f"{self.n_amortized_better}"),
        ]
        return html_table("AmortizationGap", (), rows)


@guarded
def amortization_gap(
    amortized: VariationalInference, X: TableLike, factorized: VariationalInference | None = None
) -> AmortizationGap:
    """Measure the amortization gap on the training data.

    Parameters
    ----------
    amortized : AmortizedVI
        A fitted estimator.
    X : array-like of shape (n_samples, n_features)
        The rows it was fitted on, with unit weights.
    factorized : FactorizedVI, default=None
        A fit of the same model to the same rows. None: the better of two fits to convergence, one
        from the amortized solution and one from the model's own start (an amortized fit may be at a
        saddle point, where a fit from it would stay). If its factors know their neighbours and the
        function's do not, one that starts from it is fitted with the function's own family: what a
        family loses is no gap of amortization.

    Returns
    -------
    AmortizationGap

    Raises
    ------
    TypeError
        If an argument is not an estimator of the right kind.
    sklearn.exceptions.NotFittedError
        If it is not fitted.

    Notes
    -----
    For a model that gives one log joint for all rows, `per_row` needs a small fit per row. Source:
    Margossian & Blei (2024), section 2.3; Cremer, Li & Duvenaud (2018).

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
        fits = [factorized_like(amortized, init).fit(X) for init in (amortized, None)]
    else:
        _check_kind(factorized, FactorizedVI, "factorized")
        if factorized.family_.links_rows and not amortized.family_.links_rows:
            factorized = factorized_like(amortized, factorized).fit(X)
        fits = [factorized]
    start, tol = function_on(amortized, X), _tol_of_rows(amortized)
    solved, _ = solve_rows(start.problem, start.raw_globals, tol, start=start.raw)
    high = [*(position_on(fit, X) for fit in fits), replace(start, raw=solved)]
    elbo_amortized, elbo_factorized, se = _compare(start, high)
    total = elbo_factorized - elbo_amortized
    return AmortizationGap(
        per_row=_gains(start, solved, tol).cpu().numpy().copy(),
        total=total,
        relative=total / max(abs(elbo_factorized), 1e-300),
        elbo_amortized=elbo_amortized,
        elbo_factorized=elbo_factorized,
        standard_error=se,
        gradient_norm=_gradient_norm(start).cpu().numpy().copy(),
        n_amortized_better=_count_better(start, tol),
    )


def _tol_of_rows(amortized):
    """Return the nats a row to solve rows to: those given, or nearer than a network is fitted."""
    return _ROWS_TOL if amortized.tol is None else amortized.tol


def _check_kind(estimator, kind, name):
    if not isinstance(estimator, kind):
        raise TypeError(f"{name} must be a fitted {kind.__name__}, got {type(estimator).__name__}.")
    check_is_fitted(estimator, "elbo_")


def factorized_like(amortized, init):
    """Return an unfitted factorized estimator of the same problem."""
    given = {k: v for k, v in amortized.get_params(deep=False).items() if k in _SHARED}
    # Within the function's own family: that of factorized VI may know more of neighbours.
    given["family"] = clone(amortized.family_)
    return FactorizedVI(model=clone(amortized.model_), init=init, **given)


_SHARED = ("global_family", "noise", "max_iter", "tol", "device", "random_state")


def _elbo(position, noise):
    problem = position.problem.with_noise(noise)
    with torch.no_grad():
        return float(problem.elbo_of(position.raw, position.raw_globals))


def _terms(position, raw):
    with torch.no_grad():
        return position.problem.row_terms(raw, position.raw_globals)


def _compare(low, high):
    """Return the ELBO at `low`, the best at `high`, and the standard error of the difference.

    All are evaluated with common noise.
    """
    own = low.problem.noise
    rules = [own]
    if own.n_draws is not None:
        n_draws, seeds = 2 * own.n_draws, range(20_000, 20_000 + _N_SCRAMBLES)
        rules = [evaluation_noise(low.objective, len(low.raw), n_draws, seed) for seed in seeds]
    values = np.array([[_elbo(p, rule) for p in (low, *high)] for rule in rules])
    best = 1 + int(values[:, 1:].mean(0).argmax())
    difference = values[:, best] - values[:, 0]
    drawn = len(rules) > 1
    se = float(np.std(difference, ddof=1) / math.sqrt(len(rules))) if drawn else 0.0
    return float(values[:, 0].mean()), float(values[:, best].mean()), se


def _count_better(start, tol):
    """Count the rows whose given factor is better than what `solve_rows` finds without it."""
    if not start.objective.model.coupling.separable:
        return 0
    alone, _ = solve_rows(start.problem, start.raw_globals, tol)
    lead = _terms(start, start.raw) - _terms(start, alone)
    return int((lead > _ROUNDING + tol).sum())


def _gains(start, solved, tol):
    """Return the gain of each row's factor when it alone is solved, shape (n_rows,)."""
    coupling, before = start.objective.model.coupling, _terms(start, start.raw)
    if not start.raw.numel():
        return start.raw.new_zeros(len(start.raw))  # no latents, and so no factors that could gain
    if coupling.separable:
        return _terms(start, solved) - before
    # A chain's term depends on two neighbouring rows, so every other row can be solved at once.
    n = len(start.raw)
    n_colours = coupling.n_colours(n)
    gains = start.raw.new_zeros(n)
    for first in range(min(n_colours, n)):
        index = torch.arange(first, n, n_colours, device=gains.device)
        change = _terms(start, _solve_alone(start, index, tol)) - before
        gains[index] = coupling.shares(change, index)
    return gains


class _SomeRows(Table):
    """A table of which only some rows move."""

    def __init__(self, index, held):
        self.index, self.held = index, held

    def raw(self, raw_locals, shared, features):
        return self.held.index_copy(0, self.index, raw_locals)


def _solve_alone(start, index, tol):
    """Return raw factors in which those at `index` are optimal, given all others."""
    function = _SomeRows(index, start.raw)
    problem = replace(start.problem, function=function)
    state = State(start.raw[index], {}, start.raw_globals)
    share = tol * len(index) / len(start.raw)  # the solver's tol is an average over all rows
    outcome = LBFGS().solve(problem, state, share, _MAX_ITER, lambda *_: False)
    return problem.raw(outcome.state)


def _gradient_norm(start):
    """Return the norm of factorized VI's gradient, in natural units, shape (n_rows,)."""
    raw = start.raw.clone().requires_grad_(True)
    total = start.problem.row_terms(raw, start.raw_globals).sum()
    (gradient,) = torch.autograd.grad(total, raw, materialize_grads=True)
    objective = start.objective
    return (gradient * objective.family.steps(objective.local_factors(start.raw))).norm(dim=1)
