"""Covariance matrices by regressions: scipy's inverse Wishart density, the Jacobian, moments."""

import numpy as np
import pytest
import torch
from scipy.stats import invwishart

from skavi.models._covariance_prior import (
    PriorOfCovariance,
    RegressionTransform,
    covariance_moments,
)

SCALE = torch.tensor([[1.0, 0.8, 0.1], [0.8, 2.0, 0.0], [0.1, 0.0, 0.5]], dtype=torch.float64)


@pytest.fixture
def matrices():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PriorOfCovariance(2.5, SCALE).sample((20_000,))


def test_the_density_is_the_inverse_wishart_one(matrices):
    ours = PriorOfCovariance(2.5, SCALE).log_prob(matrices[:4])
    theirs = [invwishart.logpdf(m.numpy(), 2 * 2.5 + 2, 2 * SCALE.numpy()) for m in matrices[:4]]
    np.testing.assert_allclose(ours, theirs)


def test_draws_have_the_mean(matrices):
    error = matrices.std(0) / len(matrices) ** 0.5
    away = (matrices.mean(0) - PriorOfCovariance(2.5, SCALE).mean) / error
    assert away.abs().max() < 4


def test_quartiles_of_free_numbers_are_those_of_draws(matrices):
    """To 4 standard errors: that of a quartile is sqrt(p (1 - p) / n) over the density there."""
    u = RegressionTransform().inv(matrices).sort(0).values
    found, n = PriorOfCovariance(2.5, SCALE, (2,)).free_quartiles(), len(u)
    for quartile, share in zip(found, (0.25, 0.5, 0.75), strict=True):
        wide = 4 * (share * (1 - share) / n) ** 0.5
        low, high = (u[round(n * (share + away))] for away in (-wide, wide))
        assert ((low < quartile) & (quartile < high)).all()


def test_the_bijection_returns_and_knows_its_jacobian(matrices):
    bijection, low = RegressionTransform(), torch.tril_indices(3, 3)
    u = bijection.inv(matrices[:4])
    np.testing.assert_allclose(bijection(u), matrices[:4])
    found = torch.autograd.functional.jacobian(lambda u: bijection(u)[low[0], low[1]], u[0])
    known = bijection.log_abs_det_jacobian(u[0], matrices[0])
    np.testing.assert_allclose(torch.linalg.slogdet(found)[1], known)


def test_expectations_under_a_normal_q():
    """To 4 standard errors of 20,000 draws; sds within 15 % (1,024 draws with heavy tails)."""
    generator = torch.Generator().manual_seed(0)
    mean, sd = torch.randn(2, 2, 6, generator=generator, dtype=torch.float64)
    sd = 0.1 + 0.1 * sd.abs()
    noise = torch.randn(20_000, 2, 6, generator=generator, dtype=torch.float64)
    draws = mean + sd * noise
    prior = PriorOfCovariance(2.5, SCALE, (2,))
    densities = prior.expected_log_density(draws, torch.zeros_like(draws))
    error = densities.std(0) / len(draws) ** 0.5
    away = (prior.expected_log_density(mean, sd) - densities.mean(0)) / error
    assert away.abs().max() < 4
    matrices = RegressionTransform()(draws)
    centre, spread = covariance_moments(mean, sd)
    away = (centre - matrices.mean(0)) / (matrices.std(0) / len(draws) ** 0.5)
    assert away.abs().max() < 4
    np.testing.assert_allclose(spread, matrices.std(0), rtol=0.15)
