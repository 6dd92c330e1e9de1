"""The base of Newton systems: a step from the current iterate, and a search along it for a gain."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from skavi._numerics.sums import add_up
from skavi.solvers._state import State

#: Factor of a step that does not gain.
_SHRINK = 0.25
#: Lengths that are tried: the last is 2e-7 of the step.
_TRIALS = 12
#: Dampings that are tried in turn where no length of a step gains, relative to the mean curvature:
#: with the last, a step follows the gradient. Not measured: order of magnitude.
_DAMPINGS = (0.0, 1e-3, 3e-2, 1.0, 30.0, 1e3)
#: Globals: each adds two backward passes a step, and two numbers for each row parameter. Not
#: measured.
_MAX_GLOBALS = 1250
#: Longest step of a log sd: an sd changes by a factor of exp(2) = 7.4 at most.
LONGEST_LOG_STEP = 2.0


@dataclass(frozen=True)
class Step:
    """A proposed step; subclasses add what their system's `move` needs.

    Attributes
    ----------
    unknowns, raw_globals : Tensor
        The step, in plain units.
    decrement : float
        Estimated gain of the step, in nats: half the gradient times the step.
    gradient_norm : float
        In natural units, nats a row.
    damping : float
        With which the step was computed, but not its decrement.
    """

    unknowns: Any
    raw_globals: Tensor
    decrement: float
    gradient_norm: float
    damping: float = field(default=0.0, kw_only=True)


@dataclass(frozen=True)
class Move:
    """The result of the search along a step.

    Attributes
    ----------
    unknowns, raw_globals, value : Tensor
        Unchanged if no length of the step gained.
    gained : bool
    damping : float
        For the next step.
    tangents : list of (Tensor, Tensor)
        Tangents of the ELBO, where it has kinks: slope and constant.
    left : float
        Estimate of what is left where no step gains, in nats.
    again : bool
        Whether a step from the same place with this damping may gain.
    """

    unknowns: Tensor
    raw_globals: Tensor
    value: Tensor
    gained: bool
    damping: float = 0.0
    tangents: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    left: float = math.inf
    again: bool = False


class System(ABC):
    """The ELBO as a function of unknowns and of q(theta)'s raw parameters."""

    #: Damping of the first step, relative to the size of the curvature.
    first_damping: float = 0.0
    #: Whether the system is summed over pieces of rows.
    in_pieces: bool = False
    #: Whether steps ignore some curvature, so that the decrement does not estimate what is left.
    damped: bool = False

    def __init__(self, problem):
        self.problem, self.objective = problem, problem.objective
        self.weights, self.ranks = problem.rows.weights, problem.rows.ranks
        self.frozen = problem.frozen_globals

    @classmethod
    def check(cls, setting) -> None:
        """Raise a ValueError if the system is too large in such a setting."""
        if setting.objective.space.size > _MAX_GLOBALS:
            raise ValueError(
                f"Newton handles up to {_MAX_GLOBALS} globals, this model has "
                f"{setting.objective.space.size}: use solver=LBFGS()."
            )

    @classmethod
    def suits(cls, setting) -> bool:
        """Say whether steps on this system are expected to be fast in such a setting."""
        return True

    def row_values(self, raw, raw_globals):
        return self.weights * self.problem.row_terms(raw, raw_globals)

    def elbo(self, value):
        """Return the ELBO, in nats, from what `value` returned."""
        return float(value)

    def total(self, raw, raw_globals):
        value = self.ranks.sum(add_up(self.row_values(raw, raw_globals).reshape(-1)))
        return value if self.frozen else value + self.objective.global_term(raw_globals)

    @abstractmethod
    def read(self, state) -> Tensor:
        """Return the unknowns of a state."""

    @abstractmethod
    def write(self, unknowns, raw_globals) -> State:
        """Return the state of unknowns and of q(theta)."""

    @abstractmethod
    def value(self, unknowns, raw_globals) -> Tensor:
        """Return the ELBO, in a form that `elbo` reads."""

    @abstractmethod
    def step(self, unknowns, raw_globals, damping: float = 0.0, tangents=()) -> Step:
        """Return a step from here, with `damping` and `tangents` of the last `Move`."""

    def move(self, unknowns, raw_globals, value, step) -> Move:
        """Shorten the step until the ELBO rises."""
        for trial in range(_TRIALS):
            scale = _SHRINK**trial
            moved = raw_globals if self.frozen else raw_globals + scale * step.raw_globals
            new = unknowns + scale * step.unknowns
            new_value = self.value(new, moved)
            if torch.isfinite(new_value) and new_value > value:
                return Move(new, moved, new_value, True, less_damping(step.damping))
        return no_move(unknowns, raw_globals, value, step.damping)


def less_damping(damping: float) -> float:
    """Return the damping after a step that gained."""
    return _DAMPINGS[max(_DAMPINGS.index(damping) - 1, 0)]


def no_move(unknowns, raw_globals, value, damping: float) -> Move:
    """Return the move of a step that gained at no length: none, and more damping if there is."""
    more = [larger for larger in _DAMPINGS if larger > damping]
    return Move(unknowns, raw_globals, value, False, min(more, default=damping), again=bool(more))


def damped(matrix: Tensor, damping: float) -> Tensor:
    """Add `damping` times the mean curvature to a positive definite matrix."""
    if not damping:
        return matrix
    lift = damping * matrix.diagonal().mean()
    return matrix + lift * torch.eye(len(matrix)).to(matrix)
