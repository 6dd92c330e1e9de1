"""Where the nats go: what the ELBO loses, row by row, to family, function and solver."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from skavi._estimators.amortized import AmortizedVI
from skavi._estimators.base import VariationalInference
from skavi._estimators.fitted_estimator import function_on
from skavi._fit.defaults import evaluation_noise
from skavi._fit.local_problems import solve_rows
from skavi._numerics.aligned import aligned
from skavi._numerics.quadrature import product_rule, sobol_normal
from skavi._platform.array_types import Seed, TableLike
from skavi._platform.forks_and_threads import guarded
from skavi._platform.html import html_table
from skavi._platform.optional_imports import require
from skavi._platform.random_state import drawn_seed, private_state
from skavi.diagnostics.khat import row_khat
from skavi.diagnostics.reweighting import weigh
from skavi.distributions import defaults_of
from skavi.families import Point
from skavi.objective._integrals import SAMPLING

if TYPE_CHECKING:
    from pandas import DataFrame

#: Beyond this k-hat a row's likelihood by importance sampling is not known (Vehtari et al. 2024).
_KNOWN = 0.7
NOT_KNOWN = "not known"
#: Globals up to which q(theta) is averaged over by a product rule, of so many nodes along each.
_FEW_GLOBALS, _NODES = 2, 9
#: Sets of draws of theta, whose spread gives standard errors (7 degrees of freedom), and their
#: size.
_N_SETS, _N_DRAWS = 8, 8
#: Draws of theta at which the rules that integrate the rows' latents are chosen, and at most this
#: many globals for which q(theta)'s own share is sought.
_RULE_DRAWS, _MOST_GLOBALS = 8, 10
#: Draws of theta for the evidence, as many as `reweighted` takes.
_WEIGHED = 4000
#: Nats a row to which rows' best factors are solved.
_TOL = 1e-9


@dataclass(frozen=True)
class InferenceGap:
    r"""What each row's ELBO loses against its expected log likelihood, and to what, in nats.

    By construction, for each row

    .. math::

       \mathrm{E}_{q(\theta)} \log p(x_n \mid \theta) - \mathrm{ELBO}_n
       = \text{family} + \text{amortization} + \text{optimisation}.

    Attributes
    ----------
    log_likelihood : ndarray of shape (n_rows,)
        :math:`\mathrm{E}_{q(\theta)} \log p(x_n \mid \theta)`, by the best means there is.
    elbo : ndarray of shape (n_rows,)
        The row's term of the ELBO.
    family : ndarray of shape (n_rows,)
        What the row's own best factor of the family loses.
    amortization : ndarray of shape (n_rows,)
        What the function's factor loses against that one; 0 for `FactorizedVI`.
    optimisation : ndarray of shape (n_rows,)
        What the solver left of it; 0 for `AmortizedVI`, whose training's rest is in `amortization`.
    standard_error : ndarray of shape (n_rows,)
        Of the sum of the three: over sets of draws of theta; 0 where theta is integrated by
        quadrature.
    khat : ndarray of shape (n_rows,)
        Of rows integrated by importance sampling; NaN for others.
    how : ndarray of str of shape (n_rows,)
        "exact", "quadrature", "importance sampling", or "not known": sampled with a k-hat above
        0.7.
    generalization : InferenceGap or None
        The same on the rows of `X_test`; None if there were none.
    globals : float or None
        :math:`\mathrm{KL}(q(\theta) \,\|\, p(\theta \mid X))`, nats: with the sum of all rows' gaps
        it is :math:`\log p(X) - \mathrm{ELBO}`.
    globals_reason : str
        Why it is None; else empty.

    Examples
    --------
    >>> from skavi import AmortizedVI
    >>> from skavi.diagnostics import inference_gap
    >>> from skavi.inference_functions import Constant
    >>> from skavi.models import LinearModel
    >>> X = [[0.0], [1.0], [5.0]]
    >>> gap = inference_gap(AmortizedVI(LinearModel(), Constant()).fit(X), X, random_state=0)
    >>> gap.amortization.round(2), abs(gap.family.round(6)), gap.how[0]
    (array([0.06, 0.02, 0.14]), array([0., 0., 0.]), 'exact')
    """

    log_likelihood: np.ndarray = field(repr=False)
    elbo: np.ndarray = field(repr=False)
    family: np.ndarray = field(repr=False)
    amortization: np.ndarray = field(repr=False)
    optimisation: np.ndarray = field(repr=False)
    standard_error: np.ndarray = field(repr=False)
    khat: np.ndarray = field(repr=False)
    how: np.ndarray = field(repr=False)
    generalization: "InferenceGap | None" = field(default=None, repr=False)
    globals: float | None = None
    globals_reason: str = ""

    @property
    def per_row(self) -> np.ndarray:
        """The whole gap of each row, shape (n_rows,)."""
        return self.family + self.amortization + self.optimisation

    @property
    def total(self) -> float:
        """The sum of the rows' gaps."""
        return float(self.per_row.sum())

    @property
    def n_known(self) -> int:
        """Rows whose log likelihood is known."""
        return int((self.how != NOT_KNOWN).sum())

    @property
    def advice(self) -> str:
        """What to do about each part that loses more than 0.01 nats a row, the largest first."""
        sizes = {name: float(getattr(self, name).mean()) for name in _ADVICE}
        large = sorted((n for n in _ADVICE if sizes[n] >= _SMALL), key=lambda n: -sizes[n])
        said = [f"the {_ADVICE[name]} ({sizes[name]:.2g} nats a row)." for name in large]
        lead = ["Most is lost to", *["Then to"] * len(said)]
        said = [f"{a} {b}" for a, b in zip(lead, said, strict=False)]
        if not said:
            said = ["No part loses more than 0.01 nats a row."]
        if self.generalization is not None:
            more = float(self.generalization.amortization.mean()) - sizes["amortization"]
            if more >= _SMALL:
                said.append(
                    f"On new rows the function loses {more:.2g} nats a row more: fit it to more "
                    "rows, or let refine solve those it serves badly."
                )
        left = len(self.how) - self.n_known
        return " ".join(said) + f" {left} rows are not known (k-hat above 0.7)." * (left > 0)

    def summary(self) -> "DataFrame":
        """Return a pandas frame: each part in nats, in all and a row, on X and on X_test.

        Returns
        -------
        pandas.DataFrame
            A row a part; columns total, "a row", and with X_test "a row, test".
        """
        return require("pandas", "pandas").DataFrame(self._rows(), columns=self._columns())

    def _columns(self):
        return ["part", "total", "a row", *(["a row, test"] if self.generalization else [])]

    def _rows(self):
        rows = []
        for name in ("log_likelihood", *_ADVICE, "elbo"):
            values = getattr(self, name)
            row = [name, float(values.sum()), float(values.mean())]
            if self.generalization is not None:
                row.append(float(getattr(self.generalization, name).mean()))
            rows.append(row)
        return rows

    def _repr_html_(self):
        return html_table("InferenceGap", self._columns(), self._rows(), self.advice)


