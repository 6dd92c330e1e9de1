"""The observed cells of a table with missing ones: their sums over rows and columns."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skavi._data.process_ranks import anywhere, total

#: Sds of a column that rounding to single precision may move its cells by. Not measured: far below
#: what stochastic steps tell apart.
_MOVED = 1e-4


@dataclass(frozen=True)
class Cells:
    """The observed cells of X; a missing one is NaN in X.

    Without missing cells every sum is the plain one, to the last bit.

    Attributes
    ----------
    values : Tensor of shape (n_rows, n_features)
        X, with zeros where a cell is missing.
    observed : Tensor of bool of shape (n_rows, n_features), or None
        Which cells are there; None: all of them.
    """

    values: Tensor
    observed: Tensor | None

    @classmethod
    def of(cls, X: Tensor) -> "Cells":
        """Return the observed cells of X."""
        if not anywhere(not _is_complete(X)):
            return cls(X, None)
        observed = ~X.isnan()
        return cls(torch.where(observed, X, torch.zeros_like(X)), observed)

    def __getitem__(self, index) -> "Cells":
        observed = None if self.observed is None else self.observed[index]
        return replace(self, values=self.values[index], observed=observed)

    def masked(self, table: Tensor) -> Tensor:
        """Return a table of one number per cell, with zeros where the cell is missing."""
        if self.observed is None:
            return table
        return torch.where(self.observed, table, torch.zeros_like(table))

    def over_columns(self, terms: Tensor) -> Tensor:
        """Sum terms of columns, (n_features, ...), over each row's cells: (1 or n_rows, ...)."""
        if self.observed is None:
            return terms.sum(0, keepdim=True)
        return torch.tensordot(self.observed.to(terms), terms, 1)

    def over_rows(self, weights: Tensor, terms: Tensor) -> Tensor:
        """Weigh and sum terms of rows, (n_rows, ...), over each column's cells: (1 or D, ...)."""
        if self.observed is None:
            return total(torch.tensordot(weights, terms, 1).unsqueeze(0))
        return total(torch.tensordot((weights.unsqueeze(-1) * self.observed).mT, terms, 1))

    def mean_of(self, weights: Tensor, table: Tensor) -> Tensor:
        """Return the columns' weighted means of a table, (n_rows, 1 or D), where cells are."""
        weight = self.over_rows(weights, torch.ones_like(weights)).reshape(-1)
        table = self.masked(table.expand_as(self.values))
        return total(weights @ table) / weight

    def mean_and_variance(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the columns' weighted means and variances, over the cells that are there."""
        weight = self.over_rows(weights, torch.ones_like(weights))
        mean = total(weights @ self.values) / weight
        return mean, total(weights @ self.masked(self.values - mean) ** 2) / weight

    def survive_single(self, weights: Tensor) -> bool:
        """Say whether single precision keeps what each column's cells differ by.

        It has seven digits: of cells near 1e9 it keeps hundreds, and no units.
        """
        _, variance = self.mean_and_variance(weights)
        moved = self.values - self.values.to(torch.float32).to(self.values)
        lost = self.mean_of(weights, moved.square())
        return not anywhere(bool((lost > _MOVED**2 * variance).logical_and(variance > 0).any()))

    def covariance(self, weights: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Return the columns' weighted covariances about `mean`, in units of `scale`.

        With missing cells each entry is over the rows that hold both columns, so the matrix is not
        always positive definite.
        """
        root = (weights / total(weights.sum())).sqrt().unsqueeze(-1)
        rows = self.masked((self.values - mean) / scale) * root
        if self.observed is None:
            return total(rows.mT @ rows)
        seen = self.observed * root
        return total(rows.mT @ rows) / total(seen.mT @ seen).clamp_min(1e-300)

    def rows_a_pair(self, weights: Tensor) -> Tensor:
        """Return how many rows hold both of two columns, on average over all pairs of columns."""
        if self.observed is None:
            return total(weights.sum())
        share = self.observed.mean(-1, dtype=weights.dtype)
        return total(weights @ share.square())


class RepeatedCells(Cells):
    """Cells each of which counts a number of times, which `observed` holds: 0 for missing ones."""

    def masked(self, table: Tensor) -> Tensor:
        """Return a table of one number per cell, times the cell's number."""
        return table if self.observed is None else table * self.observed


def _is_complete(X: Tensor) -> bool:
    """Say whether X has no missing cell: its sum is NaN if it has, as X has no infinite ones."""
    try:
        return not bool(X.sum().isnan())
    except RuntimeError:  # vmap over X allows no decision: a mask of ones does no harm
        return False
