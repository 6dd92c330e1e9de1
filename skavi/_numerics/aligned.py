"""Numbers of numpy's in torch's own memory, so that what is computed from them repeats bit by bit.

numpy's memory is aligned now one way, now another, and matrix products and factorisations round
by where their operands lie. `torch.as_tensor` would share it.
"""

import numpy as np
import torch
from torch import Tensor


def aligned(array) -> Tensor:
    """Return a copy of an array in float64, on the CPU, contiguous and aligned."""
    array = np.asarray(array)
    copied = torch.empty(array.shape, dtype=torch.float64)
    copied.numpy()[...] = array
    return copied