#: Nats a row that no one would notice.
_SMALL = 0.01
_ADVICE = {
    "family": "family: try family=FullNormal(), or Chain() for a Markov model",
    "amortization": "function: widen it, train it longer, set refine, or fit FactorizedVI",
    "optimisation": "solver: fit with a smaller tol or a larger max_iter",
}
#: The parts of a row's gap, by the names of their attributes.
PARTS = tuple(_ADVICE)


@guarded
def inference_gap(
    estimator: VariationalInference,
    X: TableLike,
    X_test: TableLike | None = None,
    random_state: Seed = None,
) -> InferenceGap:
    r"""Measure how far the ELBO is below the log likelihood, and what each part of q loses.

    Parameters
    ----------
    estimator : FactorizedVI or AmortizedVI
        A fitted estimator of a model with a term for each row.
    X : array-like of shape (n_samples, n_features)
        The rows it was fitted on, with unit weights.
    X_test : array-like of shape (n_test, n_features), default=None
        Rows it was not fitted on, measured beside them.
    random_state : int, RandomState or None, default=None
        Seed or generator.

    Returns
    -------
    InferenceGap

    Raises
    ------
    ImportError
        If arviz-stats is not installed and rows need importance sampling.
    ValueError
        If the model gives one log joint for all rows.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.

    Notes
    -----
    The gap of a row is the average over q(theta) of
    :math:`\mathrm{KL}(q(z_n) \,\|\, p(z_n \mid x_n, \theta))`, so that no part is negative beyond
    its standard error. Likelihoods are as in `reweighted`. Where latents are in a chain, or shared
    by rows, a row of the results is a whole series, or a group: its rows are not independent given
    theta. Source: Cremer, Li & Duvenaud (2018), "Inference suboptimality
    in variational autoencoders"; Zhang et al. (2022), "Generalization gap in amortized inference".

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.diagnostics import inference_gap
    >>> from skavi.models import LinearModel
    >>> X = [[0.0], [1.0], [5.0]]
    >>> gap = inference_gap(FactorizedVI(LinearModel()).fit(X), X, random_state=0)
    >>> gap.family.round(3), round(gap.globals, 2)  # latents move with theta, their factors do not
    (array([0.031, 0.031, 0.031]), 0.01)
    """
    state = private_state(random_state)
    check_is_fitted(estimator)
    model = estimator.model_
    model.coupling.require_row_terms("inference_gap", type(model).__name__, "run MCMC")
    found = _of_rows(estimator, X, state)
    if X_test is not None:
        found = replace(found, generalization=_of_rows(estimator, X_test, state))
    return replace(found, **_of_globals(estimator, X, found, state))


