"""What every solver is: a run of iterations, each a step from one memory to the next."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from skavi._component import Component
from skavi._data.ranks import ALONE, Group
from skavi.solvers._loss import remaining
from skavi.solvers._state import State


@dataclass(frozen=True)
class Outcome:
    """What a solver returns.

    Attributes
    ----------
    state : State
    curve : list of float
        ELBO after each iteration, in nats.
    converged : bool
    suboptimality : float
        Estimate of how far the ELBO is below the optimum, in nats.
    gradient_norm : float
        Norm of the gradient in natural steps, in nats a row.
    broken : State or None
        Where the next iterate would have been, if the ELBO or its derivatives are not finite there.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> vi = FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]])  # what it tells is on the fit
    >>> vi.converged_, vi.suboptimality_ < 1e-6
    (True, True)
    """

    state: State
    curve: list[float]
    converged: bool
    suboptimality: float
    gradient_norm: float
    broken: State | None = None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """All that a run carries from one iteration to the next: numbers, tensors, lists of them.

    Attributes
    ----------
    n_iter : int
        Iterations so far.
    elbo : float
        After the last of them, in nats.
    finished : bool
        Whether the solver has nothing left to do.

    Examples
    --------
    >>> from skavi.solvers import Memory
    >>> Memory().n_iter, Memory(n_iter=3, elbo=-1.5, finished=True).finished
    (0, True)
    """

    n_iter: int = 0
    elbo: float = math.nan
    finished: bool = False


class Run(ABC):
    """A solver on its way up a problem.

    An iteration makes a new memory of the old one, which is put in its place in one assignment: an
    interrupt at any instant finds one of the two whole, and a run begun anew on the same problem
    and given the memory of another goes on exactly as that one would have.

    Attributes
    ----------
    memory : Memory
    curve : list of float
        ELBO after each iteration; only the first ``memory.n_iter`` entries count.
    group : Group
        Whose rows the problem has.

    Examples
    --------
    >>> from skavi.solvers import Memory, Run
    >>> class Countdown(Run):
    ...     def __init__(self, n):
    ...         super().__init__(Memory())
    ...         self.n = n
    ...
    ...     def step(self, memory):
    ...         n_iter = memory.n_iter + 1
    ...         return Memory(n_iter=n_iter, elbo=float(n_iter - self.n), finished=n_iter == self.n)
    ...
    ...     def state(self): ...
    ...     def outcome(self): ...
    >>> run = Countdown(3)
    >>> run.climb(10, lambda run: False)
    >>> run.curve
    [-2.0, -1.0, 0.0]
    """

    group: Group = ALONE

    def __init__(self, memory):
        self.memory: Any = memory
        self.curve: list[float] = []

    @abstractmethod
    def step(self, memory):
        """Return the memory after a step; with the same `n_iter` if that was no iteration."""

    @abstractmethod
    def state(self) -> State:
        """Return where the run stands."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """Return where the run stands, and how well it did."""

    def climb(self, max_iter: int, progress: "Progress") -> Outcome:
        """Go on until finished, stopped by `progress`, or at `max_iter` iterations in all.

        Solvers step back from what is not finite by themselves. Where one cannot, the run ends
        with its last finite iterate, and the outcome says where it broke.
        """
        while self.memory.n_iter < max_iter and not self.memory.finished:
            try:
                memory = self.step(self.memory)
            except (torch.linalg.LinAlgError, FloatingPointError) as error:
                if self.group.size > 1 and isinstance(error, torch.linalg.LinAlgError):
                    raise  # a matter of this rank's rows, of which the others do not know
                return self._break_at(self.memory)
            counts = memory.n_iter > self.memory.n_iter
            if counts and not math.isfinite(memory.elbo):
                return self._break_at(memory)
            if counts:
                self.curve.append(memory.elbo)
            self.memory = memory
            if counts and progress(self):
                break
        return self.outcome()

    def _break_at(self, memory):
        here, self.memory = self.memory, memory
        there = self.state()
        self.memory = here
        return replace(self.outcome(), curve=self.curve, converged=False, broken=there)

    def resume(self, memory: dict[str, Any], curve: list[float]) -> None:
        """Take over the fields of another run's memory, and its curve."""
        self.memory = replace(self.memory, **memory)
        self.curve = list(curve)


Progress = Callable[[Run], bool]
"""Called with the run after each iteration; True stops it."""


def unwatched(_):
    """Take no notice of an iteration, and do not stop."""
    return False


class Solver(Component):
    """Maximise a problem's ELBO from a state.

    Examples
    --------
    >>> from skavi.solvers import LBFGS, Solver
    >>> isinstance(LBFGS(), Solver)
    True
    """

    #: Whether the solver needs the same noise at each evaluation.
    needs_deterministic_noise: bool = True
    #: Whether an iteration uses second derivatives, so that a few come near an optimum.
    second_order: bool = False
    #: Whether steps are the model's own closed-form updates, which know no prior but its own.
    uses_model_updates: bool = False

    @abstractmethod
    def begin(self, problem, state, tol) -> Run:
        """Return a run that has not made a step.

        Parameters
        ----------
        problem : Problem
        state : State
            Where to start.
        tol : float
            Suboptimality to reach, in nats a row.
        """

    def suits(self, setting) -> bool:
        """Say whether this solver is the fastest in such a `Setting`, as far as it knows."""
        return True

    def prepare(self, problem, state):
        """Return problem and state in the form in which this solver is fastest."""
        return problem, state

    def remaining(self, problem, state, tol) -> float:
        """Estimate by one Newton step how far a state is below the optimum, to about `tol` nats."""
        return remaining(problem, state, tol)

    def leftover(self, problem, outcome: Outcome, tol) -> float:
        """Return what a run of this solver left over, in nats, to about `tol`."""
        return outcome.suboptimality

    def solve(self, problem, state, tol, max_iter, progress=unwatched) -> Outcome:
        """Return the `Outcome` of at most `max_iter` iterations from `state`."""
        return self.joined(problem, state, tol).climb(max_iter, progress)

    def joined(self, problem, state, tol) -> Run:
        """Return a run that has not made a step, and knows whose rows it fits."""
        run = self.begin(problem, state, tol)
        run.group = problem.rows.group
        return run

    def check_setting(self, setting):
        """Raise a ValueError if this solver cannot solve problems of such a `Setting`."""
        if self.needs_deterministic_noise and not setting.noise.deterministic:
            raise ValueError(
                f"{type(self).__name__} needs deterministic noise, but noise={setting.noise} draws "
                "afresh at each step: use solver=Adam(), or noise=QuasiMonteCarlo()."
            )
