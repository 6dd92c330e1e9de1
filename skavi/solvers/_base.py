"""The base of all solvers: a run of iterations, each a step from one memory to the next."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from skavi._component import Component
from skavi._data.process_ranks import ALONE, RankGroup
from skavi.solvers._loss import estimate_suboptimality
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
        The next iterate, if the ELBO or its derivatives are not finite there.
    stuck : bool
        Whether the run ended, before `max_iter`, because no step gains, though more is left.

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
    stuck: bool = False


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Everything that a run keeps from one iteration to the next: numbers, tensors, lists of them.

    Attributes
    ----------
    n_iter : int
        Iterations so far.
    elbo : float
        ELBO after the last iteration, in nats.
    finished : bool
        Whether the solver has ended.

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
    """The iterations of a solver on a problem.

    An iteration computes a new memory and replaces the old one in one assignment, so an interrupt
    finds one of the two complete. A new run on the same problem that is given the memory of another
    run continues exactly as that run would have.

    Attributes
    ----------
    memory : Memory
    curve : list of float
        ELBO after each iteration; only the first ``memory.n_iter`` entries count.
    ranks : RankGroup
        The ranks that hold the problem's rows.

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
    >>> run.iterate(10, lambda run: False)
    >>> run.curve
    [-2.0, -1.0, 0.0]
    """

    ranks: RankGroup = ALONE

    def __init__(self, memory):
        self.memory: Any = memory
        self.curve: list[float] = []

    @abstractmethod
    def step(self, memory):
        """Return the memory after a step; `n_iter` rises if the step counts as an iteration."""

    @abstractmethod
    def state(self) -> State:
        """Return the current state."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """Return the current state, whether it has converged, and what is left."""

    def iterate(self, max_iter: int, progress: "Progress") -> Outcome:
        """Iterate until finished, stopped by `progress`, or at `max_iter` iterations in all.

        Solvers avoid steps to numbers that are not finite. Where one cannot, the run ends with its
        last finite iterate, and ``Outcome.broken`` is the next one.
        """
        while self.memory.n_iter < max_iter and not self.memory.finished:
            try:
                memory = self.step(self.memory)
            except (torch.linalg.LinAlgError, FloatingPointError) as error:
                if self.ranks.size > 1 and isinstance(error, torch.linalg.LinAlgError):
                    raise  # it depends on this rank's rows: other ranks have not failed
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
        """Continue from the fields of another run's memory, and its curve."""
        self.memory = replace(self.memory, **memory)
        self.curve = list(curve)


Progress = Callable[[Run], bool]
"""Called with the run after each iteration; True stops it."""


def unwatched(_):
    """Ignore an iteration, and do not stop."""
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
    #: Whether iterations use second derivatives, so that a few of them reach an optimum.
    second_order: bool = False
    #: Whether steps are the model's closed-form updates, which always use the model's own prior.
    uses_model_updates: bool = False

    @abstractmethod
    def begin(self, problem, state, tol) -> Run:
        """Return a run before its first step.

        Parameters
        ----------
        problem : Problem
        state : State
            Where to start.
        tol : float
            Suboptimality to reach, in nats a row.
        """

    def suits(self, setting) -> bool:
        """Say whether this solver is expected to be fast in such a `Setting`."""
        return True

    def prepare(self, problem, state):
        """Return an equivalent problem and state on which this solver is faster."""
        return problem, state

    def curvature_at(self, problem, state) -> Any:
        """Return second derivatives with which `suboptimality_at` need not find its own, or None.

        They hardly differ from one noise rule to a finer one, but take a pass for each number.
        """
        return None

    def suboptimality_at(self, problem, state, tol, curvature=None) -> float:
        """Estimate by one Newton step how far a state is below the optimum, to about `tol` nats."""
        return estimate_suboptimality(problem, state, tol)

    def suboptimality_of(self, problem, outcome: Outcome, tol) -> float:
        """Estimate how far a run of this solver ended below the optimum, to about `tol` nats."""
        return outcome.suboptimality

    def solve(self, problem, state, tol, max_iter, progress=unwatched) -> Outcome:
        """Return the `Outcome` of at most `max_iter` iterations from `state`."""
        return self.start_run(problem, state, tol).iterate(max_iter, progress)

    def start_run(self, problem, state, tol) -> Run:
        """Return a run before its first step that shares the problem's ranks."""
        run = self.begin(problem, state, tol)
        run.ranks = problem.rows.ranks
        return run

    def check_setting(self, setting):
        """Raise a ValueError if this solver cannot solve problems of such a `Setting`."""
        if self.needs_deterministic_noise and not setting.noise.deterministic:
            raise ValueError(
                f"{type(self).__name__} needs deterministic noise, but noise={setting.noise} draws "
                "afresh at each step: use solver=Adam(), or noise=QuasiMonteCarlo()."
            )
