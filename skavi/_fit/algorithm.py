"""A fit, step by step: start, solve, refine the noise, try other optima, estimate what is left."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from skavi._data.rows import Rows
from skavi._fit.checkpoint_journal import NOTHING, Journal
from skavi._fit.defaults import affordable, default_function, default_noise, default_solver
from skavi._fit.iterates import ROUGH, Iterate, Solution
from skavi._fit.local_problems import local_problem, solve_rows
from skavi._fit.network_start import best_start
from skavi._fit.noise_refinement import refine_noise
from skavi._fit.nonfinite import what_broke
from skavi._fit.other_optima import move_to_better_optima, settle_rows
from skavi._fit.problem import Problem, inputs_of
from skavi._fit.start import model_start, start_locals
from skavi._fit.suboptimality import with_noise_error
from skavi.inference_functions import InferenceFunction
from skavi.noise import Noise
from skavi.objective import Objective
from skavi.solvers import Outcome, Setting, Solver, State
from skavi.solvers._base import unwatched

#: Iterations of the factorized fit from which a function starts: it need not be exact. Not
#: measured: order of magnitude.
_REFERENCE_ITERATIONS = 200


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
    journal : Journal
        Results of the same fit in an earlier process, and the place to store those of this one.
    single : bool
        Whether X is in single precision: then stochastic steps are, too.
    """

    objective: Objective
    function: InferenceFunction | None
    reference: InferenceFunction | None
    noise: Noise | None
    solver: Solver | None
    tol: float
    max_iter: int
    generator: torch.Generator
    journal: Journal = field(default_factory=Journal)
    single: bool = False


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


def fit_model(
    plan: Plan, rows: Rows, start: StartingPoint, progress: Callable[[Iterate], bool]
) -> Solution:
    """Fit q(theta) and the map from rows to factors.

    `progress` is called after each iteration; True stops the fit.
    """
    problem, solver, state = _bind(plan, rows, start)
    stages = Stages(solver, plan.max_iter, progress, plan.journal)
    refined = plan.noise is None and bool(problem.noise.refined())
    state = stages.solve(problem, state, max(plan.tol, ROUGH) if refined else plan.tol)
    if refined:
        problem, state = refine_noise(problem, state, plan.tol, stages)
    if state.n_owned and problem.noise.deterministic and not solver.uses_model_updates:
        state = move_to_better_optima(problem, state, plan.tol, stages)
    if solver.uses_model_updates and problem.objective.model.several_optima and not stages.failure:
        state = settle_rows(problem, state, plan.tol, stages)
    if refined:
        stages.solve(problem, state, plan.tol)
    assert stages.outcome is not None
    return Solution(problem, solver, stages.outcome, stages.failure)


def with_suboptimality(fitted: Solution, tol: float) -> Solution:
    """Return the fit with the error of its noise rule counted in its suboptimality."""
    if fitted.failure:
        return fitted
    outcome = with_noise_error(fitted.problem, fitted.solver, fitted.outcome, tol)
    return replace(fitted, outcome=outcome)


class Stages:
    """Successive runs of one solver that share a limit of iterations and one ELBO curve."""

    def __init__(self, solver, max_iter, progress, journal):
        self.solver, self.left, self.progress = solver, max_iter, progress
        self.journal = journal
        self.outcome: Outcome | None = None
        self.noise, self.stage = None, 0
        self.stopped, self.failure = False, ""

    @property
    def spent(self):
        """Whether no further iteration is allowed."""
        return self.left <= 0 or self.stopped

    def replace_state(self, state, elbo):
        """Replace the last iterate by a state whose ELBO is no lower."""
        assert self.outcome is not None
        curve = [*self.outcome.curve[:-1], elbo]
        self.outcome = replace(self.outcome, state=state.copied(), curve=curve)

    def solve(self, problem, state, tol):
        """Run the solver from a state to `tol` nats a row; return where it ends."""
        if self.outcome is not None and self.spent:
            reached = self.outcome.suboptimality <= tol * problem.total_weight
            self.outcome = replace(self.outcome, converged=self.outcome.converged and reached)
            return state

        before = self.outcome.curve if self.outcome else []
        if problem.noise is not self.noise:
            self.noise, self.stage = problem.noise, self.stage + 1

        def report(run):
            iterate = Iterate(problem, self.solver, run, before, self.stage)
            self.stopped = self.progress(iterate)
            return self.stopped

        new = self.journal.recall()
        if new is NOTHING:
            run = self.solver.start_run(problem, state, tol)
            new = self.journal.keep(run.iterate(self.left, self.journal.watch(run, report)))
        if new.broken is not None or not math.isfinite(new.curve[-1] if new.curve else math.nan):
            self._note_failure(problem, new, len(before))
        self.left -= len(new.curve)
        self.outcome = replace(new, state=new.state.copied(), curve=before + new.curve)
        return self.outcome.state

    def _note_failure(self, problem, outcome, n_before):
        """Name what is not finite; raise if no iterate was finite."""
        there = outcome.state if outcome.broken is None else outcome.broken
        with torch.no_grad():
            cause = what_broke(problem, there)
        self.failure = f"iteration {n_before + len(outcome.curve) + 1}: {cause}"
        finite = [elbo for elbo in outcome.curve if math.isfinite(elbo)]
        if not finite and not n_before:
            raise FloatingPointError(
                f"{type(self.solver).__name__} met numbers that are not finite, and could not get "
                f"round them, in {self.failure}. Check the scale of X and of the priors, the "
                "model's densities for overflow, and the learning rate of a solver that has one."
            )
        self.stopped = True


