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
