"""Where a fit stands and what comes out, over several runs of its solver on one curve."""

import math
from dataclasses import dataclass, replace

import torch

from skavi._fit.nonfinite import what_broke
from skavi._fit.problem import Problem
from skavi.solvers import Outcome, Run, Solver

#: Nats a row to which a fit climbs where more climbs are to follow.
ROUGH = 1e-4


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


class Climb:
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
