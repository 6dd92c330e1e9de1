"""How rows depend on each other given theta: not at all, in a series, in a chain, or jointly.

It decides what can be done with some of the rows: in which pieces they are evaluated, which of
them can move at once, what a batch is, and which represent all. A model names its kind once.
"""

import math
from typing import Any

import torch
from torch import Tensor

from skavi._data.rows import Rows, distinct

#: Times the size of a batch: with fewer rows a shuffle of all is quick (decoder_step.json).
_FEW = 16


class Coupling:
    """How a row's term and factor depend on other rows.

    Attributes
    ----------
    independent : bool
        Whether a term reads nothing of other rows: any rows can be taken, in any order.
    separable : bool
        Whether factors depend on each other through theta alone: given theta, each row is a
        problem of its own.
    """

    independent = False
    separable = False

    # --- some of the rows -----------------------------------------------------------------------

    def pieces(self, n_rows: int, size: int) -> list[slice]:
        """Cut rows into pieces of at most `size` to evaluate one by one; one piece if coupled."""
        return [slice(0, n_rows)]

    def distinct(self, X) -> tuple[Any, Tensor]:
        """Return rows and the index that restores X; equal rows are kept once where possible."""
        return X, torch.arange(len(X), device=X.device)

    def merged(self, rows: Rows) -> Rows:
        """Return rows in which equal ones are one of their summed weight, where possible."""
        return rows

    def needed_for(self, index: Tensor) -> Tensor | None:
        """Return the rows that must be evaluated with those at `index`; None: all."""
        return None

    def n_colours(self, n_rows: int) -> int:
        """Return the least n for which every n-th row can move at once: they share no term."""
        raise NotImplementedError

    def shares(self, change: Tensor, index: Tensor) -> Tensor:
        """Return, for each row at `index` (of one colour), the change of all terms that it causes.

        Parameters
        ----------
        change : Tensor
            Of every term, when all rows at `index` have moved.
        index : Tensor
        """
        return change[index]

    # --- rows that represent all ----------------------------------------------------------------

    def batch(self, n_rows: int, size: int, generator) -> tuple[Tensor, int, float]:
        """Draw rows of a stochastic step: a piece of the series.

        Returns
        -------
        index : Tensor
        lead : int
            How many rows at the front only serve as context of the next row.
        scale : float
            Factor that makes the sum of the batch's terms an unbiased estimate of the full sum.
        """
        n_pieces = math.ceil(n_rows / size)
        first = size * int(torch.randint(n_pieces, (), generator=generator))
        lead = min(first, 1)
        return torch.arange(first - lead, min(first + size, n_rows)), lead, float(n_pieces)

    def batch_size(self, n_rows: int, size: int) -> int | None:
        """Return `size` if the rows fill more than two batches, else None: take all rows."""
        return size if n_rows > 2 * size else None

    def representatives(self, rows: Rows) -> Rows | None:
        """Return a few rows that represent all: the first ones.

        None where a part of the rows would follow another model.
        """
        return rows.first()

    def coreset(self, rows: Rows, features: Tensor, most: int) -> tuple[Tensor, Tensor] | None:
        """Return indices and weights of at most `most` rows that represent all.

        None where a part of the rows would follow another model.
        """
        return None

    # --- a user's table -------------------------------------------------------------------------

    def table_pieces(self, n_rows: int, size: int) -> list[slice]:
        """Cut a user's table into pieces of at most `size` rows that can be read one by one."""
        return self.pieces(n_rows, size)

    # --- requirements ---------------------------------------------------------------------------

    def terms(self, value: Tensor, n_rows: int) -> Tensor:
        """Return the terms of a log joint, all equal to `value`."""
        return value.expand(n_rows)

    def require_row_terms(self, what: str, name: str, remedy: str) -> None:
        """Raise a ValueError if the log joint is one number without terms of rows."""

    def require_independent(self, what: str, name: str, remedy: str) -> None:
        """Raise a ValueError unless rows are independent given theta."""
        if not self.independent:
            _refuse(what, name, remedy)

    def require_separable(self, what: str, name: str, remedy: str) -> None:
        """Raise a ValueError unless factors depend on each other through theta alone."""
        if not self.separable:
            _refuse(what, name, remedy)


