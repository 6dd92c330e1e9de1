"""Sums are as exact as sums can be, and the same on any number of threads."""

import math

import numpy as np
import pytest
import torch

from skavi._numerics.sums import add_up, inner, triangular


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("n", [0, 1, 4095, 4096, 4097, 100_000])
def test_sums_are_exact_to_rounding(n):
    """Beside `math.fsum`, which rounds once. A sum in pairs of partial sums of n numbers is off by
    a few half units in the last place of the sum of their sizes, not by n of them."""
    one, other = random(2, n) + 3.0
    for found, numbers in ((add_up(one), one), (inner(one, other), one * other)):
        assert float(found) == pytest.approx(math.fsum(numbers.tolist()), rel=1e-15)


def test_derivatives_are_those_of_an_inner_product():
    one, other = (random(2, 5000) + 1).unbind()
    one.requires_grad_(True)
    (slope,) = torch.autograd.grad(inner(one, other), one)
    assert torch.equal(slope, other)


@pytest.mark.parametrize("shape", [(3, 7), (7, 7), (512, 3), (513, 3), (50_000, 3), (5000, 400)])
def test_triangular_rows_have_the_same_products(shape):
    """R'R = A'A: singular values are those of A, to rounding, and right singular vectors too."""
    rows = random(*shape)
    rows[:, -1] = rows[:, 0]  # not of full rank
    found = triangular(rows)
    assert len(found) <= rows.shape[1]
    largest = float(torch.linalg.matrix_norm(rows, 2))
    torch.testing.assert_close(found.mT @ found, rows.mT @ rows, rtol=0, atol=1e-14 * largest**2)
    values = torch.linalg.svdvals(rows)
    torch.testing.assert_close(
        torch.linalg.svdvals(found)[: len(values)], values, rtol=0, atol=1e-13 * largest
    )


@pytest.mark.changes_globals
def test_threads_change_nothing():
    """What BLAS's dot, torch's sum and LAPACK's least squares do not keep, on some processors."""
    rows, numbers = random(100_000, 4), random(2, 200_000)
    before, found = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            found.append([add_up(numbers[0]), inner(*numbers), triangular(rows)])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
