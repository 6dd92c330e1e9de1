"""A fit, step by step: start, bind the problem, solve, refine the noise, look into other basins."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from skavi._data.rows import Rows
from skavi._fit.defaults import affordable, default_function, default_noise, default_solver
from skavi._fit.inputs import inputs_of
from skavi._fit.journal import Journal
from skavi._fit.local_problems import local_problem, solve_rows
from skavi._fit.network_start import best_start
from skavi._fit.noise_refinement import refine_noise
from skavi._fit.other_optima import leave_basins
from skavi._fit.problem import Problem
from skavi._fit.stages import ROUGH, Climb, Fitted, Iterate
from skavi._fit.start import start_globals, start_locals
from skavi._fit.suboptimality import certified
from skavi.inference_functions import InferenceFunction, Table
from skavi.noise import Noise
from skavi.objective import Objective
from skavi.solvers import Adam, CoordinateAscent, Solver, State
from skavi.solvers._base import unwatched

_REFERENCE_ITERATIONS = 200


@dataclass(frozen=True)
class Plan:
    """What `fit_problem` needs beside the data: components, limits and chance.

    Attributes
    ----------
    objective : Objective
    function : InferenceFunction or None
        None asks for the default one.
    noise, solver : Noise, Solver or None
        None asks for the automatic choice.
    tol : float
        Nats a row.
    max_iter : int
    generator : torch.Generator
    journal : Journal
        What an earlier process did of the same fit, and where to keep what this one does.
    single : bool
        Whether X came in single precision: then stochastic steps are computed in it.
    """

    objective: Objective
    function: InferenceFunction | None
    noise: Noise | None
    solver: Solver | None
    tol: float
    max_iter: int
    generator: torch.Generator
    journal: Journal = field(default_factory=Journal)
    single: bool = False


def fit_problem(
    plan: Plan, rows: Rows, start: State | None, progress: Callable[[Iterate], bool]
) -> Fitted:
    """Solve the problem of `plan` from `start` = (raw local targets, raw globals), if given.

    `progress` is called after each iteration; True stops the fit.
    """
    fitted = _solved(plan, rows, start, progress)
    if fitted.failure:
        return fitted
    problem, solver = fitted.problem, fitted.solver
    return replace(fitted, outcome=certified(problem, solver, fitted.outcome, plan.tol))


def _solved(plan, rows, start, progress):
    noise = plan.noise or default_noise(plan.objective, plan.function, rows.n_total)
    _check_solver(plan, noise, rows)
    if start is None:
        start, noise = _reference(plan, noise, rows)
    problem, solver, targets = _bound(plan, noise, rows, start)
    state = plan.journal.once(lambda: best_start(problem, targets, start.globals_).copied())
    return _climbed(plan, problem, solver, state, progress)


def _check_solver(plan, noise, rows):
    """Refuse a solver that cannot solve the problem, before any work."""
    if plan.solver is None:
        return
    objective = plan.objective
    n_parameters = objective.family.n_parameters(objective.n_latents)
    function = plan.function or default_function(n_parameters, objective.model)
    problem = Problem(objective, function, rows, rows.X, noise, plan.generator)
    plan.solver.check_problem(problem)


def _reference(plan: Plan, noise: Noise, rows: Rows) -> tuple[State, Noise]:
    """Return raw factors of all rows and globals to start from, and the noise to start with.

    Factorized VI starts at the model's own start; amortized VI at a factorized fit where one is
    cheap (q(theta) on a subset of rows when there are many), under the noise rule that this fit
    was refined to: a network would exploit the errors of a coarse one.
    """
    objective, model = plan.objective, plan.objective.model
    globals_ = start_globals(objective, rows, plan.generator)
    own = State({"values": start_locals(objective, globals_, rows.X)}, globals_)
    factorized = plan.function is not None and plan.function.tabular
    if factorized or not noise.deterministic or (model.one_log_joint and not model.rowwise):
        return own, noise
    try:
        there, refined = _factorized_first(plan, noise, rows, own)
    except (torch.linalg.LinAlgError, FloatingPointError):
        if rows.group.size > 1:  # the other processes may have got there
            raise
        return own, noise  # it was to be a better start, no more
    return there, refined if affordable(refined, objective, plan.function, rows.n_total) else noise


def _factorized_first(plan, noise, rows, start):
    """Return where a factorized fit ends, for all rows, and the noise rule it was refined to.

    Other solvers than coordinate ascent find q(theta) on a few rows; all are then solved for it.
    """
    objective, table = plan.objective, Table()
    solver = default_solver(objective, table, noise, rows.n_total, 0)
    cheap = isinstance(solver, CoordinateAscent)
    few = rows if cheap else rows.representatives(objective.model.ordered)
    most = plan.max_iter if cheap else min(plan.max_iter, _REFERENCE_ITERATIONS)
    if few is not rows:
        start = State({"values": start_locals(objective, start.globals_, few.X)}, start.globals_)
    quiet = replace(plan, function=table, solver=None, max_iter=most)
    fitted = _solved(quiet, few, start, unwatched)
    there = fitted.outcome.state
    if not cheap or fitted.problem.rows.X is not rows.X:
        problem, globals_ = local_problem(fitted.problem, rows), there.globals_
        raw = plan.journal.once(lambda: solve_rows(problem, globals_, plan.tol)[0].clone())
        there = State({"values": raw}, globals_)
    return there, fitted.problem.noise


def _bound(plan, noise, rows, start):
    """Return the problem of all components, its solver, and raw factors to bring it near."""
    objective, targets = plan.objective, start.parameters["values"]
    function = plan.function or default_function(targets.shape[1], objective.model)
    if not function.tabular:
        reading = objective.model.reading(objective.global_factor(start.globals_))
        objective = replace(objective, model=reading)
    inputs = rows.ask(inputs_of, objective.model, function, rows.X)
    function = rows.ask(function.fit_inputs, inputs, rows.weights)
    features = function.features(inputs)
    n_parameters = function.n_parameters(features.shape[1], targets.shape[1])
    solver = plan.solver or default_solver(objective, function, noise, rows.n_total, n_parameters)
    if function.tabular and isinstance(solver, CoordinateAscent):
        X, weights = rows.ask(objective.model.compressed, rows.X, rows.weights)
        rows = rows if X is rows.X else Rows(X, weights)  # all ranks' rows, on every rank
        features, targets = X, start_locals(objective, start.globals_, X)
    problem = Problem(
        objective, function, rows, features, noise, plan.generator, single=plan.single
    )
    if plan.solver is None and isinstance(solver, Adam) and objective.has_coordinate_updates:
        # q(theta) stays at the factorized optimum: the function alone is left to fit.
        problem = replace(problem, frozen_globals=True)
    return problem, solver, targets


def _climbed(plan, problem, solver, state, progress):
    """Climb on one count of iterations; a noise rule that was chosen here is refined on the way."""
    climb = Climb(solver, plan.max_iter, progress, plan.journal)
    coarse = plan.noise is None and bool(problem.noise.refined())
    state = climb(problem, state, max(plan.tol, ROUGH) if coarse else plan.tol)
    if coarse:
        problem, state = refine_noise(problem, state, plan.tol, climb)
    sweeps = isinstance(solver, CoordinateAscent)
    if problem.function.tabular and problem.noise.deterministic and not sweeps:
        state = leave_basins(problem, state, plan.tol, climb)
    if coarse:
        climb(problem, state, plan.tol)
    assert climb.outcome is not None
    return Fitted(problem, solver, climb.outcome, climb.failure)
