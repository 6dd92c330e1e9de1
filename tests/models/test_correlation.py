"""Correlation matrices: a bijection with its Jacobian, and the prior's expectation."""

import pytest
import torch
from torch.distributions import LKJCholesky, biject_to

from skavi._platform.forks_and_threads import seeded
from skavi.families import DiagonalFactors
from skavi.models._correlation import LKJ, CorrelationTransform, correlation_matrix
from skavi.models._global_space import GlobalSpace
from skavi.models._mixed_effects_moments import correlation_moments, product_rule


@pytest.mark.parametrize("m", [1, 3, 6])
def test_numbers_become_correlations_and_come_back(m):
    u = torch.randn(5, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bijection = biject_to(correlation_matrix)
    C = bijection(u)
    assert bool(correlation_matrix.check(C).all())
    torch.testing.assert_close(bijection.inv(C), u)
    assert bijection.inverse_shape(C.shape) == u.shape
    lower = CorrelationTransform().cholesky(u)
    row, column = torch.tril_indices(*C.shape[-2:], -1)

    def below(u):
        return CorrelationTransform().cholesky(u)[row, column]

    for one, each in zip(u, bijection.log_abs_det_jacobian(u, C), strict=True):
        jacobian = torch.autograd.functional.jacobian(below, one)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], each)
    torch.testing.assert_close(lower @ lower.mT, C)


@pytest.mark.parametrize("k", [2, 3])
def test_the_priors_expectation_is_that_of_draws(k):
    space = GlobalSpace({"correlation": LKJ(k, 2.0)})
    mean = torch.linspace(-0.5, 0.8, space.size).double()
    factor = DiagonalFactors(mean, torch.full_like(mean, 0.4))
    noise = torch.randn(20_000, space.size, generator=torch.Generator().manual_seed(1)).double()
    draws = torch.func.vmap(space.log_prior)(factor.draw(noise))
    se = float(draws.std()) / len(draws) ** 0.5
    assert float(space.expected_log_prior(factor) - draws.mean()) == pytest.approx(0, abs=4 * se)


@pytest.mark.parametrize("m", [1, 3])
def test_moments_of_a_correlation_matrix_are_those_of_quadrature(m):
    """By a product rule of 20 nodes each; three correlations' inverse is by 512 Sobol points."""
    mean, sd = torch.linspace(-0.6, 0.5, m).double(), torch.full((m,), 0.3).double()
    nodes, weights = product_rule(mean, sd, 20)
    C = biject_to(correlation_matrix)(nodes)
    precision, log_det = correlation_moments(mean, sd)
    wanted = torch.tensordot(weights, torch.linalg.inv(C), 1)
    torch.testing.assert_close(precision, wanted, rtol=0, atol=1e-10 if m == 1 else 5e-3)
    torch.testing.assert_close(log_det, weights @ torch.linalg.slogdet(C)[1], rtol=0, atol=1e-10)


def test_draws_are_those_of_the_cholesky_prior():
    with seeded(0):
        drawn = LKJ(3, 2.0).sample((2000,))[:, 0, 1]
        lower = LKJCholesky(3, 2.0).sample((2000,))
    other = (lower @ lower.mT)[:, 0, 1]
    assert float(drawn.var()) == pytest.approx(float(other.var()), rel=0.15)


def test_a_correlation_of_one_has_no_density_and_ends_no_batch():
    """Of 40,000 draws of sleepstudy's correlation a few are 1 to rounding."""
    u = torch.tensor([[0.3], [25.0]], dtype=torch.float64)
    prior, C = LKJ(2, 2.0), biject_to(correlation_matrix)(u)
    assert C[1, 0, 1] == 1
    density = prior.log_prob(C)
    torch.testing.assert_close(density[0], prior.log_prob(C[0]))
    assert bool(density[1].isnan())