# --- where it starts ------------------------------------------------------------------------------


def starting_point(plan: Plan, rows: Rows, start: State | None) -> StartingPoint:
    """Return the start: the given one; else a fit of the plan's reference; else the model's start.

    The fit continues with the reference's refined noise rule, since a network would exploit the
    errors of a coarse one.
    """
    setting = Setting(plan.objective, plan.function, plan.noise, rows.n_total)
    noise = plan.noise or default_noise(setting)
    _check_solver(plan, replace(setting, noise=noise))
    if start is not None:
        return StartingPoint(start, noise)
    start = model_start(plan.objective, rows, plan.generator)
    if plan.reference is None or not noise.deterministic:
        return StartingPoint(start, noise)
    few = plan.objective.model.coupling.representatives(rows)
    if few is None:
        return StartingPoint(start, noise)
    try:
        there, refined = _reference_fit(plan, noise, rows, few, start)
    except (torch.linalg.LinAlgError, FloatingPointError):
        if rows.ranks.size > 1:  # other ranks may have succeeded
            raise
        return StartingPoint(start, noise)  # a worse start is good enough
    return StartingPoint(there, refined if affordable(refined, setting) else noise, fitted=True)


def _check_solver(plan, setting):
    """Raise a ValueError, before any work, if the solver cannot solve the problem."""
    if plan.solver is None:
        return
    if plan.function is None:
        objective = plan.objective
        n_outputs = objective.family.n_parameters(objective.n_latents)
        setting = replace(setting, function=default_function(n_outputs, objective.model))
    plan.solver.check_setting(setting)


def _reference_fit(plan, noise, rows, few, start):
    """Fit the reference; return its state for all rows, and its noise rule.

    With closed-form updates it is fitted on all rows. Else q(theta) is fitted on a few rows, and
    all rows' local problems are then solved given it.
    """
    objective = plan.objective
    setting = Setting(objective, plan.reference, noise, rows.n_total)
    everyone = default_solver(setting).uses_model_updates
    few = rows if everyone else few
    if few is not rows:
        raw_locals = start_locals(objective, start.raw_globals, few.X)
        start = replace(start, raw_locals=raw_locals)
    most = plan.max_iter if everyone else min(plan.max_iter, _REFERENCE_ITERATIONS)
    plan = replace(plan, function=plan.reference, reference=None, solver=None, max_iter=most)
    noise = plan.noise or default_noise(replace(setting, n_rows=few.n_total))
    fitted = fit_model(plan, few, StartingPoint(start, noise), unwatched)
    there = fitted.outcome.state
    if not everyone or fitted.problem.rows.X is not rows.X:
        problem, raw_globals = local_problem(fitted.problem, rows), there.raw_globals
        raw = plan.journal.once(lambda: solve_rows(problem, raw_globals, plan.tol)[0].clone())
        there = State(raw, {}, raw_globals)
    return there, fitted.problem.noise


def _bind(plan, rows, start):
    """Bind all components to the rows; return the problem, its solver, and the first state."""
    objective, noise = plan.objective, start.noise
    targets, raw_globals = start.state.raw_locals, start.state.raw_globals
    function = plan.function or default_function(targets.shape[1], objective.model)
    q_theta = objective.global_factor(raw_globals)
    objective = replace(objective, model=function.reading(objective.model, q_theta))
    inputs = rows.ask(inputs_of, objective.model, function, rows.X)
    function = rows.ask(function.fit_inputs, inputs, rows.weights)
    features = function.features(inputs)
    n_parameters = function.n_parameters(features.shape[1], targets.shape[1])
    setting = Setting(objective, function, noise, rows.n_total, n_parameters)
    solver = plan.solver or default_solver(setting)
    problem = Problem(
        objective, function, rows, features, noise, plan.generator, single=plan.single
    )
    stochastic = not solver.needs_deterministic_noise
    if plan.solver is None and stochastic and start.fitted and objective.has_coordinate_updates:
        # q(theta) stays at the factorized optimum, and only the function is fitted.
        problem = replace(problem, frozen_globals=True)
    state = plan.journal.once(lambda: best_start(problem, targets, raw_globals).copied())
    problem, state = solver.prepare(problem, state)
    return problem, solver, state
