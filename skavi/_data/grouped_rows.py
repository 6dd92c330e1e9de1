"""Rows that share a latent: a table by units, each of which is a set of the table's rows.

To the engine a unit is what a row is elsewhere: it has one factor, one term of the ELBO and one
place in a batch. Only a model's likelihood looks inside. So `len`, a slice and an index are of
units, and `table` has the rows themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupedRows:
    """A table of shape (n_rows, n_features) whose rows belong to units.

    Attributes
    ----------
    table : Tensor of shape (n_rows, n_features)
    weights : Tensor of shape (n_rows,)
        How often each row counts in its unit.
    unit : Tensor of int64 of shape (n_rows,)
        The unit of each row, 0, ..., n_units - 1.
    codes : Tensor of int64 of shape (n_units,)
        What each unit is called, as a number.
    """

    table: Tensor
    weights: Tensor
    unit: Tensor
    codes: Tensor

    @classmethod
    def by_code(cls, table: Tensor, weights: Tensor, codes: Tensor) -> "GroupedRows":
        """Gather rows of equal codes; units come in the order in which they first appear."""
        known, index = torch.unique(codes.long(), return_inverse=True)
        first = index.new_full((len(known),), len(index))
        here = torch.arange(len(index), device=index.device)
        first = first.scatter_reduce(0, index, here, "amin")
        order = first.argsort()
        return cls(table, weights, order.argsort()[index], known[order])

    @classmethod
    def of(cls, X: "Tensor | GroupedRows") -> "GroupedRows":
        """Return grouped rows unchanged; of a plain table, each row is a unit of its own."""
        if isinstance(X, GroupedRows):
            return X
        everyone = torch.arange(len(X), device=X.device)
        return cls(X, X.new_ones(len(X)), everyone, everyone)

    # --- the interface of a dense tensor --------------------------------------------------------

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def shape(self) -> tuple[int, int]:
        """(n_units, n_features)."""
        return len(self), self.table.shape[1]

    @property
    def dtype(self):
        """Dtype of the table."""
        return self.table.dtype

    @property
    def device(self):
        """Device of the table."""
        return self.table.device

    def numel(self) -> int:
        """Count the numbers of the table."""
        return self.table.numel()

    def new_zeros(self, *shape) -> Tensor:
        """Return zeros of the table's dtype and device."""
        return self.table.new_zeros(*shape)

    def new_ones(self, *shape) -> Tensor:
        """Return ones of the table's dtype and device."""
        return self.table.new_ones(*shape)

    def cpu(self) -> "GroupedRows":
        """Return the rows in the CPU's memory."""
        return GroupedRows(*(each.cpu() for each in self._tensors))

    @property
    def _tensors(self):
        return self.table, self.weights, self.unit, self.codes

    def __getitem__(self, index) -> "GroupedRows":
        """Return the units at a slice, an index or a mask, with all of their rows."""
        chosen = torch.arange(len(self), device=self.device)[index]
        if len(chosen) == len(self) and bool((chosen.diff() == 1).all()):
            return self
        sizes = self.sizes[chosen]
        ends = sizes.cumsum(0)
        shift = torch.repeat_interleave(self._starts[chosen] - (ends - sizes), sizes)
        rows = self._order[torch.arange(len(shift), device=self.device) + shift]
        unit = torch.repeat_interleave(torch.arange(len(chosen), device=self.device), sizes)
        return GroupedRows(self.table[rows], self.weights[rows], unit, self.codes[chosen])

    def gathered(self, gather: Callable[[Tensor], Tensor]) -> "GroupedRows":
        """Return the units of all ranks, of which `gather` concatenates rows of tensors."""
        rows, sizes = self._order, gather(self.sizes)
        unit = torch.repeat_interleave(torch.arange(len(sizes), device=self.device), sizes)
        table, weights = gather(self.table[rows]), gather(self.weights[rows])
        return GroupedRows(table, weights, unit, gather(self.codes))

    # --- units and their rows -------------------------------------------------------------------

    @cached_property
    def sizes(self) -> Tensor:
        """How many rows each unit has, shape (n_units,)."""
        return torch.bincount(self.unit, minlength=len(self))

    @cached_property
    def _order(self) -> Tensor:
        return torch.argsort(self.unit, stable=True)

    @cached_property
    def _starts(self) -> Tensor:
        return self.sizes.cumsum(0) - self.sizes

    @cached_property
    def first(self) -> Tensor:
        """The first row of each unit, shape (n_units,)."""
        return self._order[self._starts]

    def over_units(self, terms: Tensor) -> Tensor:
        """Sum numbers of rows, (n_rows, ...), over each unit: (n_units, ...)."""
        return terms.new_zeros(len(self), *terms.shape[1:]).index_add(0, self.unit, terms)

    def side_by_side(self, values: Tensor) -> Tensor:
        """Return numbers of rows, (n_rows, p), by unit: (n_units, most rows, p), zeros beyond."""
        most = int(self.sizes.max()) if len(self) else 0
        place = torch.arange(len(self.unit), device=self.device)
        place = place - torch.repeat_interleave(self._starts, self.sizes)
        sides = values.new_zeros(len(self), most, values.shape[1])
        sides[self.unit[self._order], place] = values[self._order]
        return sides

    def at_rows(self, values: Tensor) -> Tensor:
        """Return numbers of units, (n_units, ...), at each of their rows: (n_rows, ...)."""
        return values.index_select(0, self.unit)

    def kept(self, name: str, compute: Callable[["GroupedRows"], Any]) -> Any:
        """Return what is computed of these rows alone, once."""
        if name not in self.__dict__:
            self.__dict__[name] = compute(self)
        return self.__dict__[name]


def at_rows(X, values: Tensor) -> Tensor:
    """Return numbers of what X is made of, rows or units, at every row."""
    return X.at_rows(values) if isinstance(X, GroupedRows) else values


def shared_by_rows(X, terms: Tensor) -> Tensor:
    """Return the terms of units shared out equally over their rows, or those of rows."""
    return X.at_rows(terms / X.sizes) if isinstance(X, GroupedRows) else terms
