"""Linear response of a fit: corrected covariances of rows' latents and of globals.

What it is: `skavi._fit.linear_response`.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning

from skavi._estimators.base import VariationalInference
from skavi._estimators.fitted_estimator import fitted_model, validated_rows
from skavi._fit.linear_response import FAR, require_feasible, respond
from skavi._fit.suboptimality import nats_below
from skavi._platform.array_types import TableLike
from skavi._platform.forks_and_threads import guarded
from skavi._platform.html import html_table
from skavi._platform.optional_imports import require
from skavi._platform.user_warnings import warn
from skavi.diagnostics.gap import factorized_like
from skavi.posterior import GlobalPosterior
from skavi.posterior._correction import Correction

if TYPE_CHECKING:
    from pandas import DataFrame

#: Rows of the table in a notebook, which a screen shows without scrolling.
_SHOWN = 10
_COLUMNS = ("name", "index", "sd", "corrected_sd", "ratio")


@dataclass(frozen=True)
class LinearResponse:
    """Corrected posterior covariances, and the standard deviations of q for comparison.

    Attributes
    ----------
    covariance : ndarray of shape (n_rows, n_latents, n_latents)
        Of each row's latents.
    sd : ndarray of shape (n_rows, n_latents)
        Roots of its diagonal.
    global_sd : dict of str to ndarray
        Of the globals, on the model's own scale.
    unconstrained_global_covariance : ndarray of shape (n_globals, n_globals)
        Of all globals on the real line where q is normal, in the order of ``global_prior``.
    mean_field_sd : ndarray of shape (n_rows, n_latents)
    mean_field_global_sd : dict of str to ndarray
        Standard deviations of q.
    suboptimality : float
        Distance of the ELBO from its maximum, in nats, where it was differentiated: should be tiny.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.diagnostics import linear_response
    >>> from skavi.models import LinearModel
    >>> X = [[0.0], [1.0], [5.0]]
    >>> response = linear_response(FactorizedVI(LinearModel()).fit(X), X)
    >>> bool((response.sd > response.mean_field_sd).all())
    True
    >>> list(response.summary()["name"])
    ['theta']
    """

    covariance: np.ndarray = field(repr=False)
    sd: np.ndarray = field(repr=False)
    global_sd: dict[str, np.ndarray]
    unconstrained_global_covariance: np.ndarray = field(repr=False)
    mean_field_sd: np.ndarray = field(repr=False)
    mean_field_global_sd: dict[str, np.ndarray]
    suboptimality: float

    def summary(self) -> "DataFrame":
        """Return a pandas frame of the globals: name, index, q's sd, corrected_sd, and their ratio.

        Returns
        -------
        pandas.DataFrame
        """
        pandas = require("pandas", "pandas")
        return pandas.DataFrame(list(self._rows()), columns=list(_COLUMNS))

    def _rows(self):
        for name, sd in self.global_sd.items():
            for index in np.ndindex(sd.shape):
                before, after = float(self.mean_field_global_sd[name][index]), float(sd[index])
                yield name, index, before, after, after / before if before else np.inf

    def _repr_html_(self):
        ratio = self.sd / self.mean_field_sd
        note = (
            f"Latents of {len(self.sd)} rows: sds are {np.median(ratio):.3g} times mean-field's in "
            f"the median, {ratio.max():.3g} times at most."
        )
        return html_table("LinearResponse", _COLUMNS, list(self._rows())[:_SHOWN], note)


@guarded
def linear_response(
    estimator: VariationalInference, X: TableLike, sample_weight: ArrayLike | None = None
) -> LinearResponse:
    """Correct the posterior covariances of a fit: mean-field's standard deviations are too small.

    Parameters
    ----------
    estimator : FactorizedVI or AmortizedVI
        A fitted, converged estimator. For `AmortizedVI` a factorized fit is made from it first,
        since the response is that of free factors.
    X : array-like of shape (n_samples, n_features)
        The rows it was fitted on.
    sample_weight : array-like of shape (n_samples,), default=None
        The weights it was fitted with, all positive.

    Returns
    -------
    LinearResponse

    Raises
    ------
    ValueError
        If the ELBO is not at a maximum in all parameters, weights are not positive (or not one,
        where rows are coupled), or there are too many globals or coupled unknowns (4,000).

    Warns
    -----
    ConvergenceWarning
        If the ELBO is more than 0.01 nats below its maximum.

    Notes
    -----
    It gives the variances and covariances that mean-field's *means* imply, which are exact for a
    normal posterior with any correlations. It is a linearisation at one mode: it ignores other
    modes and most of heavy tails, never makes an sd smaller than mean-field's, and does not correct
    the means. On the model's own scale sds are first order in the global's mean. Source: Giordano,
    Broderick & Jordan (2018), "Covariances, robustness, and variational Bayes", equation 14.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.diagnostics import linear_response
    >>> from skavi.models import LinearModel
    >>> X = [[0.0], [1.0], [5.0]]
    >>> vi = FactorizedVI(LinearModel(tau=1.0, sigma=1.0)).fit(X)
    >>> float(vi.global_posterior_.sd["theta"].round(4))  # 1 / sqrt(3)
    0.5774
    >>> float(linear_response(vi, X).global_sd["theta"].round(4))  # sqrt((1 + 1) / 3)
    0.8165
    """
    fit, rows = fitted_model(estimator), validated_rows(estimator, X, sample_weight)
    if fit.parameters:
        factorized = factorized_like(estimator, estimator).fit(X, sample_weight=sample_weight)
        fit = fitted_model(factorized)
    if not bool((rows.weights > 0).all()):
        raise ValueError("sample_weight must be positive: leave rows of weight 0 out of X.")
    require_feasible(fit.objective, rows.weights)
    here = fit.at(rows)
    response = respond(here.problem, here.raw, here.raw_globals)
    if response.suboptimality > FAR:
        warn(
            f"The ELBO is about {nats_below(response.suboptimality)} its maximum, where linear "
            "response holds: fit with a smaller tol or a larger max_iter.",
            ConvergenceWarning,
        )
    return _result(here, response)


def _result(here, response):
    objective = here.objective
    k, size = objective.n_latents, objective.space.size
    covariance = response.of_rows()[:, :k, :k]
    raw_globals, of_globals = _array(here.raw_globals), _array(response.of_globals)
    q_theta = GlobalPosterior(
        objective.model,
        objective.global_family,
        raw_globals,
        here.fit.n_features,
        Correction(of_globals),
    )
    return LinearResponse(
        covariance=_array(covariance),
        sd=_array(covariance.diagonal(dim1=-2, dim2=-1).sqrt()),
        global_sd=q_theta.corrected_sd or {},
        unconstrained_global_covariance=of_globals[:size, :size],
        mean_field_sd=_array(objective.local_factors(here.raw).sd),
        mean_field_global_sd=q_theta.sd,
        suboptimality=response.suboptimality,
    )


def _array(tensor):
    return tensor.detach().cpu().numpy().copy()
