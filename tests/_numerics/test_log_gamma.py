"""The log gamma function beside scipy's, with its derivatives."""

import numpy as np
import pytest
import torch
from scipy import special

from skavi._numerics.log_gamma import log_gamma


def slope(y):
    y = y.clone().requires_grad_(True)
    return torch.autograd.grad(log_gamma(y).sum(), y)[0]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_value_and_slope_are_scipys(dtype, near):
    """Single precision rounds at 6e-8: sums of a few terms of like size keep 1e-6 of them."""
    y = torch.logspace(-3, 6, 400, dtype=dtype)
    wanted = special.gammaln(y.double().numpy())
    size = 1 + np.abs(wanted)
    np.testing.assert_allclose(log_gamma(y).numpy() / size, wanted / size, rtol=0, atol=near)
    wanted = special.digamma(y.double().numpy())
    size = 1 + np.abs(wanted)
    np.testing.assert_allclose(slope(y).numpy() / size, wanted / size, rtol=0, atol=near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives_are_scipys(dtype):
    y = torch.logspace(-1, 3, 50, dtype=dtype).requires_grad_(True)
    (first,) = torch.autograd.grad(log_gamma(y).sum(), y, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), y)
    wanted = special.polygamma(1, y.detach().double().numpy())
    np.testing.assert_allclose(second.numpy(), wanted, rtol=1e-5)


def test_rows_at_once_by_vmap_and_in_a_batch_of_directions():
    y = torch.linspace(0.5, 4.0, 6, dtype=torch.float64)
    slopes = torch.func.vmap(torch.func.grad(lambda each: log_gamma(each)))(y)
    np.testing.assert_allclose(slopes.numpy(), special.digamma(y.numpy()), rtol=1e-13)
    y.requires_grad_(True)
    (rows,) = torch.autograd.grad(log_gamma(y), y, torch.eye(6).double(), is_grads_batched=True)
    np.testing.assert_allclose(rows.diagonal().numpy(), special.digamma(y.detach().numpy()))
