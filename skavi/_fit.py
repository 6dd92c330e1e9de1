"""A fit, step by step: bind the problem, start, solve, refine the noise, look into other basins."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from skavi._amortize import best_start
from skavi._basins import other_basins
from skavi._certificate import NOISE_TOLERANCE, certified
from skavi._choice import affordable, default_function, default_noise, default_solver
from skavi._failure import what_broke
from skavi._inputs import inputs_of
from skavi._journal import Journal
from skavi._local_problems import local_problem, solve_rows
from skavi._problem import Problem
from skavi._rows import Rows
from skavi._start import start_globals, start_locals
from skavi.inference_functions import InferenceFunction, Table
from skavi.noise import Noise, QuasiMonteCarlo
from skavi.objective import Objective
from skavi.solvers import Adam, CoordinateAscent, Outcome, Run, Solver, State
from skavi.solvers._base import unwatched

_REFERENCE_ROWS = 2000
_REFERENCE_ITERATIONS = 200
_MAX_BASIN_ROUNDS = 5
_MAX_REFINEMENTS = 6
_ROUGH = 1e-4


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


@dataclass(frozen=True)
class Fitted:
    """A solved problem, and how it was solved."""

    problem: Problem
    solver: Solver
    outcome: Outcome
    failure: str = ""


@dataclass(frozen=True)
class Iterate:
    """Where a fit stands: in a run, after other ones.

    Attributes
    ----------
    problem : Problem
    solver : Solver
    run : Run
        Its memory goes on changing; always to a whole iterate.
    before : list of float
        ELBOs of the runs before.
    stage : int
        From 1; rises when the noise rule is refined.
    """

    problem: Problem
    solver: Solver
    run: Run
    before: list[float]
    stage: int

    @property
    def elbo(self) -> float:
        """ELBO in nats, as the solver sees it."""
        return self.run.memory.elbo

    @property
    def n_iter(self) -> int:
        """Iterations of the fit so far."""
        return len(self.before) + self.run.memory.n_iter

    def fitted(self) -> Fitted:
        """Return a copy of everything, as if the fit had stopped here."""
        curve = self.before + self.run.curve[: self.run.memory.n_iter]
        outcome = Outcome(self.run.state().copied(), curve, False, math.nan, math.nan)
        return Fitted(self.problem, self.solver, outcome)


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
    objective, generator = plan.objective, plan.generator
    noise = plan.noise or default_noise(objective, plan.function, rows.n_total)
    _check_solver(plan, noise, rows)
    if start is None:
        start, noise = _reference(plan, noise, rows)
    targets, globals_ = start.parameters["values"], start.globals_
    function = plan.function or default_function(targets.shape[1], objective.model)
    if not function.tabular:
        reading = objective.model.reading(objective.global_factor(globals_))
        objective = replace(objective, model=reading)
    inputs = rows.ask(inputs_of, objective.model, function, rows.X)
    function = rows.ask(function.fit_inputs, inputs, rows.weights)
    features = function.features(inputs)
    n_parameters = function.n_parameters(features.shape[1], targets.shape[1])
    solver = plan.solver or default_solver(objective, function, noise, rows.n_total, n_parameters)
    if function.tabular and isinstance(solver, CoordinateAscent):
        X, weights = rows.ask(objective.model.compressed, rows.X, rows.weights)
        rows = rows if X is rows.X else Rows(X, weights)  # all ranks' rows, on every rank
        features, targets = X, start_locals(objective, globals_, X)
    problem = Problem(objective, function, rows, features, noise, generator, single=plan.single)
    if plan.solver is None and isinstance(solver, Adam) and _has_updates(objective):
        # q(theta) stays at the factorized optimum: the function alone is left to fit.
        problem = replace(problem, frozen_globals=True)
    journal = plan.journal
    state = journal.once(lambda: best_start(problem, targets, globals_).copied())
    climb = _Climb(solver, plan.max_iter, progress, journal)
    rough = plan.noise is None and bool(noise.refined())
    state = climb(problem, state, max(plan.tol, _ROUGH) if rough else plan.tol)
    if rough:
        problem, state = _refine_noise(problem, state, plan.tol, climb)
    if function.tabular and noise.deterministic and not isinstance(solver, CoordinateAscent):
        state = _leave_basins(problem, state, plan.tol, climb)
    if rough:
        climb(problem, state, plan.tol)
    assert climb.outcome is not None
    return Fitted(problem, solver, climb.outcome, climb.failure)


def _check_solver(plan, noise, rows):
    """Refuse a solver that cannot solve the problem, before any work."""
    objective = plan.objective
    n_parameters = objective.family.n_parameters(objective.n_latents)
    function = plan.function or default_function(n_parameters, objective.model)
    if plan.solver is not None:
        problem = Problem(objective, function, rows, rows.X, noise, plan.generator)
        plan.solver.check_problem(problem)


class _Climb:
    """Run the solver again and again on one count of iterations and one curve."""

    def __init__(self, solver, max_iter, progress, journal):
        self.solver, self.left, self.progress = solver, max_iter, progress
        self.journal = journal
        self.outcome: Outcome | None = None
        self.noise, self.stage = None, 0
        self.stopped, self.failure = False, ""

    def __call__(self, problem, state, tol):
        if self.outcome is not None and (self.left <= 0 or self.stopped):
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

        new = self.journal.climb(lambda: self.solver.joined(problem, state, tol), self.left, report)
        if new.broken is not None or not math.isfinite(new.curve[-1] if new.curve else math.nan):
            self._note_failure(problem, new, len(before))
        self.left -= len(new.curve)
        self.outcome = replace(new, state=new.state.copied(), curve=before + new.curve)
        return self.outcome.state

    def _note_failure(self, problem, outcome, n_before):
        """Say what is not finite; without a finite iterate to keep there is no fit."""
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


def _has_updates(objective):
    return objective.model.has_coordinate_updates(objective.family, objective.global_family)


def _reference(plan: Plan, noise: Noise, rows: Rows) -> tuple[State, Noise]:
    """Return raw factors of all rows and globals to start from, and the noise to start with.

    Factorized VI starts at the model's own start; amortized VI at a factorized fit where one is
    cheap (q(theta) on a subset of rows when there are many), under the noise rule that this fit
    was refined to: a network would exploit the errors of a coarse one.
    """
    objective = plan.objective
    globals_ = start_globals(objective, rows, plan.generator)
    here = State({"values": start_locals(objective, globals_, rows.X)}, globals_)
    if plan.function is not None and plan.function.tabular:
        return here, noise
    table = Table()
    solver = default_solver(objective, table, noise, rows.n_total, 0)
    if not noise.deterministic or (objective.model.one_log_joint and not objective.model.rowwise):
        return here, noise
    cheap = isinstance(solver, CoordinateAscent)
    few = rows if cheap else subset(objective.model, rows)
    most = plan.max_iter if cheap else min(plan.max_iter, _REFERENCE_ITERATIONS)
    quiet = replace(plan, function=table, solver=None, noise=plan.noise, max_iter=most)
    try:
        fitted = _solved(quiet, few, _restricted(here, few, rows, objective), unwatched)
        there = fitted.outcome.state
        if not cheap or fitted.problem.rows.X is not rows.X:
            problem = local_problem(fitted.problem, rows)
            globals_ = there.globals_
            raw = plan.journal.once(lambda: solve_rows(problem, globals_, plan.tol)[0].clone())
            there = State({"values": raw}, globals_)
    except (torch.linalg.LinAlgError, FloatingPointError):
        if rows.group.size > 1:  # the other processes may have got there
            raise
        return here, noise  # it was to be a better start, no more
    refined = fitted.problem.noise
    return there, refined if affordable(refined, objective, plan.function, rows.n_total) else noise


def subset(model, rows: Rows) -> Rows:
    """Return at most 2,000 rows that stand for all, with weights that add up to theirs."""
    if rows.n_total <= _REFERENCE_ROWS:
        return rows
    if model.ordered:
        return rows[:_REFERENCE_ROWS]
    last = rows.n_total - 1
    few = rows.take(torch.linspace(0, last, _REFERENCE_ROWS).round().long().to(rows.X.device))
    return Rows(few.X, few.weights * rows.total_weight / max(float(few.weights.sum()), 1e-300))


def _restricted(state, few, rows, objective):
    if few is rows:
        return state
    return State({"values": start_locals(objective, state.globals_, few.X)}, state.globals_)


def _refine_noise(problem, state, tol, climb):
    """Double the nodes of an automatic rule until the ELBO stands still."""
    for _ in range(_MAX_REFINEMENTS):
        old = float(problem.elbo(state))
        finer_rule, worst = None, _resolution(problem, tol, old)
        for finer in problem.noise.refined():
            if not affordable(finer, problem.objective, problem.function, problem.rows.n_total):
                continue
            change = abs(float(problem.with_noise(finer).elbo(state)) - old)
            if not change <= worst:
                finer_rule, worst = finer, change
        if finer_rule is None:
            break
        problem = problem.with_noise(finer_rule)
        state = climb(problem, state, max(tol, _ROUGH))
    return problem, state


def _resolution(problem, tol, elbo):
    """How far two rules may differ: 1e-7 relative for quadrature, `NOISE_TOLERANCE` for draws."""
    exact = tol * problem.total_weight + 1e-7 * abs(elbo)
    return max(exact, NOISE_TOLERANCE) if isinstance(problem.noise, QuasiMonteCarlo) else exact


def _leave_basins(problem, state, tol, climb):
    """Move rows whose factor has a better optimum elsewhere, and climb on, until none does."""
    for _ in range(_MAX_BASIN_ROUNDS):
        frozen = replace(problem, frozen_globals=True)
        raw = state.parameters["values"]
        moved = climb.journal.once(other_basins, frozen, raw, state.globals_, tol)
        if not problem.rows.group.any(moved is not None):
            break
        values = raw if moved is None else moved
        state = climb(problem, State({"values": values}, state.globals_), max(tol, _ROUGH))
    return state
