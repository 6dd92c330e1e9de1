"""Regressions over the rows of all ranks, for the start of inference functions."""

import math

import torch
from torch import Tensor

from skavi._data.process_ranks import squeezed, total
from skavi._numerics.sums import add_up


def least_squares(features: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted least-squares solution of smallest norm; NaN if rows are not finite."""
    rows = squeezed(weights.sqrt().unsqueeze(-1) * torch.cat([features, targets], 1)).cpu()
    left, right = rows[:, : features.shape[1]], rows[:, features.shape[1] :]
    if not torch.isfinite(rows).all():  # LAPACK would raise
        return features.new_full((features.shape[1], targets.shape[1]), math.nan)
    return torch.linalg.lstsq(left, right, driver="gelsd").solution.to(features)


def ridge_regression(
    hidden: Tensor, rest: Tensor, weights: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """Regress `rest` on hidden units, each scaled by its own size, and a bias, with a ridge."""
    design = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1)
    weighted = weights.unsqueeze(-1) * design
    sums = design.mT @ weighted, weighted.mT @ rest, add_up(weights)
    gram, cross, weight = (total(part) for part in sums)
    size = (gram.diagonal() / weight).sqrt()
    size = torch.where(size > 0, size, 1.0)
    gram, cross = gram / (weight * size * size[:, None]), cross / (weight * size[:, None])
    gram.diagonal().add_(ridge)
    solution = torch.linalg.solve_ex(gram, cross).result / size[:, None]
    return solution[:-1], solution[-1]
