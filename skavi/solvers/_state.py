"""The variables of a solver, and the length of a natural step in each of them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skavi.inference_functions import Parameters


@dataclass(frozen=True)
class State:
    """What a solver moves: unconstrained ("raw") numbers.

    Attributes
    ----------
    raw_locals : Tensor of shape (n_rows, P), or None
        Factors of the rows that this rank holds, where each row has its own; None where an
        inference function gives them.
    shared : dict of str to Tensor
        Parameters of the inference function, the same on all ranks; empty where rows have their own
        factors.
    raw_globals : Tensor
        Of q(theta), the same on all ranks.

    Examples
    --------
    >>> import torch
    >>> from skavi.solvers import State
    >>> State(torch.zeros(3, 2), {}, torch.zeros(2)).raw_locals.shape
    torch.Size([3, 2])
    """

    raw_locals: Tensor | None
    shared: Parameters
    raw_globals: Tensor

    @property
    def n_owned(self) -> int:
        """How many of `tensors` belong to this rank's rows only: the first one, or none."""
        return int(self.raw_locals is not None)

    def tensors(self, with_globals: bool = True) -> list[Tensor]:
        """Return all tensors in order: of the rows, of the function, of q(theta)."""
        own = [] if self.raw_locals is None else [self.raw_locals]
        return [*own, *self.shared.values(), *([self.raw_globals] if with_globals else [])]

    def with_tensors(self, tensors: list[Tensor]) -> "State":
        """Return the state of these `tensors`; q(theta) is unchanged if its tensor is missing."""
        tensors = list(tensors)
        raw_locals = tensors.pop(0) if self.n_owned else None
        shared = {name: tensors.pop(0) for name in self.shared}
        return State(raw_locals, shared, tensors.pop() if tensors else self.raw_globals)

    def of_rows(self, index) -> "State":
        """Return the state for the rows at `index` alone."""
        if self.raw_locals is None:
            return self
        return replace(self, raw_locals=self.raw_locals[index])

    def to(self, dtype: torch.dtype) -> "State":
        """Return the same numbers in another precision."""
        return self.with_tensors([tensor.to(dtype) for tensor in self.tensors()])

    def copied(self) -> "State":
        """Return a copy, contiguous in memory."""
        layout = torch.contiguous_format
        return self.with_tensors([each.clone(memory_format=layout) for each in self.tensors()])


def natural_steps(problem, state) -> State:
    """Return the length of a natural step in each number of the state.

    For the parameters of factors it is the family's (`Family.steps`), for the parameters of a
    function it is one. Where q(theta) starts narrow, steps are as long as from the usual start.
    """
    objective = problem.objective
    factor = objective.global_factor(state.raw_globals)
    wide = replace(factor, scale=objective.model.widening * factor.scale)
    raw_globals = objective.global_family.steps(wide)
    shared = {name: torch.ones_like(value) for name, value in state.shared.items()}
    raw_locals = state.raw_locals
    if raw_locals is not None:
        raw_locals = objective.family.steps(objective.local_factors(raw_locals))
    return State(raw_locals, shared, raw_globals)
