"""Rules for the standard normal that no estimator's test sees by itself."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from skavi._numerics.quadrature import hermite_nodes, trapezoidal_rule


@pytest.mark.parametrize("step", [0.5, 0.1])
def test_trapezoids_integrate_polynomials(step):
    """E x^2 = 1, E x^4 = 3, E x^8 = 105; off by exp(-2 pi^2 / step^2), and by the cut tails."""
    nodes, weights = trapezoidal_rule(step)
    moments = [weights @ nodes**power for power in (1, 2, 4, 8)]
    assert moments == pytest.approx([0, 1, 3, 105], rel=1e-11, abs=1e-14)


def test_trapezoids_integrate_a_function_with_near_poles():
    """Softplus(9 x) has its first branch point at i pi / 9: the error is exp(-2 pi^2) of its range.

    As many Gauss-Hermite nodes are 1e-3 off.
    """
    nodes, weights = trapezoidal_rule(1 / 9)
    exact, _ = quad(lambda x: np.logaddexp(0, 9 * x) * norm.pdf(x), -12, 12, points=[0])
    assert weights @ np.logaddexp(0, 9 * nodes) == pytest.approx(exact, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nodes_as_tensors_are_those_of_a_rule_in_the_asked_dtype(dtype):
    nodes, weights = hermite_nodes(7, torch.zeros(1, dtype=dtype))
    assert nodes.dtype == weights.dtype == dtype
    moments = [float(weights @ nodes**power) for power in (0, 2, 4)]
    assert moments == pytest.approx([1, 1, 3], rel=1e-5)
