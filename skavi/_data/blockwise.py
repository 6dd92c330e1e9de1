"""A function of rows evaluated in blocks: in bounded memory, and equal rows to the last bit.

Where a row stands can decide how its sums are rounded, but only by the shape of the block and its
place in it. So all blocks have one shape, and a block of equal rows tells beforehand whether the
place matters; where it does, distinct rows are evaluated once each.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from skavi._data.rows import distinct

_SIZES = {"cpu": 4096}
_SIZE = 65_536


def evaluated(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Return ``function(inputs)`` of a function of rows, equal rows' equal to the last bit.

    Parameters
    ----------
    function : callable
        Map from (n, n_inputs) to (n, n_outputs).
    inputs : Tensor of shape (n_rows, n_inputs)

    Returns
    -------
    Tensor of shape (n_rows, n_outputs)
    """
    n, size = len(inputs), _SIZES.get(inputs.device.type, _SIZE)
    if n < 2 * size or not _blind_to_place(function, inputs, size):
        rows, index = distinct(inputs)
        return torch.cat([function(part) for part in rows.split(size)])[index]
    outputs: Tensor | None = None
    for first in range(0, n, size):
        first = min(first, n - size)  # the last block has some rows of the one before
        block = function(inputs[first : first + size])
        if outputs is None:
            outputs = block.new_empty(n, *block.shape[1:])
        outputs[first : first + size] = block
    assert outputs is not None
    return outputs


def _blind_to_place(function, inputs, size):
    """Say whether equal rows in a block have equal outputs, wherever they stand."""
    block = function(inputs[:1].expand(size, -1).contiguous())
    return bool((block == block[:1]).all())