class Independent(Coupling):
    """p(theta) prod_n p(z_n, x_n | theta)."""

    independent = separable = True

    def pieces(self, n_rows, size):
        return [slice(first, min(first + size, n_rows)) for first in range(0, n_rows, size)]

    def distinct(self, X):
        return distinct(X)

    def merged(self, rows):
        return rows.merged()

    def needed_for(self, index):
        return index

    def n_colours(self, n_rows):
        return 1

    def batch(self, n_rows, size, generator):
        drawn = draw_rows(n_rows, min(size, n_rows), generator)
        return drawn, 0, n_rows / len(drawn)

    def representatives(self, rows):
        return rows.thinned()

    def coreset(self, rows, features, most):
        if rows.n_total <= most:
            return everyone(rows)
        return rows.coreset(features, most)


class Units(Independent):
    """p(theta) prod_g p(z_g, x_g | theta): a unit g is a set of rows of a user's table.

    What the engine calls a row is a unit here (`skavi._data.grouped_rows`).
    """

    def distinct(self, X):
        return Coupling.distinct(self, X)

    def merged(self, rows):
        return rows

    def table_pieces(self, n_rows, size):
        return [slice(0, n_rows)]


class Series(Coupling):
    """p(theta) prod_n p(z_n, x_n | x_{n-1}, theta): a row depends on the row before, not on z."""

    separable = True

    def n_colours(self, n_rows):
        return 1

    def coreset(self, rows, features, most):
        if rows.n_total <= most:
            return everyone(rows)
        index = torch.arange(most, device=features.device)
        return index, rows.take(index).weights * rows.n_total / most


class Chain(Coupling):
    """p(theta) prod_n p(z_n, x_n | z_{n-1}, theta): latents depend on their neighbours."""

    def n_colours(self, n_rows):
        return 2

    def shares(self, change, index):
        padded = torch.cat([change, change.new_zeros(1)])
        return padded[index] + padded[index + 1]


class Joint(Coupling):
    """p(theta) p(z, X | theta): one number for all rows."""

    def n_colours(self, n_rows):
        return n_rows

    def shares(self, change, index):
        return change

    def representatives(self, rows):
        return None

    def batch_size(self, n_rows, size):
        return None

    def terms(self, value, n_rows):
        return value

    def require_row_terms(self, what, name, remedy):
        raise ValueError(
            f"{what} needs a term a row, but {name} gives one log joint for all rows: {remedy}."
        )


def everyone(rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the index and the weights of all ranks' rows."""
    index = torch.arange(rows.n_total, device=rows.weights.device)
    return index, rows.take(index).weights


INDEPENDENT, SERIES, CHAIN, JOINT = Independent(), Series(), Chain(), Joint()
UNITS = Units()


def of_kind(choices: dict[type[Coupling], Any], coupling: Coupling) -> Any:
    """Return the choice for the nearest of a coupling's classes; None where there is none."""
    return next((choices[kind] for kind in type(coupling).__mro__ if kind in choices), None)


def draw_rows(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw `size` of n rows, all different, in time that grows with `size` alone."""
    if n <= _FEW * size:
        return torch.randperm(n, generator=generator)[:size]
    index = torch.zeros(0, dtype=torch.long)
    while len(index) < size:
        more = torch.randint(n, (size,), generator=generator)
        index = torch.cat([index, more]).unique()
    return index[torch.randperm(len(index), generator=generator)[:size]]


def _refuse(what, name, remedy):
    raise ValueError(f"{what} independent given theta, but {name} couples them: {remedy}.")
