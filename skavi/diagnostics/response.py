"""Posterior covariances by linear response: how mean-field's optimum moves under a perturbation.

If t times a latent is added to the log posterior, mean-field's means move. The derivative of that
latent's mean at t = 0 is its variance, that of another latent's mean is their covariance. With H
the Hessian of the ELBO in all variational parameters at its maximum, and e the parameters that are
means,

    Cov = [(-H)^-1]_ee.

For independent rows H is an arrow matrix, and a Schur complement gives every block in time linear
in the number of rows. For coupled rows H is dense.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from skavi._curvature import Blocks, arrow_derivatives, dense_derivatives, eliminate
from skavi._data import coupling
from skavi._estimators.fitted_estimator import fitted_model, validated_rows
from skavi._platform.html import html_table
from skavi._platform.optional_imports import require
from skavi._platform.user_warnings import warn
from skavi.diagnostics.gap import factorized_like

#: Parameters in one dense matrix: 128 MB, and 2e10 operations to solve.
_MOST_UNKNOWNS = 4000
#: Nats below the optimum, above which sds may be off: linear response holds at the optimum
#: only. Not measured: order of magnitude.
_FAR = 1e-2
#: Rows of the table in a notebook, which a screen shows without scrolling.
_SHOWN = 10


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

    def summary(self):
        """Return a pandas frame of the globals: name, index, mean-field sd, sd and their ratio.

        Returns
        -------
        pandas.DataFrame
        """
        pandas = require("pandas", "pandas")
        columns = ["name", "index", "mean-field sd", "sd", "ratio"]
        return pandas.DataFrame(list(self._rows()), columns=columns)

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
        header = ("name", "index", "mean-field sd", "sd", "ratio")
        return html_table("LinearResponse", header, list(self._rows())[:_SHOWN], note)


def linear_response(estimator, X, sample_weight=None) -> LinearResponse:
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
    respond = _BY_COUPLING[type(fit.model.coupling)]
    _check(fit.objective, rows, respond)
    here = fit.at(rows)
    problem = replace(here.problem, frozen_globals=False)
    blocks, inverse, suboptimality = respond(problem, here.raw, here.raw_globals)
    if suboptimality > _FAR:
        warn(
            f"The ELBO is about {suboptimality:.1e} nats below its maximum, where linear response "
            "holds: fit with a smaller tol or a larger max_iter.",
            ConvergenceWarning,
        )
    return _result(here, blocks, inverse, suboptimality)


def _check(objective, rows, respond):
    name, weights = type(objective.model).__name__, rows.weights
    if not bool((weights > 0).all()):
        raise ValueError("sample_weight must be positive: leave rows of weight 0 out of X.")
    unknowns = objective.global_family.n_parameters(objective.space.size)
    if respond is _covariances_of_coupled:
        unknowns += len(weights) * objective.family.n_parameters(objective.n_latents)
        if not bool((weights == 1).all()):
            raise ValueError(f"{name} couples its rows: sample_weight must be one.")
    if unknowns > _MOST_UNKNOWNS:
        raise ValueError(
            f"{name} has {unknowns} variational parameters that meet in one matrix, but "
            f"linear_response takes up to {_MOST_UNKNOWNS}."
        )


def _covariances_of_rows(problem, raw, raw_globals):
    """Return covariances of every row's parameters, and of the globals', from the arrow matrix.

    A weight of w means w equal rows with the same factor: all of them count in the globals' part,
    but the row's own block is that of one of them.
    """
    d, weights = arrow_derivatives(problem, raw, raw_globals), problem.rows.weights
    with _at_a_maximum():
        rows = Blocks(-0.5 * (d.H + d.H.mT))
        left = eliminate(rows, d)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(0.5 * (left.schur + left.schur.mT)))
    own = rows.inverse_blocks() * weights[:, None, None]
    blocks = own + left.response @ inverse @ left.response.mT
    decrement = 0.5 * float((d.g * left.free).sum() + left.right @ inverse @ left.right)
    blocks = blocks * d.row_steps.unsqueeze(-1) * d.row_steps.unsqueeze(-2)
    return blocks, inverse * d.steps.unsqueeze(-1) * d.steps, decrement


def _covariances_of_coupled(problem, raw, raw_globals):
    """Return the covariances of `_covariances_of_rows` from one dense Hessian."""
    gradient, hessian, row_steps, steps = dense_derivatives(problem, raw, raw_globals)
    with _at_a_maximum():
        factor = torch.linalg.cholesky(-0.5 * (hessian + hessian.mT))
    inverse = torch.cholesky_inverse(factor)
    decrement = 0.5 * float(gradient @ inverse @ gradient)
    lengths = torch.cat([row_steps.reshape(-1), steps])
    inverse = inverse * lengths.unsqueeze(-1) * lengths
    n, p = raw.shape
    among = inverse[: n * p, : n * p].reshape(n, p, n, p)
    blocks = among[torch.arange(n), :, torch.arange(n)]
    return blocks, inverse[n * p :, n * p :], decrement


_BY_COUPLING = {
    coupling.Independent: _covariances_of_rows,
    coupling.Series: _covariances_of_rows,
    coupling.Chain: _covariances_of_coupled,
    coupling.Joint: _covariances_of_coupled,
}


@contextmanager
def _at_a_maximum():
    try:
        yield
    except torch.linalg.LinAlgError:
        raise ValueError(
            "The ELBO is not at a maximum in all its parameters: linear response is not defined "
            "here. Fit to convergence (converged_), or choose another start."
        ) from None


def _result(here, blocks, inverse, suboptimality):
    objective = here.objective
    k, size = objective.n_latents, objective.space.size
    covariance = blocks[:, :k, :k]
    sd, mean_field = {}, {}
    for name in objective.space.slices:
        at = here.raw_globals.detach().clone().requires_grad_(True)
        mean, before = objective.space.moments(name, objective.global_factor(at))
        slopes = [
            torch.autograd.grad(number, at, retain_graph=True)[0] for number in mean.reshape(-1)
        ]
        J = torch.stack(slopes) if slopes else inverse.new_zeros(0, len(inverse))
        sd[name] = _array(((J @ inverse) * J).sum(1).sqrt().reshape(mean.shape))
        mean_field[name] = _array(before.detach())
    return LinearResponse(
        covariance=_array(covariance),
        sd=_array(covariance.diagonal(dim1=-2, dim2=-1).sqrt()),
        global_sd=sd,
        unconstrained_global_covariance=_array(inverse[:size, :size]),
        mean_field_sd=_array(objective.local_factors(here.raw).sd),
        mean_field_global_sd=mean_field,
        suboptimality=suboptimality,
    )


def _array(tensor):
    return tensor.detach().cpu().numpy().copy()
