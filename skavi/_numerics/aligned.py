"""Copies of numpy arrays in torch's memory, so that results repeat bit by bit.

The alignment of numpy's memory varies, and the rounding of matrix products and factorisations
depends on it. `torch.as_tensor` would share numpy's memory.
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
