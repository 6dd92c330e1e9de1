"""Posteriors: moments and draws, on the model's scale, against closed forms."""

import numpy as np
import pytest
import torch
from torch.distributions import Dirichlet, HalfNormal, Normal

from skavi.families import DiagonalNormal, FullFactors, FullNormal
from skavi.models import HierarchicalModel
from skavi.posterior import GlobalPosterior, LatentPosterior

MU, TAU, WEIGHTS = slice(0, 2), slice(2, 3), slice(3, 5)


class Several(HierarchicalModel):
    """Globals of three kinds: real, positive, simplex."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {
            "mu": Normal(torch.zeros(2), 1.0),
            "tau": HalfNormal(1.0),
            "weights": Dirichlet(torch.ones(3)),
        }

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta):
        return Normal(z, theta["tau"])


@pytest.fixture
def factor():
    generator = torch.Generator().manual_seed(0)
    below = 0.3 * torch.randn(5, 5, generator=generator, dtype=torch.float64).tril(-1)
    sd = torch.tensor([0.5, 0.8, 0.6, 0.4, 0.7], dtype=torch.float64)
    return FullFactors(torch.tensor([1.0, -2, 0.3, 0.2, -0.5]).double(), below + torch.diag(sd))


@pytest.fixture(params=[DiagonalNormal(), FullNormal()], ids=repr)
def posterior(request, factor):
    return GlobalPosterior(Several(), request.param, request.param.raw(factor).numpy(), 1)


def test_real_and_positive_globals_have_the_normal_and_lognormal_moments(posterior, factor):
    mean, sd = factor.mean.numpy(), factor.sd.numpy()
    np.testing.assert_allclose(posterior.mean["mu"], mean[MU], rtol=1e-12)
    np.testing.assert_allclose(posterior.sd["mu"], sd[MU], rtol=1e-12)
    centre, spread = mean[2], sd[2]
    lognormal_mean = np.exp(centre + spread**2 / 2)
    # 64 Gauss-Hermite nodes: exact to rounding for exp.
    np.testing.assert_allclose(posterior.mean["tau"], lognormal_mean, rtol=1e-10)
    lognormal_sd = lognormal_mean * np.sqrt(np.expm1(spread**2))
    np.testing.assert_allclose(posterior.sd["tau"], lognormal_sd, rtol=1e-10)


def test_unconstrained_moments_are_those_of_the_factor(posterior, factor):
    for name, where in {"mu": MU, "tau": TAU, "weights": WEIGHTS}.items():
        np.testing.assert_allclose(posterior.unconstrained_mean[name], factor.mean[where])
        np.testing.assert_allclose(posterior.unconstrained_sd[name], factor.sd[where])


def test_draws_agree_with_the_moments(posterior):
    draws = posterior.sample(40_000, random_state=0)
    assert {n: d.shape for n, d in draws.items()} == {
        "mu": (40_000, 2),
        "tau": (40_000, *posterior.mean["tau"].shape),
        "weights": (40_000, 3),
    }
    for name, draw in draws.items():
        error = draw.std(0) / np.sqrt(len(draw))
        # 5 standard errors, and 1e-3 for the 4,096 Sobol points behind the simplex's moments.
        assert (np.abs(draw.mean(0) - posterior.mean[name]) < 5 * error + 1e-3).all()
        np.testing.assert_allclose(draw.std(0), posterior.sd[name], rtol=0.03)
    np.testing.assert_allclose(draws["weights"].sum(1), 1.0)


def test_full_factors_keep_the_correlation_of_globals(factor):
    full = GlobalPosterior(Several(), FullNormal(), FullNormal().raw(factor).numpy(), 1)
    draws = full.sample(40_000, random_state=1)
    u = np.column_stack([draws["mu"], np.log(draws["tau"]).reshape(-1, 1)])
    expected = factor.covariance()[:3, :3].numpy()
    np.testing.assert_allclose(np.cov(u.T), expected, atol=0.03)  # 5 standard errors of a variance


@pytest.fixture
def latents():
    scale = np.array([[[1.0, 0.0], [0.8, 0.6]], [[2.0, 0.0], [-1.0, 0.5]]])
    sd = np.sqrt((scale**2).sum(-1))
    return LatentPosterior(mean=np.array([[0.0, 1.0], [5.0, -5.0]]), sd=sd, scale=scale)


def test_latent_draws_have_each_row_s_mean_and_covariance(latents):
    draws = latents.sample(40_000, random_state=0)
    assert draws.shape == (40_000, 2, 2)
    for row in range(2):
        expected = latents.scale[row] @ latents.scale[row].T
        # 5 standard errors of a mean or covariance of 40,000 draws with variance up to 4.
        np.testing.assert_allclose(draws[:, row].mean(0), latents.mean[row], atol=0.05)
        np.testing.assert_allclose(np.cov(draws[:, row].T), expected, atol=0.15)
    between = np.corrcoef(draws[:, 0, 0], draws[:, 1, 0])[0, 1]
    assert abs(between) < 5 / np.sqrt(40_000)


def test_seeds_repeat_draws(latents, posterior):
    assert np.array_equal(latents.sample(3, random_state=1), latents.sample(3, random_state=1))
    assert not np.array_equal(latents.sample(3, random_state=1), latents.sample(3, random_state=2))
    one, two = (posterior.sample(3, random_state=1)["mu"] for _ in range(2))
    assert np.array_equal(one, two)
