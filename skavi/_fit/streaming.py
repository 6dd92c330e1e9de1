"""Going on from a fit with new rows, when the earlier rows are gone: streaming variational Bayes.

Maximised over the rows' own factors, the ELBO of earlier rows is a function of q(theta) alone. Near
its maximum, at mean m and covariance V of the unconstrained globals, it is

    constant - 1/2 (mean - m)' S (mean - m) - 1/2 trace(V^-1 covariance) + entropy

and that takes the place of the prior for the rows to come. Broderick et al. (2013) put V^-1 for S:
q itself becomes the prior. But mean-field's V is that of theta *given* the latents, and its
overconfidence would have early rows outvote later ones; S, the curvature once rows have answered
(a Schur complement, as in `skavi.diagnostics.linear_response`), weighs all rows alike.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor

from skavi._data.ranks import shared_by_ranks
from skavi._data.rows import Rows
from skavi._fit.defaults import default_solver
from skavi._fit.inputs import inputs_of
from skavi._fit.local_problems import solve_rows
from skavi._fit.problem import Problem
from skavi._fit.stages import Fitted
from skavi._numerics.aligned import aligned
from skavi.families import LOG_2PI, NormalFactors
from skavi.models import FactorAnalysis
from skavi.models._global_space import GlobalSpace
from skavi.objective import Objective
from skavi.solvers import LBFGS, CoordinateAscent, State
from skavi.solvers._newton_arrow import Arrow

_MOST_UNKNOWNS = 1000  # of q(theta), for its curvature to be taken


class Remembered(GlobalSpace):
    """The globals, with what earlier rows said of them where the prior was.

    Parameters
    ----------
    space : GlobalSpace
    before : NormalFactors
        q of the unconstrained globals after the earlier rows.
    stiffness : Tensor of shape (size, size), or None
        Curvature S of their ELBO in its mean; None: the inverse covariance of `before`.
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


def check_streamed(estimator, X) -> None:
    """Refuse, before any work, a fit that cannot go on without the rows that it has seen.

    X is what the user passed: one rank's part of a table is refused, too.
    """
    model = estimator.model if estimator.model is not None else FactorAnalysis()
    name = type(model).__name__
    if not model.rowwise or model.ordered:
        raise ValueError(
            f"partial_fit needs rows that are independent given theta, but {name} couples them: "
            "fit all rows at once."
        )
    family = model.global_family(estimator.global_family)
    if not family.random:
        raise ValueError(
            f"partial_fit needs a q(theta) with a spread, which says how much earlier rows told, "
            f"but that of {name} is {family}: use DiagonalNormal() or FullNormal(), or fit with "
            "Adam(batch_size=...)."
        )
    if isinstance(estimator.solver, CoordinateAscent):
        raise ValueError(
            f"solver={estimator.solver} knows the model's own prior only, but in partial_fit "
            "earlier rows take its place: leave solver at None, or use LBFGS()."
        )
    if shared_by_ranks(X):
        raise ValueError(
            "partial_fit takes rows in one process, but X is this rank's part of a table: use fit."
        )


def went_on(estimator, rows: Rows, generator, single: bool) -> Fitted:
    """Fit new rows from where an estimator stands; `single`: they came in single precision."""
    problem, state = _problem(estimator, rows, generator)
    problem = replace(problem, single=single)
    solver = _solver(estimator, problem, state)
    solver.check_problem(problem)
    outcome = solver.solve(problem, state, estimator.tol, estimator.max_iter)
    if outcome.broken is not None or not math.isfinite(outcome.curve[-1]):
        raise FloatingPointError(
            f"{type(solver).__name__} met numbers that are not finite in partial_fit, at iteration "
            f"{len(outcome.curve) + 1}; the estimator is as it was before. Check the scale of X."
        )
    return Fitted(problem, solver, outcome)


def _problem(estimator, rows, generator):
    """Bind the new rows to the components of the fit, and to what it remembers."""
    function, objective = estimator.inference_function_, estimator._objective(rows.X)
    globals_ = estimator._globals(rows.weights)
    before, stiffness = objective.global_factor(globals_), estimator._stiffness
    if stiffness is not None:
        stiffness = aligned(stiffness).to(rows.weights)
    objective = replace(objective, space=Remembered(objective.space, before, stiffness))
    features = function.features(inputs_of(objective.model, function, rows.X))
    problem = Problem(objective, function, rows, features, estimator.noise_, generator)
    if function.tabular:
        return problem, State({"values": estimator._raw_locals(rows)}, globals_)
    return problem, State(estimator._function_parameters(globals_), globals_)


def _solver(estimator, problem, state):
    """Return the solver asked for, or one that reads no prior but that of the problem."""
    if estimator.solver is not None:
        return clone(estimator.solver)
    objective, function = problem.objective, problem.function
    n_parameters = sum(value.numel() for value in state.parameters.values())
    n_rows = len(problem.rows)
    solver = default_solver(objective, function, problem.noise, n_rows, n_parameters)
    return LBFGS() if isinstance(solver, CoordinateAscent) else solver


def stiffness_after(estimator, rows: Rows, objective: Objective) -> np.ndarray | None:
    """Return the curvature of a fitted ELBO in the mean of q(theta), once rows have answered.

    From at most 2,000 rows that stand for all; None where q(theta) has too many parameters.
    """
    size, globals_ = objective.space.size, estimator._globals(rows.weights)
    if not 0 < globals_.numel() <= _MOST_UNKNOWNS:
        return None
    few = rows[rows.weights > 0].representatives(objective.model.ordered)
    alone = estimator._frozen_problem(Rows(few.X, torch.ones_like(few.weights)))
    raw, _ = solve_rows(alone, globals_, estimator.tol)
    weighted = replace(alone, objective=objective, rows=few, frozen_globals=False)
    schur = _schur(weighted, raw, globals_)
    means, others = slice(None, size), slice(size, None)
    # Not lstsq: its default driver pivots by memory that torch leaves as it is.
    answer = torch.linalg.pinv(schur[others, others], hermitian=True) @ schur[others, means]
    stiffness = schur[means, means] - schur[means, others] @ answer
    values, vectors = torch.linalg.eigh(0.5 * (stiffness + stiffness.mT))
    return ((vectors * values.clamp_min(0)) @ vectors.mT).cpu().numpy()


def _schur(problem, raw, globals_):
    """Return minus the Hessian in the globals' parameters, the rows' own maximised out."""
    _, _, H, C, H_globals, _, steps = Arrow(problem).derivatives(raw, globals_)
    values, vectors = torch.linalg.eigh(-0.5 * (H + H.mT))
    inverse = torch.where(values > 0, 1 / values, torch.zeros_like(values))
    pulled = vectors.mT @ C
    schur = -H_globals - torch.einsum("npq,np,npr->qr", pulled, inverse, pulled)
    return schur / steps / steps.unsqueeze(-1)
