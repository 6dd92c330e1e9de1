"""Posterior covariances by linear response: how mean-field's optimum moves under a perturbation.

If t times a latent is added to the log posterior, mean-field's means move. The derivative of that
latent's mean at t = 0 is its variance, that of another latent's mean is their covariance. With H
the Hessian of the ELBO in all variational parameters at its maximum, and e the parameters that are
means,

    Cov = [(-H)^-1]_ee.

For rows that are independent given theta H is an arrow matrix, for a chain it is a band with a
border, and the Schur complement in theta gives every block in time linear in the number of rows.
Else H is dense. Source: Giordano, Broderick & Jordan (2018), "Covariances, robustness, and
variational Bayes", equation 14.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from skavi._curvature import (
    Band,
    Blocks,
    Derivatives,
    arrow_derivatives,
    band_derivatives,
    dense_derivatives,
    eliminate,
)
from skavi._data import coupling
from skavi._data.rows import cells_a_row
from skavi._fit.iterates import Solution
from skavi._fit.suboptimality import nats_below
from skavi.inference_functions import Table
from skavi.objective import Objective
from skavi.posterior._correction import Correction
from skavi.solvers import CoordinateAscent, State

#: Parameters in one dense matrix: 128 MB, and 2e10 operations to solve.
_MOST_UNKNOWNS = 4000
#: Globals of a fit that keeps its correction, and their parameters: 8 MB a matrix.
MOST_GLOBALS = 500
_MOST_PARAMETERS = 2 * MOST_GLOBALS
#: Numbers (rows x (columns + latents x nodes) x backward passes) of a fit that keeps its
#: correction where no Newton step had taken as many: 6 s for `FactorAnalysis` with missing cells.
_MOST_NUMBERS = 50_000_000
#: Nats below the optimum, above which sds may be off: linear response holds at the optimum
#: only. Not measured: order of magnitude.
FAR = 1e-2
#: The same for the rows' part with theta given, in nats a row: curvatures are then off by a few per
#: cent, to either side.
_FAR_A_ROW = 1e-3


#: Times q's sd: a global is then not determined. Loadings that could rotate freely had 480 times
#: with 60 rows, 2,000 with 200 and 330,000 with 5,000; an intercept 100 sds away from its data 140.
FLAT = 1000.0


class NoResponseError(ValueError):
    """Linear response is not defined for a fit, or too large; the message says why."""


@dataclass(frozen=True)
class Response:
    """Covariances of variational parameters, in plain units.

    Attributes
    ----------
    of_globals : Tensor of shape (Q, Q)
        Of the parameters of q(theta).
    of_rows : callable
        Return those of every row's parameters, shape (n_rows, P, P).
    left_in_rows, left_in_globals : float
        Estimated distance of the ELBO from its maximum, in nats: that of the rows' factors with
        q(theta) given, and the rest.
    """

    of_globals: Tensor
    of_rows: Callable[[], Tensor]
    left_in_rows: float
    left_in_globals: float

    @property
    def suboptimality(self) -> float:
        """Distance of the ELBO from its maximum, in nats."""
        return self.left_in_rows + self.left_in_globals


def respond(problem, raw: Tensor, raw_globals: Tensor) -> Response:
    """Return the response of the factorized optimum at rows' factors and q(theta).

    Raises
    ------
    NoResponseError
        If the ELBO is not at a maximum in all parameters.
    """
    problem = replace(problem, frozen_globals=False)
    how = coupling.of_kind(_BY_COUPLING, _coupling(problem.objective))
    return how(problem, raw, raw_globals)


def _coupling(objective):
    """Return how rows meet in factorized VI, of which this is the response."""
    return objective.coupling_under(Table())


def require_feasible(objective, weights: Tensor) -> None:
    """Raise a NoResponseError if coupled rows have weights, or unknowns are too many."""
    name, how = type(objective.model).__name__, _coupling(objective)
    if not how.separable and not bool((weights == 1).all()):
        raise NoResponseError(f"{name} couples its rows: sample_weight must be one.")
    unknowns = objective.global_family.n_parameters(objective.space.size)
    if coupling.of_kind(_BY_COUPLING, how) is _from_dense:
        unknowns += len(weights) * objective.n_outputs
    if unknowns > _MOST_UNKNOWNS:
        raise NoResponseError(
            f"{name} has {unknowns} variational parameters that meet in one matrix, but linear "
            f"response takes up to {_MOST_UNKNOWNS}."
        )


# --- systems ------------------------------------------------------------------------------------


def _from_arrow(problem, raw, raw_globals):
    return _from_derivatives(arrow_derivatives(problem, raw, raw_globals), problem.rows.weights)


def _from_derivatives(d: Derivatives, weights: Tensor) -> Response:
    A = -0.5 * (d.H + d.H.mT)
    # The block and the border of a row of weight 0 are 0: any block leaves it out.
    A = torch.where((weights > 0)[:, None, None], A, torch.eye(A.shape[-1]).to(A))
    with _at_a_maximum():
        return _from_border(Blocks(A), d, weights)


def _from_band(problem, raw, raw_globals):
    d = band_derivatives(problem, raw, raw_globals)
    with _at_a_maximum():
        rows = Band(-d.H)
        if rows.lift:
            raise torch.linalg.LinAlgError("The band is not positive definite.")
        return _from_border(rows, d, problem.rows.weights)


def _from_border(rows, d: Derivatives, weights) -> Response:
    """Return the response of rows whose part of the Hessian is inverted at once.

    A weight of w means w equal rows with the same factor: all of them count in the globals' part,
    but the row's own block is that of one of them.
    """
    left = eliminate(rows, d)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(0.5 * (left.schur + left.schur.mT)))
    n, n_row = d.row_steps.shape

    def of_rows():
        response = left.response.reshape(n, n_row, left.response.shape[-1])
        own = rows.inverse_blocks(n_row) * weights[:, None, None]
        blocks = own + response @ inverse @ response.mT
        return blocks * d.row_steps.unsqueeze(-1) * d.row_steps.unsqueeze(-2)

    in_rows, in_globals = (d.g * left.free).sum(), left.right @ inverse @ left.right
    of_globals = inverse * d.steps.unsqueeze(-1) * d.steps
    return Response(of_globals, of_rows, 0.5 * float(in_rows), 0.5 * float(in_globals))


def _from_dense(problem, raw, raw_globals):
    gradient, hessian, row_steps, steps = dense_derivatives(problem, raw, raw_globals)
    with _at_a_maximum():
        factor = torch.linalg.cholesky(-0.5 * (hessian + hessian.mT))
    inverse = torch.cholesky_inverse(factor)
    decrement = 0.5 * float(gradient @ inverse @ gradient)
    lengths = torch.cat([row_steps.reshape(-1), steps])
    inverse = inverse * lengths.unsqueeze(-1) * lengths
    n, p = raw.shape

    def of_rows():
        return inverse[: n * p, : n * p].reshape(n, p, n, p)[torch.arange(n), :, torch.arange(n)]

    return Response(inverse[n * p :, n * p :], of_rows, 0.0, decrement)


_BY_COUPLING = {
    coupling.Independent: _from_arrow,
    coupling.Series: _from_arrow,
    coupling.Chain: _from_band,
    coupling.Joint: _from_dense,
}


@contextmanager
def _at_a_maximum():
    try:
        yield
    except (torch.linalg.LinAlgError, FloatingPointError, ValueError):
        raise NoResponseError(
            "The ELBO is not at a maximum in all its parameters: linear response is not defined "
            "here. Fit to convergence (converged_), or choose another start."
        ) from None


# --- at the end of a fit ------------------------------------------------------------------------


def correction_of(fitted: Solution) -> Correction:
    """Return the covariance of q(theta)'s parameters at the end of a fit, or why there is none.

    It costs about one iteration of Newton's method. The rule counts sizes, never seconds, so that
    equal fits keep equal results.
    """
    problem, state = fitted.problem, fitted.outcome.state
    objective = problem.objective
    if not objective.space.size:
        return Correction(np.zeros((0, 0)))
    reason = _refusal(fitted)
    if reason is not None:
        return Correction.without(reason)
    try:
        response = _at_end(fitted)
        _require_optimum(problem, response)
        _require_determined(objective, response, state.raw_globals.detach())
    except NoResponseError as error:
        return Correction.without(str(error))
    except RuntimeError as error:
        return Correction.without(f"The model's second derivatives cannot be taken: {error}")
    return Correction(response.of_globals.cpu().numpy().copy())


def _at_end(fitted: Solution) -> Response:
    """Return the response of a fit, by the second derivatives that judged its end if it has them.

    Raises
    ------
    NoResponseError
    """
    problem, state = fitted.problem, fitted.outcome.state
    objective, raw_globals = problem.objective, state.raw_globals.detach()
    if fitted.curvature is not None:
        require_feasible(objective, problem.rows.weights)
        return _from_derivatives(fitted.curvature, problem.rows.weights)
    raw = objective.free(problem.raw(state)).detach()
    if objective.has_coordinate_updates:  # a model may know fewer rows that are equivalent
        problem, table = CoordinateAscent().prepare(problem, State(raw, {}, raw_globals))
        raw = table.raw_locals
    require_feasible(objective, problem.rows.weights)
    return respond(problem, raw, raw_globals)


def _refusal(fitted):
    """Return why a fit keeps no linear response, or None."""
    problem = fitted.problem
    if fitted.failure or not fitted.outcome.converged:
        return "The fit did not converge, and linear response holds at the optimum only."
    if not problem.noise.deterministic:
        return (
            f"{problem.noise} draws afresh at each evaluation, so that the ELBO has no second "
            "derivatives to invert: fit with a deterministic noise rule."
        )
    if problem.rows.ranks.size > 1:
        return "The rows are spread over processes: call linear_response on all of them."
    return _refusal_of_size(problem, fitted.solver)


def _refusal_of_size(problem, solver):
    objective, rows = problem.objective, problem.rows
    size, k = objective.space.size, objective.n_latents
    n_global = objective.global_family.n_parameters(size)
    if size > MOST_GLOBALS or n_global > _MOST_PARAMETERS:
        return (
            f"{size} globals with {n_global} parameters of q: a fit keeps linear response for up "
            f"to {MOST_GLOBALS} with {_MOST_PARAMETERS}. Call linear_response(estimator, X)."
        )
    n_nodes = 1 if problem.nodes is None else len(problem.nodes.weights)
    passes = objective.n_colours(len(rows)) * objective.n_outputs + n_global
    cells = cells_a_row(rows.X) * objective.model.passes_a_cell
    numbers = len(rows) * (cells + k * n_nodes) * passes
    if numbers > _MOST_NUMBERS and not solver.second_order:
        return (
            f"{len(rows)} rows, {n_nodes} nodes and {size} globals take {numbers:.1e} derivatives, "
            f"but a fit keeps linear response for up to {_MOST_NUMBERS:.0e}. Call "
            "linear_response(estimator, X)."
        )
    return None


def _require_optimum(problem, response):
    """Raise a NoResponseError far from factorized VI's optimum, as where a function has a gap."""
    far = response.left_in_globals > FAR
    if far or response.left_in_rows > _FAR_A_ROW * problem.total_weight:
        raise NoResponseError(
            f"The fit is about {nats_below(response.suboptimality)} the optimum of factorized "
            "VI, where linear response holds: linear_response(estimator, X) goes there first."
        )


def _require_determined(objective, response, raw_globals):
    """Raise a NoResponseError if the posterior is flat in some direction."""
    ratio = float(sd_ratios(objective, response.of_globals, raw_globals).max())
    if not ratio <= FLAT:
        raise NoResponseError(
            f"The ELBO is flat in some direction of the globals (an sd of {ratio:.1e} times q's), "
            "as where latents and loadings can rotate together: linear response is not defined."
        )


def sd_ratios(objective: Objective, covariance: Tensor, raw_globals: Tensor) -> Tensor:
    """Return the sds of a covariance of q(theta)'s parameters, in their natural steps, (Q,)."""
    steps = objective.global_family.steps(objective.global_factor(raw_globals))
    return covariance.diagonal().sqrt() / steps
