"""A function of rows evaluated in blocks: in bounded memory, and equal rows to the last bit.

A row's sums may round differently from one block to another, but this depends only on the block's
shape and on the row's place in it. So all blocks have one shape, and a trial block of equal rows
shows whether the place matters. Where it does, each distinct row is evaluated once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from skavi._data.rows import distinct

# Budgets: how much is computed at once. A budget of numbers is divided by what a row takes.

#: Rows a block of a function's output: 64 units then take 2 MB. 1.6 to 3.1 times the rows a second
#: of one pass over all rows (transform.json).
_SIZES = {"cpu": 4096}
#: Rows a block on other devices, which more rows keep busy. Not measured: order of magnitude.
_SIZE = 65_536
#: Rows copied out of a user's table at once, which may be a mapped file: `transform` takes under
#: 200 MB above X (test_memory).
COPIED_ROWS = 131_072
#: Numbers (rows x nodes x latents a row) of one evaluation of ELBO terms: 3.2 MB, to stay in the
#: cache. A step on 100,000 rows fell from 14.8 to 11.1 us a row.
EVALUATED_NUMBERS = 400_000
#: Numbers (rows x nodes x columns) of local problems solved at once: Newton's blocks then hold
#: about 100 MB (test_memory allows 200 MB).
SOLVED_NUMBERS = 150_000
#: Numbers of a network's Jacobian: 32 MB, a third-level cache (160 MB before).
JACOBIAN_NUMBERS = 4_000_000
#: Cells x draws of a final ELBO: 32 MB an array. Not measured: order of magnitude.
FINAL_CELLS = 4_000_000
#: Rows whose other optima Newton's method looks for at once: hundreds of numbers for each of 4
#: starts, about 100 MB. Not measured: order of magnitude.
SCREENED_ROWS = 20_000
#: ELBOs on a grid of means and sds: 8 MB, to stay in the cache.
SCREENED_ELBOS = 1_000_000
#: Cells of X, at all points of the grid of one evaluation: 1.6 MB, to stay in the cache.
SCREENED_CELLS = 200_000
#: Numbers of the residuals that conjugate gradients keep orthogonal: 40 MB. Not measured: order of
#: magnitude.
KEPT_RESIDUALS = 5_000_000


def evaluate_blockwise(function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Return ``function(inputs)``; equal rows have outputs that are equal to the last bit.

    Parameters
    ----------
    function : callable
        Map from (n, ...) to (n, n_outputs).
    inputs : Tensor of shape (n_rows, ...)

    Returns
    -------
    Tensor of shape (n_rows, n_outputs)
    """
    n, size = len(inputs), _SIZES.get(inputs.device.type, _SIZE)
    if n < 2 * size or not _ignores_place(function, inputs, size):
        rows, index = distinct(inputs)
        return torch.cat([function(part) for part in rows.split(size)])[index]
    outputs: Tensor | None = None
    for first in range(0, n, size):
        first = min(first, n - size)  # the last block repeats rows of the one before
        block = function(inputs[first : first + size])
        if outputs is None:
            outputs = block.new_empty(n, *block.shape[1:])
        outputs[first : first + size] = block
    assert outputs is not None
    return outputs


def _ignores_place(function, inputs, size):
    """Say whether equal rows of a block have equal outputs, at any place in it."""
    block = function(inputs[:1].expand(size, *inputs.shape[1:]).contiguous())
    return bool((block == block[:1]).all())
