"""Centres of clusters by k-means."""

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot

#: Steps of Lloyd's algorithm from a draw of centres: the fit itself goes on. Not measured.
_STEPS = 10


def k_means(rows: Tensor, weights: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return centres of clusters: Lloyd's steps from centres drawn by greedy k-means++.

    Each centre is the best of a few rows drawn with chances in proportion to their squared distance
    from the centres so far (Arthur & Vassilvitskii 2007, "k-means++: the advantages of careful
    seeding", sections 2.2 and 7). `generator` draws on the CPU. Neither the order of rows nor
    whether equal ones are one row of their summed weight changes what is drawn.
    """
    rows, place = torch.unique(rows, dim=0, return_inverse=True)  # in order
    weights = weights.new_zeros(len(rows)).index_add_(0, place, weights)
    centres = _drawn_centres(rows, weights, k, generator)
    before = None
    for _ in range(_STEPS):
        state = torch.cdist(rows, centres).argmin(1)
        if before is not None and torch.equal(state, before):
            break
        before = state
        member = one_hot(state, k).to(rows) * weights[:, None]
        count = member.sum(0)[:, None]
        moved = member.mT @ rows / count.clamp_min(1e-300)
        centres = torch.where(count > 0, moved, centres)
    return centres


def _drawn_centres(rows, weights, k, generator):
    n_tried = 2 + int(math.log(k))
    chosen = [_drawn(weights, 1, generator)]
    away = torch.cdist(rows, rows[chosen[0]])[:, 0] ** 2
    for _ in range(k - 1):
        chance = away * weights
        tried = _drawn(chance if bool(chance.any()) else weights, n_tried, generator)
        left = torch.minimum(torch.cdist(rows, rows[tried]) ** 2, away[:, None])
        best = (weights @ left).argmin()
        away = left[:, best]
        chosen.append(tried[best, None])
    return rows[torch.cat(chosen)]


def _drawn(chances, n, generator):
    """Draw places by inverting the distribution function, which equal neighbours share."""
    upto = chances.cumsum(0)
    at = torch.rand(n, generator=generator, dtype=torch.float64).to(upto) * upto[-1]
    return torch.searchsorted(upto, at, right=True).clamp_max(len(upto) - 1)
