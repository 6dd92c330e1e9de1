"""A chain of numbers from its precision, against the dense inverse."""

import pytest
import torch

from skavi.models._tridiagonal import smoothed


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("pull", [1e-4, 0.5])
def test_moments_are_those_of_the_dense_inverse(n, pull):
    """With little pull to the mean neighbours are nearly equal: condition numbers up to 1e5."""
    generator = torch.Generator().manual_seed(0)
    off = -torch.rand(n - 1, generator=generator, dtype=torch.float64)
    right = torch.randn(n, generator=generator, dtype=torch.float64)
    diagonal = torch.full((n,), pull, dtype=torch.float64)
    diagonal[1:] -= off
    diagonal[:-1] -= off
    dense = torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1)
    covariance = torch.linalg.inv(dense)
    chain = smoothed(diagonal, off, right)
    close = {"rtol": 1e-8, "atol": 0.0}
    torch.testing.assert_close(chain.mean[:, 0], covariance @ right, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(chain.sd[:, 0] ** 2, covariance.diagonal(), **close)
    pairs = chain.neighbour_covariance()[1:, 0, 0]
    torch.testing.assert_close(pairs, covariance.diagonal(-1), **close)
