"""Where a fit stands on the way, and what comes out."""

import math
from dataclasses import dataclass

from skavi._fit.problem import Problem
from skavi.solvers import Outcome, Run, Solver

#: Nats a row to which a stage goes where more stages are to follow.
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
