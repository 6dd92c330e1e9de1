"""Rules for the standard normal that no estimator's test sees by itself."""

from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from skavi._numerics.quadrature import (
    few_node_rule,
    hermite_nodes,
    product_rule,
    rule_size,
    trapezoidal_rule,
)


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


@pytest.mark.parametrize("dimension", [3, 4, 5, 6, 7])
def test_few_nodes_are_exact_to_degree_five(dimension):
    """E prod x_i^e_i is the product of double factorials (e_i - 1)!! where all e_i are even, else
    0."""
    nodes, weights = few_node_rule(dimension)
    assert len(weights) == rule_size((), dimension) == dimension**2 + 3 * dimension + 3
    assert weights.min() >= -1e-16
    for degree in range(6):
        for factors in combinations_with_replacement(range(dimension), degree):
            powers = np.bincount(factors, minlength=dimension)
            exact = np.prod([{0: 1, 2: 1, 4: 3}.get(power, 0) for power in powers])
            moment = weights @ np.prod(nodes[:, list(factors)], axis=1)
            assert moment == pytest.approx(exact, abs=1e-13)


def test_a_product_with_few_nodes_together():
    """Latents and the rest are independent: E x^2 y^2 = 1, E x^4 y z = 0, E x^4 y^4 = 9."""
    nodes, weights = product_rule((3,), 3)
    assert nodes.shape == (rule_size((3,), 3), 4) == (63, 4)
    x, y, z = nodes[:, 0], nodes[:, 1], nodes[:, 2]
    moments = [weights @ product for product in (x**2 * y**2, x**4 * y * z, x**4 * y**4)]
    assert moments == pytest.approx([1, 0, 9], abs=1e-13)
