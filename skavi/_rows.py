"""Rows of X as the library holds them: tensors with weights, and windows of neighbouring rows."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """A data matrix and its rows' weights.

    Attributes
    ----------
    X : Tensor of shape (n_rows, n_features)
    weights : Tensor of shape (n_rows,)
        How often each row's ELBO term counts.
    """

    X: Tensor
    weights: Tensor

    @property
    def total_weight(self) -> float:
        """Sum of the weights: the number of rows when all weights are one."""
        return float(self.weights.sum())

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index) -> "Rows":
        return Rows(self.X[index], self.weights[index])


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


def distinct(X: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows of X, and the index that puts them back: ``rows[index]`` is X.

    Evaluating each once makes equal rows' results equal to the last bit, which vectorised code
    does not: where a row stands decides how its sums are rounded. Rows are told apart by an exact
    integer hash, far faster than by sorting them.
    """
    bits = (X + 0.0).contiguous().view(torch.int64)  # -0.0 becomes 0.0
    generator = torch.Generator().manual_seed(0)
    odd = 2 * torch.randint(2**62, (X.shape[1],), generator=generator) + 1
    mixed = bits ^ (bits >> 29)  # round numbers have no low bits: bring the high ones down
    hashes, index = torch.unique((mixed * odd.to(X.device)).sum(1), return_inverse=True)
    first = torch.empty_like(hashes)
    first[index.flip(0)] = torch.arange(len(X) - 1, -1, -1, device=X.device)
    rows = X[first]
    if torch.allclose(rows[index], X, rtol=0, atol=0, equal_nan=True):
        return rows, index
    return X, torch.arange(len(X), device=X.device)  # two rows of one hash: once in 2 ** 64
