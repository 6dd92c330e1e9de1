"""How rows meet given theta: not at all, in order, in a chain of latents, or in one log joint.

What may be done with some rows alone follows from it: in which pieces they are evaluated, which of
them can move at once, what a batch is, which stand for all. A model names its kind once.
"""

import math
from typing import Any

import torch
from torch import Tensor

from skavi._data.rows import Rows, distinct

_FEW = 16  # times the size of a batch: rows that may be shuffled to draw one


class Coupling:
    """What a row's term and factor have to do with other rows.

    Attributes
    ----------
    independent : bool
        Whether a term reads nothing of other rows: any rows can be taken, in any order.
    separable : bool
        Whether factors meet in theta alone: given it, each row's problem is its own.
    """

    independent = False
    separable = False

    # --- rows apart -----------------------------------------------------------------------------

    def pieces(self, n_rows: int, size: int) -> list[slice]:
        """Cut rows into pieces of at most `size` that can be evaluated apart; else one piece."""
        return [slice(0, n_rows)]

    def distinct(self, X) -> tuple[Any, Tensor]:
        """Return rows, equal ones once where that may be, and the index that makes X of them."""
        return X, torch.arange(len(X), device=X.device)

    def needed_for(self, index: Tensor) -> Tensor | None:
        """Return the rows that must be evaluated with those at `index`; None: all."""
        return None

    def n_colours(self, n_rows: int) -> int:
        """Count groups of rows that meet in no term: every so-manieth row can move at once."""
        raise NotImplementedError

    def shares(self, change: Tensor, index: Tensor) -> Tensor:
        """Return what each row at `index`, all of one colour, has changed of all terms."""
        return change[index]

    # --- some rows for all ----------------------------------------------------------------------

    def batch(self, n_rows: int, size: int, generator) -> tuple[Tensor, int, float]:
        """Draw rows of a stochastic step: a piece of the series.

        Returns
        -------
        index : Tensor
        lead : int
            How many at the front are there only for the next one to read.
        scale : float
            What makes the sum of the batch's terms an unbiased estimate of that of all rows.
        """
        n_pieces = math.ceil(n_rows / size)
        first = size * int(torch.randint(n_pieces, (), generator=generator))
        lead = min(first, 1)
        return torch.arange(first - lead, min(first + size, n_rows)), lead, float(n_pieces)

    def batch_size(self, n_rows: int, size: int) -> int | None:
        """Return the size of batches where rows make more than two of them; None: all rows."""
        return size if n_rows > 2 * size else None

    def representatives(self, rows: Rows) -> Rows | None:
        """Return a few rows that stand for all: the first ones.

        None where some of the rows would be another model.
        """
        return rows.first()

    def coreset(self, rows: Rows, features: Tensor, most: int) -> tuple[Tensor, Tensor] | None:
        """Return indices and weights of at most so many rows that stand for all.

        None where some of the rows would be another model.
        """
        return None

    # --- what may be asked ----------------------------------------------------------------------

    def terms(self, value: Tensor, n_rows: int) -> Tensor:
        """Return the terms of a log joint in which each has this value."""
        return value.expand(n_rows)

    def require_row_terms(self, what: str, name: str, remedy: str) -> None:
        """Raise a ValueError if the log joint is one number, so that a row has no term."""

    def require_independent(self, what: str, name: str, remedy: str) -> None:
        """Raise a ValueError unless any rows can be taken, in any order."""
        if not self.independent:
            _refuse(what, name, remedy)

    def require_separable(self, what: str, name: str, remedy: str) -> None:
        """Raise a ValueError unless factors meet in theta alone."""
        if not self.separable:
            _refuse(what, name, remedy)


class Independent(Coupling):
    """p(theta) prod_n p(z_n, x_n | theta)."""

    independent = separable = True

    def pieces(self, n_rows, size):
        return [slice(first, min(first + size, n_rows)) for first in range(0, n_rows, size)]

    def distinct(self, X):
        return distinct(X)

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


class Series(Coupling):
    """p(theta) prod_n p(z_n, x_n | x_{n-1}, theta): rows in order, each a problem of its own."""

    separable = True

    def n_colours(self, n_rows):
        return 1

    def coreset(self, rows, features, most):
        if rows.n_total <= most:
            return everyone(rows)
        index = torch.arange(most, device=features.device)
        return index, rows.take(index).weights * rows.n_total / most


class Chain(Coupling):
    """p(theta) prod_n p(z_n, x_n | z_{n-1}, theta): a latent meets its neighbours'."""

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
