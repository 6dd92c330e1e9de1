"""Rows of X as tensors with weights; windows of rows; distinct rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skavi._data.grouped_rows import GroupedRows
from skavi._data.process_ranks import ALONE, RankGroup, joined
from skavi._data.sparse_rows import SparseRows
from skavi._numerics.sums import add_up

#: Rows hashed at once: 3 MB at 50 columns, so that no second X is held (0550e92).
_CHUNK = 8_192
#: Rows that represent all: q(theta) from them is a start, which the fit improves. Not measured:
#: order of magnitude.
_REPRESENTATIVES = 2000
#: Rows drawn to see whether any repeat: where every row of a million is there twice, 10,000 hold 50
#: equal pairs on average.
_LOOKED_AT = 10_000
#: Share of distinct rows above which equal rows are not merged: it would spare too little.
_MOSTLY_DISTINCT = 0.9


@dataclass(frozen=True)
class Rows:
    """A data matrix and its rows' weights.

    Attributes
    ----------
    X : Tensor of shape (n_rows, n_features)
    weights : Tensor of shape (n_rows,)
        How often each row's ELBO term counts.
    ranks : RankGroup
        The ranks among which all rows are divided.
    """

    X: Tensor
    weights: Tensor
    ranks: RankGroup = ALONE

    @property
    def total_weight(self) -> float:
        """Sum of the weights of all ranks' rows: their number when all weights are one."""
        return float(self.ranks.sum(add_up(self.weights)))

    @property
    def n_total(self) -> int:
        """How many rows all ranks hold."""
        return self.ranks.count(len(self))

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index) -> "Rows":
        """Return some rows of this rank, without those of other ranks."""
        return Rows(self.X[index], self.weights[index])

    def holds(self, index: Tensor) -> Tensor:
        """Say of each index into all ranks' rows whether this rank holds it."""
        first = self.ranks.first
        return (index >= first) & (index < first + len(self))

    def take(self, index: Tensor) -> "Rows":
        """Return the rows at an ascending index into the rows of all ranks, on every rank."""
        return Rows(self.ranks.take(self.X, index), self.ranks.take(self.weights, index))

    def merged(self) -> "Rows":
        """Return each distinct row once, with the summed weights of its equals, in their order.

        The same rows where few of them repeat. Every rank merges its own.
        """
        found = self._distinct() if self._repeats() else None
        if not self.ranks.any(found is not None):
            return self
        X, weights = (self.X, self.weights) if found is None else found
        return Rows(X, weights, self.ranks.of_rows(len(X), X.shape[1]))

    def _repeats(self):
        """Say, at little cost, whether rows seem to repeat."""
        n, some = len(self), self.X
        if n > _LOOKED_AT:
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randperm(n, generator=generator)[:_LOOKED_AT]
            some = take_rows(some, drawn.to(self.weights.device))
        return len(torch.unique(_hash_rows(some))) < len(some)

    def _distinct(self):
        """Return distinct rows in order of first appearance and their weights; None if too many."""
        X, index = distinct(self.X)
        if len(X) > _MOSTLY_DISTINCT * len(self):
            return None
        weights = self.weights.new_zeros(len(X)).index_add_(0, index, self.weights)
        order = first_places(index, len(X)).argsort()
        return take_rows(X, order), weights[order]

    def first(self) -> "Rows":
        """Return the first 2,000 rows, with their own weights."""
        return self if self.n_total <= _REPRESENTATIVES else self[:_REPRESENTATIVES]

    def thinned(self) -> "Rows":
        """Return at most 2,000 rows, evenly spaced, with the total weight of all rows."""
        n, most = self.n_total, _REPRESENTATIVES
        if n <= most:
            return self
        few = self.take(torch.linspace(0, n - 1, most).round().long().to(self.X.device))
        return Rows(few.X, few.weights * self.total_weight / max(float(few.weights.sum()), 1e-300))

    def coreset(self, features: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Return the index and weights of `most` rows that represent all.

        A row is chosen with a probability that is half uniform, half proportional to its squared
        distance from the mean, so that distant rows are not missed; weights correct for it. Source:
        Bachem, Lucic & Krause (2018), "Scalable k-means clustering via lightweight coresets".
        """
        ranks = self.ranks
        share = self.weights / ranks.sum(add_up(self.weights))
        centre = ranks.sum(share @ features)
        distance = share * ((features - centre) ** 2).sum(-1)
        spread = ranks.sum(add_up(distance)).clamp_min(1e-300)
        chance = ranks.gather(0.5 * share + 0.5 * distance / spread)
        at = (torch.arange(most).to(chance) + 0.5) / most * add_up(chance)
        index = torch.searchsorted(chance.cumsum(0), at).clamp_max(self.n_total - 1)
        return index, self.take(index).weights / (most * chance[index])

    def ask(self, method: Callable, *arguments) -> Any:
        """Call a method whose totals over rows are to include the rows of all ranks."""
        with joined(self.ranks):
            return method(*arguments)


def take_rows(table, index: Tensor):
    """Return ``table[index]``, by torch's faster `index_select` where the table is dense."""
    return table.index_select(0, index) if isinstance(table, Tensor) else table[index]


def windows(X: Tensor, context: tuple[int, int], padding: float = 0.0) -> Tensor:
    """Put each row beside its `context` = (before, after) neighbours.

    Rows that do not exist (before the first, after the last) read as `padding`.

    Returns
    -------
    Tensor of shape (n_rows, (before + 1 + after) * n_features), oldest row first.
    """
    before, after = context
    if before == after == 0:
        return X
    padded = torch.nn.functional.pad(X, (0, 0, before, after), value=padding)
    return torch.cat([padded[i : i + len(X)] for i in range(before + 1 + after)], dim=1)


def distinct(X) -> tuple[Any, Tensor]:
    """Return the distinct rows of X, and the index that puts them back: ``rows[index]`` is X.

    Evaluating each distinct row once makes the results of equal rows equal to the last bit; in
    vectorised code rounding depends on a row's place. Rows are compared by an integer hash of their
    bits, which is far faster than sorting.
    """
    hashes, index = torch.unique(_hash_rows(X), return_inverse=True)
    first = first_places(index, len(hashes))
    rows = X[first]
    if len(first) == len(X) or _puts_back(rows, index, X):  # different hashes: different rows
        return rows, index
    return X, torch.arange(len(X), device=X.device)  # different rows collide: once in 2 ** 64


def first_places(index: Tensor, n: int) -> Tensor:
    """Return where each of 0, ..., n - 1 appears first in an index that holds all of them."""
    first = index.new_empty(n)
    first[index.flip(0)] = torch.arange(len(index) - 1, -1, -1, device=index.device)
    return first


def _hash_rows(X):
    """Return a hash of each row's bits."""
    generator = torch.Generator().manual_seed(0)
    odd = 2 * torch.randint(2**62, (math.prod(X.shape[1:]),), generator=generator) + 1
    odd = odd.to(X.device)
    if isinstance(X, SparseRows):
        return X.over_rows(_mix_bits(X.values) * odd[X.columns])
    return torch.cat([(_mix_bits(part.flatten(1)) * odd).sum(1) for part in X.split(_CHUNK)])


def _mix_bits(values):
    """Return the bits of float64 values as integers, with the high bits mixed into the low."""
    bits = (values + 0.0).contiguous().view(torch.int64)  # -0.0 becomes 0.0
    return bits ^ (bits >> 29)  # the low bits of round numbers are all zero


def _puts_back(rows, index, X):
    """Say whether ``rows[index]`` equals X, without a second copy of X in memory."""
    if isinstance(X, SparseRows):
        return X.equals(rows[index])
    parts = zip(X.split(_CHUNK), index.split(_CHUNK), strict=True)
    return all(
        torch.allclose(part, rows[where], rtol=0, atol=0, equal_nan=True) for part, where in parts
    )


def cells_a_row(X) -> int:
    """Return how many numbers a row of X has: columns, or what is stored on average."""
    if isinstance(X, SparseRows | GroupedRows):
        return 1 + X.numel() // max(len(X), 1)
    return X.shape[1]
