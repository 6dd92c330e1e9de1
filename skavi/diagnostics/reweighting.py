"""The posterior of theta by importance weights, with every row's latents integrated out."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from skavi._data.rows import first_places
from skavi._estimators.base import VariationalInference
from skavi._estimators.fitted_estimator import position_on
from skavi._platform.array_types import Seed, TableLike
from skavi._platform.forks_and_threads import guarded
from skavi._platform.html import html_table
from skavi._platform.optional_imports import require
from skavi._platform.random_state import private_state
from skavi._platform.user_warnings import warn
from skavi.diagnostics._adaptive_sampling import sample
from skavi.diagnostics.khat import smoothed_weights, threshold_of
from skavi.distributions import defaults_of
from skavi.objective import Objective
from skavi.posterior._arviz import data_tree
from skavi.posterior._draws import check_draws
from skavi.posterior._quantiles import SHOWN_QUANTILES, percent, probabilities, shown

if TYPE_CHECKING:
    from pandas import DataFrame

#: Draws: with 100 the threshold 1 - 1 / log10(draws) of k-hat is 0.5.
_FEWEST_DRAWS = 100
#: Draws of q(theta) at which the rules that integrate the rows' latents are chosen.
_RULE_DRAWS = 8
#: Numbers of the table in a notebook, which a screen shows without scrolling.
_SHOWN_NUMBERS = 10
_COLUMNS = ("name", "index", "mean", "sd", *map(percent, SHOWN_QUANTILES))


class ImportanceWeightsWarning(UserWarning):
    """Importance weights have too heavy a tail: what is weighted by them should not be used.

    `reweighted` warns of it.

    Examples
    --------
    >>> from skavi.diagnostics import ImportanceWeightsWarning
    >>> issubclass(ImportanceWeightsWarning, UserWarning)
    True
    """


@dataclass(frozen=True)
class ReweightedPosterior:
    r"""The posterior of theta as weighted draws, on the model's own scale.

    Attributes
    ----------
    draws : dict of str to ndarray of shape (n_draws, ...)
        Of the globals by name, not yet weighted.
    weights : ndarray of shape (n_draws,)
        Pareto-smoothed; their sum is 1.
    khat : float
        Shape of the weights' tail (Vehtari et al. 2024): beyond `threshold` nothing here should be
        used.
    log_evidence : float
        :math:`\log p(X)`, nats.
    log_evidence_se : float
        Its standard error, as if draws were independent.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.diagnostics import reweighted
    >>> from skavi.models import LinearModel
    >>> X = [[0.0], [1.0], [5.0]]
    >>> exact = reweighted(FactorizedVI(LinearModel()).fit(X), X, random_state=0)
    >>> exact.khat < exact.threshold, exact.mean["theta"].round(1)
    (True, np.float64(2.0))
    """

    draws: dict[str, np.ndarray] = field(repr=False)
    weights: np.ndarray = field(repr=False)
    khat: float
    log_evidence: float
    log_evidence_se: float

    @property
    def threshold(self) -> float:
        """min(1 - 1 / log10(n_draws), 0.7), above which k-hat tells that weights fail."""
        return threshold_of(len(self.weights))

    @property
    def mean(self) -> dict[str, np.ndarray]:
        """Posterior means by name."""
        return {name: self._average(draws) for name, draws in self.draws.items()}

    @property
    def sd(self) -> dict[str, np.ndarray]:
        """Posterior standard deviations by name."""
        return {
            name: np.sqrt(self._average((draws - self._average(draws)) ** 2))
            for name, draws in self.draws.items()
        }

    def _average(self, values):
        return np.tensordot(self.weights, values, 1)

    def quantile(self, q) -> dict[str, np.ndarray]:
        """Return quantiles of each global.

        Parameters
        ----------
        q : float or array-like
            Probabilities in [0, 1].

        Returns
        -------
        dict of str to ndarray
            The shape of `q` comes first.
        """
        q = probabilities(q)
        return {name: self._quantiles(draws, q) for name, draws in self.draws.items()}

    def _quantiles(self, draws, q):
        flat = draws.reshape(len(draws), -1)
        found = np.empty((q.size, flat.shape[1]))
        for i, column in enumerate(flat.T):
            order = np.argsort(column)
            share = np.cumsum(self.weights[order]) - 0.5 * self.weights[order]
            found[:, i] = np.interp(q.ravel(), share, column[order])
        return found.reshape(*q.shape, *draws.shape[1:])

    def sample(self, n_draws, random_state=None) -> dict[str, np.ndarray]:
        """Draw globals: the weighted draws, each as often as its weight says.

        Parameters
        ----------
        n_draws : int
            Number of draws.
        random_state : int, RandomState or None, default=None
            Seed or generator.

        Returns
        -------
        dict of str to ndarray of shape (n_draws, ...)
        """
        index = private_state(random_state).choice(len(self.weights), n_draws, p=self.weights)
        return {name: draws[index] for name, draws in self.draws.items()}

    def summary(self) -> "DataFrame":
        """Return a pandas frame with a row a number: name, index, mean, sd, 5%, 50%, 95%.

        Returns
        -------
        pandas.DataFrame
        """
        pandas = require("pandas", "pandas")
        return pandas.DataFrame(list(self._rows()), columns=list(_COLUMNS))

    def to_arviz(self, n_draws=1000, random_state=None):
        """Return draws of the globals as ArviZ's DataTree.

        Parameters
        ----------
        n_draws : int, default=1000
        random_state : int, RandomState or None, default=None

        Returns
        -------
        xarray.DataTree
            Group "posterior".
        """
        groups = {"posterior": self.sample(n_draws, random_state)}
        attrs = {"inference_library": "skavi", "log_evidence": self.log_evidence}
        return data_tree(groups, {}, {}, {**attrs, "khat": self.khat})

    def _rows(self):
        mean, sd, quantiles = self.mean, self.sd, self.quantile(SHOWN_QUANTILES)
        for name in self.draws:
            columns = np.stack([mean[name], sd[name], *quantiles[name]], -1)
            for index in np.ndindex(mean[name].shape):
                yield name, index, *map(float, columns[index])

    def _repr_html_(self):
        size = sum(draws[0].size for draws in self.draws.values())
        rows = list(self._rows())[:_SHOWN_NUMBERS]
        note = shown(size, _SHOWN_NUMBERS, "numbers") + self.advice
        return html_table("ReweightedPosterior", _COLUMNS, rows, note)

    @property
    def advice(self) -> str:
        """The meaning of k-hat, in a sentence."""
        found = f"k-hat {self.khat:.2f} at {len(self.weights)} draws"
        if self.khat <= self.threshold:
            return f"{found} (usable up to {self.threshold:.2f}): the weights can be trusted."
        return (
            f"{found} is above {self.threshold:.2f}: theta has too many numbers, or q is too far "
            "from the posterior, for weights to mend; take more draws, or corrected_sd."
        )


@guarded
def reweighted(
    estimator: VariationalInference, X: TableLike, n_draws: int = 4000, random_state: Seed = None
) -> ReweightedPosterior:
    r"""Return the posterior of theta, with every row's latents integrated out.

    What mean-field sds should have been: :math:`p(\theta \mid X)` without the assumption that theta
    and the latents are independent, as importance weights on draws of a widened q(theta) that
    adapts.

    Parameters
    ----------
    estimator : FactorizedVI or AmortizedVI
        A fitted estimator.
    X : array-like of shape (n_samples, n_features)
        The rows it was fitted on, with unit weights.
    n_draws : int, default=4000
        Draws of theta, at least 100.
    random_state : int, RandomState or None, default=None
        Seed or generator.

    Returns
    -------
    ReweightedPosterior

    Raises
    ------
    ImportError
        If arviz-stats is not installed: ``pip install "skavi[arviz]"``.
    ValueError
        If n_draws is not an integer >= 100, the model gives one log joint for all rows, theta is a
        point, or there is no theta.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.

    Warns
    -----
    ImportanceWeightsWarning
        If k-hat is above its threshold: theta has too many numbers (a few dozen can be done), or q
        is too far off.

    Notes
    -----
    :math:`\log p(x_n \mid \theta)` is exact where the latents' posterior given theta is normal or
    finite, by adaptive Gauss-Hermite quadrature for up to 4 latents a row, else by importance
    sampling with fixed draws. A series of latents in a chain is integrated as a whole: exactly
    where it is finite or normal given theta (the forward algorithm's and the Kalman filter's
    answers). Source: Vehtari, Simpson, Gelman, Yao & Gabry (2024), "Pareto smoothed importance
    sampling"; Naylor & Smith (1982), adaptive quadrature.

    Examples
    --------
    Eight schools: mean-field gives tau an sd of 2.46, the truth is 3.22.

    >>> from skavi import FactorizedVI
    >>> from skavi.diagnostics import reweighted
    >>> from skavi.models import RandomEffects
    >>> effects = [28, 8, -3, 7, -1, 1, 18, 12]
    >>> errors = [15, 10, 16, 11, 9, 11, 10, 18]
    >>> X = list(zip(effects, errors))
    >>> vi = FactorizedVI(RandomEffects()).fit(X)
    >>> posterior = reweighted(vi, X, random_state=0)
    >>> bool(3.0 < posterior.sd["tau"] < 3.5)
    True
    """
    result = weigh(estimator, X, n_draws, random_state)
    if not result.khat <= result.threshold:
        warn(f"reweighted: {result.advice}", ImportanceWeightsWarning)
    return result


def weigh(estimator, X, n_draws, random_state) -> ReweightedPosterior:
    """Return what `reweighted` does, and leave it to the caller to look at k-hat."""
    require("arviz_stats", "skavi[arviz]")
    check_draws(n_draws, _FEWEST_DRAWS)
    here, state = position_on(estimator, X), private_state(random_state)
    target = Marginal.of(here, state)
    q = estimator.global_posterior_.widest_factor()
    found = sample(target, q.mean, q.covariance(), int(n_draws), state)
    smoothed, khat = smoothed_weights(found.log_weights.numpy())
    result = ReweightedPosterior(
        draws={n: v.numpy() for n, v in target.objective.space.draws(found.draws).items()},
        weights=smoothed,
        khat=khat,
        log_evidence=found.log_mean,
        log_evidence_se=found.log_mean_se,
    )
    return result


@dataclass(frozen=True)
class Marginal:
    """log p(X, u) of unconstrained globals u, with all latents integrated out."""

    objective: Objective
    integral: Any
    counts: torch.Tensor

    @classmethod
    def of(cls, here, state) -> "Marginal":
        """Return the density for the rows of a fit's position."""
        fit, name = here.fit.on_cpu(), type(here.fit.model).__name__
        fit.model.coupling.require_row_terms("reweighted", name, "run MCMC")
        objective, X = fit.objective, here.rows.X.cpu()
        if not objective.space.size:
            raise ValueError(f"{name} has no globals: there is no posterior of theta to weight.")
        if not objective.global_family.random:
            raise ValueError("q(theta) is a point: there is no posterior of theta to weight.")
        kinds, index = fit.model.coupling.distinct(X)
        counts = torch.bincount(index, minlength=len(kinds)).to(here.rows.weights.cpu())
        raw = here.raw.cpu()[first_places(index, len(kinds))]
        noise = torch.as_tensor(state.standard_normal((_RULE_DRAWS, objective.space.size)))
        u = objective.global_factor(here.raw_globals.cpu()).draw(noise)
        with torch.no_grad(), defaults_of(u):
            integral = objective.integral(kinds, objective.local_factors(raw), u)
        n_rows = integral.by_unit(torch.ones_like(counts))
        return cls(objective, integral, integral.by_unit(counts) / n_rows)

    def __call__(self, u):
        with torch.no_grad(), defaults_of(u):
            priors = torch.func.vmap(self.objective.space.log_prior)(u)
            rows = self.integral.at(u) @ self.counts
        total = priors + rows
        return torch.where(total.isnan(), -math.inf, total)
