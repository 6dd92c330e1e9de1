"""A normal factor is what its numbers say: against torch.distributions, for every family."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from skavi.families import DiagonalFactors, DiagonalNormal, FullFactors, FullNormal

FAMILIES = [DiagonalNormal(), FullNormal()]
N_ROWS, N_LATENTS = 4, 3

each_family = pytest.mark.parametrize("family", FAMILIES, ids=repr)


def random_raw(family, n_latents=N_LATENTS, n_rows=N_ROWS):
    generator = torch.Generator().manual_seed(0)
    shape = n_rows, family.n_parameters(n_latents)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def noise():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, N_ROWS, N_LATENTS, generator=generator, dtype=torch.float64)


@each_family
def test_entropy_and_density_are_those_of_the_multivariate_normal(family, noise):
    factors = family.factors(random_raw(family), N_LATENTS)
    normal = MultivariateNormal(factors.mean, factors.covariance())
    # One Cholesky factorisation apart: rounding.
    torch.testing.assert_close(factors.entropy(), normal.entropy(), rtol=1e-12, atol=1e-12)
    density = normal.log_prob(factors.draw(noise))
    torch.testing.assert_close(factors.log_prob(noise), density, rtol=1e-10, atol=1e-10)


@each_family
def test_draws_have_the_covariance_and_sd(family):
    factors = family.factors(random_raw(family), N_LATENTS)
    unit = torch.cat([torch.eye(N_LATENTS), -torch.eye(N_LATENTS)]).double().unsqueeze(1)
    moved = factors.draw(unit) - factors.mean
    covariance = torch.einsum("dni,dnj->nij", moved, moved) / 2
    torch.testing.assert_close(covariance, factors.covariance(), rtol=1e-12, atol=1e-12)
    sd = factors.covariance().diagonal(dim1=-2, dim2=-1).sqrt()
    torch.testing.assert_close(factors.sd, sd, rtol=1e-12, atol=0)


@each_family
def test_block_covariance_picks_from_the_covariance(family):
    factors = family.factors(random_raw(family)[0], N_LATENTS)
    index = torch.tensor([[2, 0], [1, 2]])
    picked = factors.covariance()[index.unsqueeze(-1), index.unsqueeze(-2)]
    torch.testing.assert_close(factors.block_covariance(index), picked, rtol=1e-12, atol=1e-14)


@each_family
@pytest.mark.parametrize("n_latents", [1, 2, 5])
def test_raw_undoes_factors(family, n_latents):
    raw = random_raw(family, n_latents)
    again = family.raw(family.factors(raw, n_latents))
    torch.testing.assert_close(again, raw, rtol=1e-10, atol=1e-10)  # through one Cholesky


def test_diagonal_keeps_the_moments_of_a_full_factor_and_back():
    full = FullNormal().factors(random_raw(FullNormal()), N_LATENTS)
    diagonal = DiagonalNormal().factors(DiagonalNormal().raw(full), N_LATENTS)
    torch.testing.assert_close(diagonal.mean, full.mean)
    torch.testing.assert_close(diagonal.sd, full.sd, rtol=1e-12, atol=0)
    widened = FullNormal().factors(FullNormal().raw(diagonal), N_LATENTS)
    torch.testing.assert_close(widened.covariance(), diagonal.covariance())


@each_family
def test_steps_are_the_root_of_the_fisher_information(family):
    """Near equality, KL(q(raw) || q(raw + e)) = I_ii e^2 / 2 for a change e of one number i."""
    raw = random_raw(family)[0]
    if isinstance(family, FullNormal):  # the steps take a diagonal factor's metric
        raw = FullNormal().raw(DiagonalFactors(raw[:3], raw[3:6].exp()))

    def divergence(other):
        one, two = (family.factors(r, N_LATENTS) for r in (raw, other))
        precision = torch.linalg.inv(two.covariance())
        moved = two.mean - one.mean
        spread = (precision * one.covariance()).sum() + moved @ precision @ moved - N_LATENTS
        return spread / 2 + two.log_det_scale - one.log_det_scale

    information = torch.autograd.functional.hessian(divergence, raw).diagonal()
    steps = family.steps(family.factors(raw, N_LATENTS))
    # The log diagonal of a Cholesky factor and a log sd both have I = 2.
    torch.testing.assert_close(steps, information.rsqrt(), rtol=1e-8, atol=0)


@each_family
def test_factors_go_through_vmap_and_gradients(family):
    raw = random_raw(family)

    def entropy(row):
        return family.factors(row, N_LATENTS).entropy()

    torch.testing.assert_close(torch.func.vmap(entropy)(raw), entropy(raw))
    gradient = torch.func.grad(entropy)(raw[0])
    expected = torch.zeros_like(gradient)
    expected[N_LATENTS : 2 * N_LATENTS] = 1.0  # entropy is the sum of these, plus a constant
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_families_give_their_own_factors():
    assert isinstance(DiagonalNormal().factors(torch.zeros(4), 2), DiagonalFactors)
    assert isinstance(FullNormal().factors(torch.zeros(5), 2), FullFactors)
