"""Where a decoder starts, and whether the table that it is to explain has a scale."""

import itertools

import torch
from torch import Tensor

from skavi._data.missing_cells import Cells
from skavi._data.process_ranks import largest, total

#: Slope of a unit below zero, as in the paper's decoder (Margossian & Blei 2024).
SLOPE = 0.2
#: Share of the table's sum of squares that all cells but one have at least, or one decides its
#: scale: of 40 x 5 cells such a one is 10,000 sds of the others away.
_REST = 1e-6


def linear_layers(widths, weight_scale, loadings, bias, generator) -> dict[str, Tensor]:
    """Return weights and biases of a network that is linear, carried by pairs of units.

    Parameters
    ----------
    widths : sequence of int
        Of the inputs, the hidden layers, and the outputs.
    weight_scale : float
        Prior sd of weights, above which random ones of units without a part do not go.
    loadings : Tensor of shape (n_inputs, n_outputs)
    bias : Tensor of shape (n_outputs,)
    generator : torch.Generator
    """
    last = len(widths) - 2
    n_carried = min([widths[0], *(width // 2 for width in widths[1:-1])])
    layers: dict[str, Tensor] = {}
    carry = torch.eye(widths[0]).to(loadings)[:, :n_carried]
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(widths[:-1])):
        spread = min((2 / n_in) ** 0.5, weight_scale)  # He et al. (2015), eq. 10
        drawn = torch.randn(n_in, n_out, generator=generator, dtype=torch.float64)
        weight, pairs = (spread * drawn).to(loadings), torch.cat([carry, -carry], 1)
        weight[:, : 2 * n_carried] = 0.0
        weight[: len(pairs), : 2 * n_carried] = pairs
        layers |= {f"weight_{layer}": weight, f"bias_{layer}": weight.new_zeros(n_out)}
        carry = torch.eye(n_carried).to(loadings) / (1 + SLOPE)
        carry = torch.cat([carry, -carry])
    weight = loadings.new_zeros(widths[-2:])
    weight[: len(carry)] = carry @ loadings[:n_carried]
    return layers | {f"weight_{last}": weight, f"bias_{last}": bias}


def cell_of_all_variance(cells: Cells, weights: Tensor) -> float | None:
    """Return the cell without which next to nothing of the table's variance is left, if any."""
    mean, _ = cells.mean_and_variance(weights)
    squares = cells.masked(cells.values - mean).square()
    most = largest(squares.max()) if squares.numel() else largest(mean.new_zeros(()))
    here = squares == most
    kept = ~here if cells.observed is None else cells.observed & ~here
    rest = Cells(cells.values * kept, kept)
    count = total(weights @ kept.to(weights))
    centre = total(weights @ rest.values) / count.clamp_min(1.0)
    left = total(weights @ rest.masked(rest.values - centre).square()).sum()
    if not 0 < float(left) < _REST * float(total(weights @ squares).sum()):
        return None
    return float(largest((cells.values * here).abs().max()))
