"""Streaming variational Bayes: a fit continues with new rows, without the earlier ones.

Maximised over the rows' own factors, the ELBO of earlier rows is a function of q(theta) alone. Near
its maximum, at mean m and covariance V of the unconstrained globals, it is

    constant - 1/2 (mean - m)' S (mean - m) - 1/2 trace(V^-1 covariance) + entropy

and this replaces the prior for later rows. Broderick et al. (2013) take V^-1 for S: q itself
becomes the prior. But mean-field's V is that of theta *given* the latents, so it is too small, and
early rows would count for more than later ones. S, the curvature after the rows' factors are
maximised out (a Schur complement, as in `skavi._fit.linear_response`), weighs all rows
equally.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from skavi._curvature import NonnegativeBlocks, arrow_derivatives, eliminate
from skavi._data.rows import Rows
from skavi._fit.defaults import default_solver
from skavi._fit.fitted_model import FittedModel
from skavi._fit.iterates import Solution
from skavi._fit.local_problems import solve_rows
from skavi._fit.problem import Problem, inputs_of
from skavi._numerics.aligned import aligned
from skavi.families import LOG_2PI, Family, NormalFactors
from skavi.models._global_space import GlobalSpace
from skavi.objective import Objective
from skavi.solvers import LBFGS, Solver

#: Parameters of q(theta) up to which its curvature is computed: a matrix of 8 MB, one backward
#: pass for each of its rows.
_MOST_UNKNOWNS = 1000


class Remembered(GlobalSpace):
    """The globals, with the information from earlier rows in place of their prior.

    Parameters
    ----------
    space : GlobalSpace
    before : NormalFactors
        q of the unconstrained globals after the earlier rows.
    stiffness : Tensor of shape (size, size), or None
        Curvature S of the earlier ELBO in the mean; None: the inverse covariance of `before`.
    """

    def __init__(self, space: GlobalSpace, before: NormalFactors, stiffness: Tensor | None):
        super().__init__(space.prior)
        self.before, self.stiffness = before, stiffness

    def expected_log_prior(self, factor):
        before = self.before
        factor = type(before)(factor.mean.to(before.mean), factor.scale.to(before.mean))
        departure = factor.mean - before.mean
        spread = before.log_det_scale + 0.5 * (self.size * LOG_2PI + before.relative_spread(factor))
        if self.stiffness is None:
            return -spread - 0.5 * before.whitened(departure).square().sum()
        return -spread - 0.5 * departure @ self.stiffness @ departure


def check_streamed(model, family: Family | None, solver: Solver | None) -> None:
    """Raise a ValueError, before any work, if a fit cannot continue without its earlier rows."""
    name = type(model).__name__
    what = "partial_fit needs rows that are"
    model.coupling.require_independent(what, name, "fit all rows at once")
    family = model.global_family(family)
    if not family.random:
        raise ValueError(
            f"partial_fit needs a q(theta) with a spread, which says how much earlier rows told, "
            f"but that of {name} is {family}: use DiagonalNormal() or FullNormal(), or fit with "
            "Adam(batch_size=...)."
        )
    if solver is not None and solver.uses_model_updates:
        raise ValueError(
            f"solver={solver} knows the model's own prior only, but in partial_fit "
            "earlier rows take its place: leave solver at None, or use LBFGS()."
        )


def go_on(
    fit: FittedModel,
    rows: Rows,
    stiffness: np.ndarray | None,
    solver: Solver | None,
    generator,
    max_iter: int,
    single: bool,
) -> Solution:
    """Continue a fit with new rows; `single`: they are in single precision."""
    problem, state = _problem(fit, rows, stiffness, generator)
    problem = replace(problem, single=single)
    if solver is None:
        solver = default_streaming_solver(problem, state)
    solver.check_setting(problem.setting)
    outcome = solver.solve(problem, state, fit.tol, max_iter)
    if outcome.broken is not None or not math.isfinite(outcome.curve[-1]):
        raise FloatingPointError(
            f"{type(solver).__name__} met numbers that are not finite in partial_fit, at iteration "
            f"{len(outcome.curve) + 1}; the estimator is as it was before. Check the scale of X."
        )
    return Solution(problem, solver, outcome, tol=fit.tol)


def _problem(fit, rows, stiffness, generator):
    """Bind the new rows to the components of the fit, and to its information on earlier rows."""
    state, objective = fit.state(rows), fit.objective
    if stiffness is not None:
        stiffness = aligned(stiffness).to(rows.weights)
    before = objective.global_factor(state.raw_globals)
    objective = replace(objective, space=Remembered(objective.space, before, stiffness))
    features = fit.function.features(inputs_of(objective.model, fit.function, rows.X))
    return Problem(objective, fit.function, rows, features, fit.noise, generator), state


def default_streaming_solver(problem, state) -> Solver:
    """Return a solver that uses the problem's prior, not the model's closed-form updates."""
    n_parameters = sum(value.numel() for value in state.shared.values())
    solver = default_solver(replace(problem.setting, n_parameters=n_parameters))
    return LBFGS() if solver.uses_model_updates else solver


def stiffness_after(fit: FittedModel, rows: Rows, objective: Objective) -> np.ndarray | None:
    """Return the curvature of a fitted ELBO in the mean of q(theta), with rows maximised out.

    It is computed from at most 2,000 rows that represent all; None if q(theta) has too many
    parameters.
    """
    size, raw_globals = objective.space.size, fit.raw_globals_like(rows.weights)
    if not 0 < raw_globals.numel() <= _MOST_UNKNOWNS:
        return None
    few = rows[rows.weights > 0].thinned()
    alone = fit.frozen_problem(Rows(few.X, torch.ones_like(few.weights)))
    raw, _ = solve_rows(alone, raw_globals, fit.tol)
    weighted = replace(alone, objective=objective, rows=few, frozen_globals=False)
    schur = _schur(weighted, raw, raw_globals)
    means, others = slice(None, size), slice(size, None)
    # Not lstsq: the pivoting of its default driver depends on uninitialised memory.
    answer = torch.linalg.pinv(schur[others, others], hermitian=True) @ schur[others, means]
    stiffness = schur[means, means] - schur[means, others] @ answer
    values, vectors = torch.linalg.eigh(0.5 * (stiffness + stiffness.mT))
    return ((vectors * values.clamp_min(0)) @ vectors.mT).cpu().numpy()


def _schur(problem, raw, raw_globals):
    """Return minus the Hessian in q(theta)'s parameters, with the rows' maximised out."""
    d = arrow_derivatives(problem, raw, raw_globals)
    schur = eliminate(NonnegativeBlocks(-d.H), d).schur
    return schur / d.steps / d.steps.unsqueeze(-1)
