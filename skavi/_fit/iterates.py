"""Iterates of a fit, and its result."""

import math
from dataclasses import dataclass

from skavi._curvature import Derivatives
from skavi._fit.problem import Problem
from skavi.solvers import Outcome, Run, Solver

#: Nats a row to which a stage is solved where further stages follow, which move the optimum by more
#: than that.
ROUGH = 1e-4


@dataclass(frozen=True)
class Solution:
    """A solved problem, its solver, and the outcome.

    Attributes
    ----------
    problem : Problem
    solver : Solver
        The last one that ran.
    outcome : Outcome
    failure : str
        What was not finite, if that ended the fit; else empty.
    stopped : bool
        Whether the caller stopped it.
    stage : int
        The last one's number.
    tol : float
        Nats a row to which it was to be solved.
    missed : float
        Nats a row by which a network is below the rows' own factors, where these are not its
        factors by any measure; else 0.
    curvature : Derivatives or None
        Those of the ELBO at the end, where they have been found.
    """

    problem: Problem
    solver: Solver
    outcome: Outcome
    failure: str = ""
    stopped: bool = False
    stage: int = 0
    tol: float = math.nan
    missed: float = 0.0
    curvature: Derivatives | None = None


@dataclass(frozen=True)
class Iterate:
    """A fit after an iteration: the current run, and the ELBOs of the runs before.

    Attributes
    ----------
    problem : Problem
    solver : Solver
    run : Run
        It continues, so its memory changes, always from one whole iterate to the next.
    before : list of float
        ELBOs of the runs before.
    stage : int
        Starts at 1 and rises when the noise rule is refined, and with each start.
    tol : float
        Nats a row to which this run solves.
    """

    problem: Problem
    solver: Solver
    run: Run
    before: list[float]
    stage: int
    tol: float

    @property
    def elbo(self) -> float:
        """ELBO in nats, under the solver's noise."""
        return self.run.memory.elbo

    @property
    def n_iter(self) -> int:
        """Iterations of the fit so far."""
        return len(self.before) + self.run.memory.n_iter

    def fitted(self) -> Solution:
        """Return a copy of everything, as if the fit had stopped here."""
        curve = self.before + self.run.curve[: self.run.memory.n_iter]
        outcome = Outcome(self.run.state().copied(), curve, False, math.nan, math.nan)
        return Solution(self.problem, self.solver, outcome, stage=self.stage, tol=self.tol)
