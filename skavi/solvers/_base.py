"""What every solver is."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from skavi._component import Component
from skavi.inference_functions import Parameters


@dataclass(frozen=True)
class State:
    """What a solver moves.

    Attributes
    ----------
    parameters : dict of str to Tensor
        Of the inference function.
    globals_ : Tensor
        Raw parameters of q(theta).
    """

    parameters: Parameters
    globals_: Tensor


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
    """

    state: State
    curve: list[float]
    converged: bool
    suboptimality: float
    gradient_norm: float


Progress = Callable[[State, float], bool]
"""Called after each iteration with the state and its ELBO; True stops the fit."""


class Solver(Component):
    """Climb a problem's ELBO from a state."""

    #: Whether the solver needs the same noise at each evaluation.
    needs_deterministic_noise: bool = True

    @abstractmethod
    def solve(self, problem, state, tol, max_iter, progress):
        """Return the `Outcome` of at most `max_iter` iterations.

        Parameters
        ----------
        problem : Problem
        state : State
        tol : float
            Suboptimality to reach, in nats a row.
        max_iter : int
        progress : callable
            Called with (state, elbo) after each iteration; True stops the fit.
        """

    def check_problem(self, problem):
        """Raise a ValueError if this solver cannot solve the problem."""
        if self.needs_deterministic_noise and not problem.noise.deterministic:
            raise ValueError(
                f"{type(self).__name__} needs deterministic noise, but noise={problem.noise} draws "
                "afresh at each step: use solver=Adam(), or noise=QuasiMonteCarlo()."
            )


def natural_steps(problem, state):
    """Return the length of a natural step in each number of the state, as a `State`-like pair.

    The table's numbers and the globals are measured in the factors' own sds (`Family.steps`), the
    parameters of other functions in ones.
    """
    objective = problem.objective
    globals_ = objective.global_family.steps(objective.global_factor(state.globals_))
    parameters = {name: torch.ones_like(value) for name, value in state.parameters.items()}
    if "values" in parameters:
        factors = objective.local_factors(state.parameters["values"])
        parameters["values"] = objective.family.steps(factors)
    return parameters, globals_
