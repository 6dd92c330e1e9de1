"""Hidden units that turn between two rows whose targets differ.

Where two optima of a row's factor are equally good, the function must jump between neighbouring
rows; random units rarely turn there. These units do: rows are drawn in pairs, with chances that
grow with the difference of their targets, and some pairs are narrowed to the two neighbouring rows
between which the targets change. One unit passes through its span from one row of a pair to the
other, and a second unit in the opposite direction.
"""

import torch
from torch import Tensor

#: Pairs of rows to choose from: many times as many as units. Not measured: order of magnitude.
_CANDIDATES = 1000
#: Halvings of a pair at most: 2 ** -40 is 1e-12, a distance at which rows coincide.
_HALVINGS = 40
#: Of half the pair's distance: a row nearer to the middle lies between. Below 1, so that pairs
#: shrink.
_BETWEEN = 0.9
#: Of the largest distance: nearer rows are equal up to rounding (1e-16, after some sums).
_COINCIDE = 1e-12
#: Of a pair's distance, at either end: a unit turns between rows, never at one
#: (test_turning_units).
_MARGIN = 0.25


def turning_units(
    rows: Tensor,
    targets: Tensor,
    weights: Tensor,
    count: int,
    span: tuple[float, float],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return weights and biases of units that read rows and turn where targets change.

    Parameters
    ----------
    rows : Tensor of shape (n_rows, n_inputs)
    targets : Tensor of shape (n_rows, n_outputs)
        In comparable units.
    weights : Tensor of shape (n_rows,)
        A row's chance to be drawn.
    count : int
        Number of units.
    span : (float, float)
        A unit's input near the first row of a pair, and near the second.
    generator : torch.Generator

    Returns
    -------
    (Tensor of shape (n_inputs, count), Tensor of shape (count,))

    Notes
    -----
    Source: Bolager et al. (2023), "Sampling weights of deep neural networks", which draws pairs by
    slope; narrowing them down, and the margin, are our own.
    """
    first, second = (_draw(weights, _CANDIDATES, generator) for _ in range(2))
    distance = (rows[first] - rows[second]).norm(dim=1)
    change = (targets[first] - targets[second]).norm(dim=1)
    change = torch.where(distance > _COINCIDE * distance.amax(), change, 0.0)
    n_pairs = (count + 1) // 2
    n_narrow = (n_pairs + 1) // 2
    narrow = _draw(change, n_narrow, generator)
    steep = _draw(change / distance.clamp_min(1e-300), n_pairs - n_narrow, generator)
    narrowed = _narrow(rows, targets, first[narrow], second[narrow])
    low, high = (
        torch.cat([near, wide[steep]]) for near, wide in zip(narrowed, (first, second), strict=True)
    )
    along = rows[high] - rows[low]
    inner = 1 - 2 * _MARGIN
    slope = along * (
        (span[1] - span[0]) / inner / along.square().sum(1, keepdim=True).clamp_min(1e-300)
    )
    begin = torch.cat([rows[low] + _MARGIN * along, rows[high] - _MARGIN * along])[:count]
    slope = torch.cat([slope, -slope])[:count]
    return slope.mT.contiguous(), span[0] - (slope * begin).sum(1)


def _draw(chance, count, generator):
    """Draw indices, with replacement, by chances that need not add up to one."""
    chance = torch.nan_to_num(chance, nan=0.0, posinf=0.0)
    chance = chance / chance.amax().clamp_min(1e-300) + 1e-12  # uniform if all chances are zero
    sums = chance.cumsum(0)
    at = torch.rand(count, generator=generator, dtype=torch.float64).to(sums) * sums[-1]
    return torch.searchsorted(sums, at).clamp_max(len(chance) - 1)


def _narrow(rows, targets, low, high):
    """Replace one row of each pair by a row between them, the pair with the larger change left.

    This is repeated while there is such a row.
    """
    for _ in range(_HALVINGS):
        middle, half = 0.5 * (rows[low] + rows[high]), 0.5 * (rows[low] - rows[high]).norm(dim=1)
        distance = torch.cdist(
            middle,
            rows,
            compute_mode="donot_use_mm_for_euclid_dist",  # it rounds small distances to 0
        )
        nearest, between = distance.min(1)
        found = nearest < _BETWEEN * half
        if not found.any():
            break
        before = (targets[low] - targets[between]).norm(dim=1)
        after = (targets[between] - targets[high]).norm(dim=1)
        high = torch.where(found & (before >= after), between, high)
        low = torch.where(found & (before < after), between, low)
    return low, high