def _of_globals(estimator, X, found, state):
    size = estimator.global_posterior_.size
    if not size:
        return {"globals": 0.0}
    if size > _MOST_GLOBALS or not estimator.global_family_.random:
        reason = f"theta has {size} numbers, more than {_MOST_GLOBALS}, or is a point"
        return {"globals_reason": reason}
    weighted = weigh(estimator, X, _WEIGHED, drawn_seed(state))
    if not weighted.khat <= weighted.threshold:
        return {"globals_reason": weighted.advice}
    return {"globals": weighted.log_evidence - float(estimator.elbo_) - found.total}


def _of_rows(estimator, X, state):
    here = function_on(estimator, X)
    solved, _ = solve_rows(here.problem, here.raw_globals, _TOL, start=here.raw)
    u, weights, n_sets = _globals(here, state)
    with torch.no_grad(), defaults_of(here.raw):
        integral = here.objective.integral(here.rows.X, here.factors(), u[:_RULE_DRAWS])
        evidence = integral.at(u)
        own = evidence - integral.by_unit(_bounds(here, here.raw, u))
        best = evidence - integral.by_unit(_bounds(here, solved, u))
        elbo = integral.by_unit(here.terms())
        khat = row_khat(integral.log_weights(here.objective.global_factor(here.raw_globals).mean))
    sets = [(part * w[:, None]).sum(0) / w.sum() for part, w in _split(own, weights, n_sets)]
    spread = torch.stack(sets).std(0) / n_sets**0.5 if n_sets > 1 else torch.zeros_like(elbo)
    own, best = weights @ own, weights @ best
    how = np.where((integral.how == SAMPLING) & ~(khat <= _KNOWN), NOT_KNOWN, integral.how)
    left, none = (own - best).cpu().numpy(), np.zeros(len(elbo))
    amortized = isinstance(estimator, AmortizedVI)
    return InferenceGap(
        log_likelihood=(elbo + own).cpu().numpy(),
        elbo=elbo.cpu().numpy(),
        family=best.cpu().numpy(),
        amortization=left if amortized else none,
        optimisation=none if amortized else left,
        standard_error=spread.cpu().numpy(),
        khat=np.where(integral.how == SAMPLING, khat, np.nan),
        how=how,
    )


def _split(values, weights, n_sets):
    return zip(values.chunk(n_sets), weights.chunk(n_sets), strict=True)


def _globals(here, state):
    """Return draws or nodes of q(theta), their weights, and how many sets of draws they are."""
    factor, size = here.objective.global_factor(here.raw_globals), here.objective.space.size
    if not here.objective.global_family.random:
        return factor.mean[None], factor.mean.new_ones(1), 1
    if size <= _FEW_GLOBALS:
        nodes, weights = (aligned(each).to(here.raw) for each in product_rule((_NODES,) * size))
        return factor.draw(nodes), weights, 1
    sets = [sobol_normal(_N_DRAWS, size, drawn_seed(state)) for _ in range(_N_SETS)]
    u = factor.draw(aligned(np.concatenate(sets)).to(here.raw))
    return u, u.new_full((len(u),), 1 / len(u)), _N_SETS


def _bounds(here, raw, u):
    """Return E_q log p(x_n, z_n | theta) + entropy of the rows' factors at each u, (S, n)."""
    objective = replace(here.objective, global_family=Point(), known_term=None)
    noise = evaluation_noise(objective, len(raw))
    problem = replace(here.problem, objective=objective, noise=noise, nodes=None)
    return torch.stack([problem.row_terms(raw, each) for each in u])
