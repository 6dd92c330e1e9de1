"""A fit, step by step: start, solve, refine the noise, try other optima, estimate what is left."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from skavi._data.missing_cells import Cells
from skavi._data.rows import Rows
from skavi._fit.checkpoint_journal import Journal
from skavi._fit.defaults import (
    affordable,
    default_function,
    default_noise,
    default_solver,
    is_network,
    tolerance,
)
from skavi._fit.final_elbo import final_elbo
from skavi._fit.iterates import Iterate, Solution
from skavi._fit.linear_predictor import require_linear_predictor, with_linear_predictor
from skavi._fit.local_problems import local_problem, solve_rows, with_rows_at_rest
from skavi._fit.network_start import best_start
from skavi._fit.noise_refinement import refine_noise, solve_roughly
from skavi._fit.other_optima import in_order, move_to_better_optima, settle_rows
from skavi._fit.problem import Problem, inputs_of, with_moments
from skavi._fit.shared_noise import with_shared_noise
from skavi._fit.stages import Stages
from skavi._fit.starts_of_theta import starts_of_theta
from skavi._fit.suboptimality import NOISE_TOLERANCE, missed_by, with_noise_error, within_gap
from skavi.inference_functions import InferenceFunction, Table
from skavi.noise import Noise
from skavi.objective import Objective
from skavi.solvers import Setting, Solver, State
from skavi.solvers._base import unwatched

#: Iterations of the factorized fit from which a function starts: not exact. Order of magnitude.
_REFERENCE_ITERATIONS = 200
#: Nats a row to which it is fitted at most: a hundredth of what a network is solved to.
_REFERENCE_TOL = 1e-6
#: Nats: a start that comes nearer to the best one confirms it.
_APART = 1.0
#: Times tol: what two fits of one optimum may differ by, as where no step gains.
_TIMES_TOL = 10


@dataclass(frozen=True)
class Plan:
    """What `fit_model` needs beside the data: components, limits and the random generator.

    Attributes
    ----------
    objective : Objective
    function : InferenceFunction or None
        None asks for the default one.
    reference : InferenceFunction or None
        Fitted first, so that `function` can start near its factors; None: nothing is.
    noise, solver : Noise, Solver or None
        None asks for the automatic choice.
    tol : float
        Nats a row.
    max_iter : int
    generator : torch.Generator
    n_init : int or None
        Starts of theta; None: chosen.
    journal : Journal
        Results of the same fit in an earlier process, and the place to store those of this one.
    single : bool
        Whether X is in single precision: then stochastic steps are, too.
    gap_counts : bool
        Whether a network may be solved to a share of its amortization gap, if that is more.
    """

    objective: Objective
    function: InferenceFunction | None
    reference: InferenceFunction | None
    noise: Noise | None
    solver: Solver | None
    tol: float
    max_iter: int
    generator: torch.Generator
    n_init: int | None = None
    journal: Journal = field(default_factory=Journal)
    single: bool = False
    gap_counts: bool = False


@dataclass(frozen=True)
class StartingPoint:
    """The start of a fit.

    Attributes
    ----------
    state : State
        Raw factors of all rows and of q(theta), near which the fit starts.
    noise : Noise
        The first noise rule.
    fitted : bool
        Whether the reference was fitted to these rows, so that q(theta) is at its optimum.
    """

    state: State
    noise: Noise
    fitted: bool = False


@dataclass(frozen=True)
class Fit:
    """The best of the fits from all starts.

    Attributes
    ----------
    solution : Solution
    elbo, elbo_se : float
        In nats, and its standard error.
    reached : list of float
        ELBOs of the fits that converged, best first.
    alone : bool
        Whether the best of several is more than 1 nat, and more than 10 tol a row, above the
        next; never for a model with closed-form updates.
    """

    solution: Solution
    elbo: float
    elbo_se: float
    reached: list[float]
    alone: bool = False


def fit_every_start(
    plan: Plan,
    rows: Rows,
    start: State | None,
    progress: Callable[[Iterate], bool],
    fits: list[tuple[Solution, float, float]],
) -> None:
    """Fit the model from every start; append each fit, its ELBO and the standard error to `fits`.

    `start`: the only one; None: those of `starting_points`. Stages are counted over all of them.
    """
    errors = []
    for point in starting_points(plan, rows, start):
        stage = fits[-1][0].stage if fits else 0
        try:
            solution = fit_model(plan, rows, point, progress, stage)
        except FloatingPointError as error:
            if rows.ranks.size > 1:  # other ranks may have succeeded
                raise
            errors.append(error)
            continue
        fits.append(_evaluated(solution, plan.solver is None))
        if solution.stopped:
            break
    if not fits:
        raise errors[0]


def _evaluated(solution, may_settle):
    """Return a solution, with rows at rest where that is better, its ELBO and standard error."""
    problem, outcome, tol = solution.problem, solution.outcome, solution.tol
    found = solution, *final_elbo(problem, outcome.state, tol)
    if not (may_settle and outcome.converged):
        return found
    at_rest = with_rows_at_rest(problem, outcome.state, tol)
    if at_rest is None:
        return found
    other = replace(solution, outcome=replace(outcome, state=at_rest))
    return max(found, (other, *final_elbo(problem, at_rest, tol)), key=lambda fit: fit[1])


def best_of(plan: Plan, fits: list[tuple[Solution, float, float]]) -> Fit:
    """Return the fit with the highest ELBO.

    Fits that converged come before others: where one stands short of the optimum of a coarse
    rule, its ELBO may be too high.
    """
    fits = sorted(fits, key=lambda fit: (math.isfinite(fit[1]), fit[0].outcome.converged, fit[1]))
    best, elbo, se = fits[-1]
    reached = sorted((fit[1] for fit in fits if fit[0].outcome.converged), reverse=True)
    apart = max(_APART, _TIMES_TOL * plan.tol * best.problem.total_weight)
    # Topics end a little apart from every start; nobody is warned of that.
    few = not plan.objective.has_coordinate_updates
    alone = few and len(reached) > 1 and reached[0] - reached[1] > apart
    return Fit(best, elbo, se, reached, alone)


def fit_model(
    plan: Plan,
    rows: Rows,
    start: StartingPoint,
    progress: Callable[[Iterate], bool],
    stage: int = 0,
) -> Solution:
    """Fit q(theta) and the map from rows to factors.

    `progress` is called after each iteration; True stops the fit. Its stages follow `stage`.
    """
    problem, solver, state = _bind(plan, rows, start)
    first = problem
    stages, tol = Stages(solver, plan.max_iter, progress, plan.journal, stage), plan.tol
    network = is_network(problem.function)
    best = _elbo_of_start(problem, start) if start.fitted and network else -math.inf
    if not (problem.frozen_globals and stages.stay(problem, state, tol, best)):
        problem, state, tol = _solve(plan, problem, state, stages, best, start.fitted)
        if network and solver.needs_deterministic_noise and not stages.failure:
            stages.confirm(problem, state, tol)
    outcome = stages.outcome
    assert outcome is not None
    if math.isfinite(best) and problem is not first:  # under the rule that the fit ends with
        best = _elbo_of_start(problem, start)
    missed = missed_by(problem, outcome, best)
    outcome = replace(outcome, converged=outcome.converged and not missed)
    if math.isfinite(best):
        outcome = within_gap(problem, outcome, best)
    solver, stopped = stages.solver, stages.interrupted
    return Solution(problem, solver, outcome, stages.failure, stopped, stages.stage, tol, missed)


def _elbo_of_start(problem, start):
    return float(problem.elbo_of(start.state.raw_locals, start.state.raw_globals))


def _solve(plan, problem, state, stages, best, fitted):
    """Solve, refine the noise rule, and try other optima; return problem, state and tolerance."""
    solver, tol = stages.solver, plan.tol
    refined, began = plan.noise is None and bool(problem.noise.refined()), state
    if plan.gap_counts and fitted and solver.needs_deterministic_noise:
        state, tol = stages.solve_to_gap(problem, state, tol, best)
    elif refined:
        problem, state = solve_roughly(problem, state, tol, stages)
    else:
        state = stages.solve(problem, state, tol)
    if refined:
        problem, state = refine_noise(problem, began, state, tol, stages)
    worth = stages.worth_refining
    if state.n_owned and problem.noise.deterministic and not solver.uses_model_updates and worth:
        state = move_to_better_optima(problem, state, tol, stages)
    if solver.uses_model_updates and problem.objective.model.several_optima and not stages.failure:
        state = settle_rows(problem, state, tol, stages)
    if refined and stages.worth_refining:
        state = stages.solve(problem, state, tol)
    if isinstance(problem.function, Table):
        state = in_order(problem, state, tol, stages)
    return problem, state, tol


def with_suboptimality(fit: Fit) -> Fit:
    """Return the fit with the error of its noise rule counted in its suboptimality.

    A network has converged where that is within its tolerance, however its solver ended: along
    kinks it may stop for want of gains.
    """
    kept = fit.solution
    if kept.failure or kept.outcome.stuck:
        return fit
    network = is_network(kept.problem.function) and kept.solver.needs_deterministic_noise
    known = kept.outcome.suboptimality if network else None
    ended = kept.problem, kept.solver, kept.outcome, kept.tol
    outcome, curvature = with_noise_error(*ended, known)
    if network:
        allowed = kept.tol * kept.problem.total_weight
        left = outcome.suboptimality <= max(allowed, NOISE_TOLERANCE) and not kept.missed
        outcome = replace(outcome, converged=kept.outcome.suboptimality <= allowed and left)
    return replace(fit, solution=replace(kept, outcome=outcome, curvature=curvature))


# --- what it fits ---------------------------------------------------------------------------------


def simplified(plan: Plan, rows: Rows) -> tuple[Plan, Rows]:
    """Return the same fit of fewer rows, and with fewer dimensions of noise, where there are."""
    rows = with_equal_rows_merged(plan, rows)
    if plan.noise is not None:
        require_linear_predictor(plan.objective, plan.noise, rows)
        return plan, rows
    objective = with_linear_predictor(plan.objective, rows)
    return replace(plan, objective=with_shared_noise(objective, rows)), rows


def with_equal_rows_merged(plan: Plan, rows: Rows) -> Rows:
    """Return rows in which equal ones are one row of their summed weight, where that is the same.

    Not where each row draws noise of its own or is read beside its neighbours, nor for a given
    solver of random batches, in which a heavy row would come seldom and with a jolt.
    """
    objective, solver = plan.objective, plan.solver
    context = None if plan.function is None else plan.function.context
    stochastic = solver is not None and not solver.needs_deterministic_noise
    if stochastic or tuple(context or objective.model.context or (0, 0)) != (0, 0):
        return rows
    merged = objective.model.coupling.merged(rows)
    setting = Setting(objective, plan.function, plan.noise, merged.n_total)
    return merged if (plan.noise or default_noise(setting)).deterministic else rows


# --- where it starts ------------------------------------------------------------------------------


def starting_points(plan: Plan, rows: Rows, start: State | None) -> list[StartingPoint]:
    """Return the starts: the given one; else fits of the plan's reference; else those of theta.

    The fit continues with the reference's refined noise rule, since a network would exploit the
    errors of a coarse one.
    """
    setting = Setting(plan.objective, plan.function, plan.noise, rows.n_total)
    noise = plan.noise or default_noise(setting)
    _check_solver(plan, replace(setting, noise=noise))
    if start is not None:
        return [StartingPoint(start, noise)]
    objective, few = plan.objective, plan.objective.model.coupling.representatives(rows)
    starts = plan.journal.once(starts_of_theta, objective, rows, noise, plan.generator, plan.n_init)
    if plan.reference is None or not noise.deterministic or few is None:
        return [StartingPoint(each, noise) for each in starts]
    found = []
    for each in starts:
        try:
            there, refined, elbo = _reference_fit(plan, noise, rows, few, each)
        except (torch.linalg.LinAlgError, FloatingPointError):
            if rows.ranks.size > 1:  # other ranks may have succeeded
                raise
            continue
        rule = refined if affordable(refined, setting) else noise
        found.append((elbo, StartingPoint(there, rule, fitted=True)))
    found.sort(key=lambda pair: -pair[0])
    points = [point for _, point in found[: plan.n_init or 1]]
    return points or [StartingPoint(starts[0], noise)]  # a worse start is good enough


def _check_solver(plan, setting):
    """Raise a ValueError, before any work, if the solver cannot solve the problem."""
    if plan.solver is None:
        return
    if plan.function is None:
        objective = plan.objective
        function = default_function(objective.n_outputs, objective.model)
        setting = replace(setting, function=function)
    plan.solver.check_setting(setting)


def _reference_fit(plan, noise, rows, few, start):
    """Fit the reference; return its state for all rows, its noise rule, and its last ELBO.

    With closed-form updates, and where q(theta) then stays, it is fitted on all rows. Else q(theta)
    is fitted on a few rows, and all rows' local problems are then solved given it.
    """
    objective = plan.objective
    setting = Setting(objective, plan.reference, noise, rows.n_total)
    function = plan.function or default_function(objective.n_outputs, objective.model)
    read = function.reading(objective.model, objective.global_factor(start.raw_globals))
    stays = function.regressed and read.summary_is_factor
    updates = default_solver(setting).uses_model_updates
    everyone = updates or stays
    few = rows if everyone else few
    if few is not rows:
        raw_locals = objective.start_locals(start.raw_globals, few.X)
        start = replace(start, raw_locals=raw_locals)
    most = plan.max_iter if everyone else min(plan.max_iter, _REFERENCE_ITERATIONS)
    least = tolerance(None, objective.model, plan.reference) if stays else _REFERENCE_TOL
    tol = min(plan.tol, max(least, objective.model.coarsest_tol))
    plan = replace(plan, function=plan.reference, reference=None, solver=None, max_iter=most)
    plan = replace(plan, tol=tol)
    noise = plan.noise or default_noise(replace(setting, n_rows=few.n_total))
    fitted = fit_model(plan, few, StartingPoint(start, noise), unwatched)
    there = fitted.outcome.state
    assert there.raw_locals is not None
    whole = fitted.problem.rows.X is rows.X and there.raw_locals.shape[1] == objective.n_outputs
    if not (whole and (updates or (stays and fitted.outcome.converged))):
        problem, raw_globals = local_problem(fitted.problem, rows), there.raw_globals
        raw = plan.journal.once(lambda: solve_rows(problem, raw_globals, plan.tol)[0].clone())
        there = State(raw, {}, raw_globals)
    return there, fitted.problem.noise, fitted.outcome.curve[-1]


def _bind(plan, rows, start):
    """Bind all components to the rows; return the problem, its solver, and the first state."""
    objective, noise = plan.objective, start.noise
    raw_globals = start.state.raw_globals
    function = plan.function or default_function(objective.n_outputs, objective.model)
    q_theta = objective.global_factor(raw_globals)
    objective = replace(objective, model=function.reading(objective.model, q_theta))
    inputs = rows.ask(inputs_of, objective.model, function, rows.X)
    function = rows.ask(with_moments, objective.model, function, inputs, rows.weights)
    features = function.features(inputs)
    n_parameters = function.n_parameters(features.shape[-1], objective.n_outputs)
    setting = Setting(objective, function, noise, rows.n_total, n_parameters)
    solver = plan.solver or default_solver(setting)
    stochastic = not solver.needs_deterministic_noise
    # Such a fit's own noise is far above the rounding of single precision.
    single = plan.solver is None and stochastic and objective.model.stochastic
    single = plan.single or (single and rows.ask(Cells.of(rows.X).survive_single, rows.weights))
    problem = Problem(objective, function, rows, features, noise, plan.generator, single=single)
    targets = function.targets(problem, start.state)
    sweeps = stochastic and objective.has_coordinate_updates
    if plan.solver is None and start.fitted and (sweeps or objective.model.summary_is_factor):
        # q(theta) stays at the factorized optimum, and only the function is fitted.
        problem = replace(problem, frozen_globals=True)
    state = plan.journal.once(lambda: best_start(problem, targets, raw_globals).copied())
    problem, state = solver.prepare(problem, state)
    return problem, solver, state
