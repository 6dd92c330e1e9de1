"""Successive runs of a solver within one fit, and the way on where it is stuck."""

import math
from dataclasses import replace

import torch

from skavi._fit.checkpoint_journal import NOTHING
from skavi._fit.defaults import tolerance_of_gap
from skavi._fit.iterates import ROUGH, Iterate
from skavi._fit.nonfinite import what_broke
from skavi.solvers import LBFGS, Outcome
from skavi.solvers._loss import gradient_norm

#: Rounds of first-order steps and Newton's again, where Newton's method is stuck. Not measured:
#: order of magnitude.
_MAX_DETOURS = 3
#: First-order iterations of such a round. Not measured: order of magnitude.
_DETOUR = 1000
#: Nats that may be left, beside 1e-4 a row, where refinement is still worth its time: few, against
#: what a rule that is too coarse may be off. Not measured: order of magnitude.
_NEAR = 1.0
#: Nats a row to which a network is solved before its gap is known: 1 % of a gap of 1 nat a row,
#: which no function of use has.
_FIRST_TOL = 1e-2
#: Shares of a tolerance to which a network is solved in turn where one estimate says that it is
#: reached, and another that it is not. Not measured: order of magnitude.
_CLOSER = (0.3, 0.1, 0.01)


class Stages:
    """Successive runs of one solver that share a limit of iterations and one ELBO curve."""

    def __init__(self, solver, max_iter, progress, journal, stage=0):
        self.solver, self.left, self.progress = solver, max_iter, progress
        self.journal, self.total_weight = journal, 0.0
        self.outcome: Outcome | None = None
        self.noise, self.stage = None, stage
        self.stopped, self.interrupted, self.failure = False, False, ""

    @property
    def spent(self):
        """Whether no further iteration is allowed."""
        return self.left <= 0 or self.stopped

    def replace_state(self, state, elbo):
        """Replace the last iterate by a state whose ELBO is no lower."""
        assert self.outcome is not None
        curve = [*self.outcome.curve[:-1], elbo]
        self.outcome = replace(self.outcome, state=state.copied(), curve=curve)

    @property
    def worth_refining(self):
        """Whether what is left is so little that a finer rule, or other optima, could matter."""
        outcome = self.outcome
        assert outcome is not None
        return not self.failure and (
            outcome.converged or outcome.suboptimality <= self.total_weight * ROUGH + _NEAR
        )

    def solve(self, problem, state, tol):
        """Run the solver from a state to `tol` nats a row; return where it ends.

        Where second-order steps are stuck, or are not finite, first-order ones go on from there.
        """
        if self.outcome is not None and self.spent:
            reached = self.outcome.suboptimality <= tol * problem.total_weight
            self.outcome = replace(self.outcome, converged=self.outcome.converged and reached)
            return state

        self.total_weight = problem.total_weight
        first, second_order = self._run(problem, state, tol), self.solver.second_order
        for _ in range(_MAX_DETOURS if second_order else 0):
            if self.spent or not (first.stuck or _broke(first)):
                break
            newton, self.solver = self.solver, LBFGS()
            there = self._run(problem, first.state, tol, _DETOUR)
            if _broke(first) or _broke(there):
                first = there
                break
            self.solver, before = newton, _elbo(first)
            if there.converged or self.spent:
                break
            first = self._run(problem, there.state, tol)
            if not _elbo(first) - before > tol * problem.total_weight:
                break
        if _broke(first):
            self._note_failure(problem, first)
        assert self.outcome is not None
        return self.outcome.state

    def solve_to_gap(self, problem, state, least, best):
        """Solve a network to 1 % of its amortization gap, and at least to `least` nats a row.

        Parameters
        ----------
        problem, state
        least : float
        best : float
            ELBO of the rows' own factors, in nats, to which the gap is taken.

        Returns
        -------
        state : State
        tol : float
            Nats a row.
        """
        tol = _FIRST_TOL
        while True:
            state = self.solve(problem, state, tol)
            assert self.outcome is not None
            reached = self.outcome.curve[-1] + max(self.outcome.suboptimality, 0.0)
            wanted = tolerance_of_gap(least, (best - reached) / problem.total_weight)
            if self.failure or self.spent or not self.outcome.converged or wanted >= tol:
                return state, wanted if math.isfinite(wanted) else least
            tol = wanted

    def stay(self, problem, state, tol, best):
        """End at a state that is within `tol` nats a row of `best`, its bound, if it is.

        With q(theta) given, no function is above the rows' own factors: what such a function could
        still gain is not worth a step.
        """
        with torch.no_grad():
            elbo = float(problem.elbo(state))
        near = math.isfinite(best) and best - elbo <= tol * problem.total_weight
        if not near:
            return False
        self.total_weight, left = problem.total_weight, max(0.0, best - elbo)
        self.outcome = Outcome(state, [elbo], True, left, gradient_norm(problem, state))
        return True

    def confirm(self, problem, state, tol):
        """Estimate what is left with all curvature; go on where a solver that ignores some stops.

        The last outcome holds that estimate.
        """
        allowed = tol * problem.total_weight
        for share in (*_CLOSER, None):
            outcome = self.outcome
            assert outcome is not None
            left = self.solver.suboptimality_of(problem, outcome, allowed)
            self.outcome = replace(outcome, suboptimality=left)
            if left <= allowed or share is None or self.spent or not outcome.converged:
                break
            state = self.solve(problem, state, share * tol)

    def _run(self, problem, state, tol, most=math.inf):
        """Run the solver once, and append its curve."""
        before = self.outcome.curve if self.outcome else []
        if problem.noise is not self.noise:
            self.noise, self.stage = problem.noise, self.stage + 1

        def report(run):
            iterate = Iterate(problem, self.solver, run, before, self.stage, tol)
            self.stopped = self.interrupted = self.progress(iterate)
            return self.stopped

        new = self.journal.recall()
        if new is NOTHING:
            run, most = self.solver.start_run(problem, state, tol), min(self.left, most)
            new = self.journal.keep(run.iterate(most, self.journal.watch(run, report)))
        self.left -= len(new.curve)
        self.outcome = replace(new, state=new.state.copied(), curve=before + new.curve)
        return new

    def _note_failure(self, problem, outcome):
        """Name what is not finite; raise if no iterate was finite."""
        there = outcome.state if outcome.broken is None else outcome.broken
        with torch.no_grad():
            cause = what_broke(problem, there)
        assert self.outcome is not None
        self.failure = f"iteration {len(self.outcome.curve) + 1}: {cause}"
        if not any(map(math.isfinite, self.outcome.curve)):
            raise FloatingPointError(
                f"{type(self.solver).__name__} met numbers that are not finite, and could not get "
                f"round them, in {self.failure}. Check the scale of X and of the priors, the "
                "model's densities for overflow, and the learning rate of a solver that has one."
            )
        self.stopped = True


def _elbo(outcome):
    """Return the last ELBO of a run, or NaN."""
    return outcome.curve[-1] if outcome.curve else math.nan


def _broke(outcome):
    """Say whether a run met numbers that are not finite."""
    return outcome.broken is not None or not math.isfinite(_elbo(outcome))
