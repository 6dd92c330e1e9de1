"""A normal factor is what its numbers say: against torch.distributions, for every family."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from skavi import FactorizedVI
from skavi.families import DiagonalFactors, DiagonalNormal, FullFactors, FullNormal, Point
from skavi.models import FactorAnalysis, LinearModel

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


@each_family
def test_variances_along_directions_are_quadratic_forms(family):
    factors = family.factors(random_raw(family)[0], N_LATENTS)
    index = torch.tensor([[2, 0], [1, 2], [0, 1]])
    directions = torch.tensor([[1.0, -2.0], [0.5, 3.0]]).double()
    blocks = factors.covariance()[index.unsqueeze(-1), index.unsqueeze(-2)]
    expected = torch.einsum("ni,bij,nj->nb", directions, blocks, directions)
    torch.testing.assert_close(
        factors.variance_along(directions, index), expected, rtol=1e-12, atol=0
    )


@each_family
def test_given_the_first_coordinates_the_rest_is_their_conditional(family):
    """Drawing the first with their noise and the rest around it is drawing all of them."""
    factors = family.factors(random_raw(family)[0], N_LATENTS)
    rest, covariance = factors.given_first(1), factors.covariance()
    cross = covariance[1:, :1]
    schur = covariance[1:, 1:] - cross @ cross.mT / covariance[0, 0]
    torch.testing.assert_close(rest.covariance()[1:, 1:], schur, rtol=1e-12, atol=1e-14)
    noise = torch.tensor([0.7, 0.0, 0.0]).double()
    moved = factors.draw(noise) - factors.mean
    expected = cross[:, 0] / covariance[0, 0] * moved[0]  # the regression on the first
    torch.testing.assert_close(moved[1:], expected, rtol=1e-12, atol=1e-14)


def test_a_point_has_no_spread_and_no_entropy(noise):
    point = Point().factors(random_raw(Point()), N_LATENTS)
    assert torch.equal(point.draw(noise), point.mean.expand_as(noise))
    assert not point.sd.any() and not point.entropy().any() and not point.log_prob(noise).any()


def test_point_estimates_of_theta_maximise_the_penalised_bound():
    """LinearModel: its flat theta shifts every row, so the estimate is the mean of the rows."""
    X = torch.tensor([[0.0], [1.0], [5.0]]).numpy()
    vi = FactorizedVI(LinearModel(), global_family=Point(), tol=1e-12).fit(X)
    spread = FactorizedVI(LinearModel(), tol=1e-12).fit(X)
    assert vi.global_posterior_.mean["theta"] == pytest.approx(2.0, abs=1e-8)
    sd = float(spread.global_posterior_.sd["theta"])
    assert vi.global_posterior_.sd["theta"] == 0 and sd > 0
    # Normal q: the bound falls by a half for theta's spread and gains its entropy.
    entropy = math.log(sd) + 0.5 * math.log(2 * math.pi * math.e)
    assert vi.elbo_ == pytest.approx(spread.elbo_ - entropy + 0.5, abs=1e-9)
    draws = vi.global_posterior_.sample(4, random_state=0)["theta"]
    assert (draws == vi.global_posterior_.mean["theta"]).all()


def test_a_point_is_no_factor_of_latents():
    with pytest.raises(ValueError, match=r"family=Point\(\): q\(z_n\) needs a spread"):
        FactorizedVI(LinearModel(), family=Point()).fit([[0.0], [1.0], [5.0]])


def _full_normal_elbo(unknowns, X, model):
    """ELBO of one-component probabilistic PCA, q(log v, W, m) full and q(z) diagonal, closed form.

    With u = (log v, W, m) ~ N(mu, S), E[exp(-log v) g(u)] = exp(-mu_0 + S_00 / 2) E_t[g(u)] under
    N(mu - S e_0, S): what is left of the likelihood is a square, whose moments are known.
    """
    (n, n_features), size = X.shape, 1 + 2 * X.shape[1]
    mu, flat, a, log_s = unknowns.split([size, size * (size + 1) // 2, n, n])
    rows, columns = torch.tril_indices(size, size)
    root = torch.zeros(size, size, dtype=X.dtype).index_put((rows, columns), flat)
    S, s2 = root @ root.mT, (2 * log_s).exp()
    inverse, t, S_w = (S[0, 0] / 2 - mu[0]).exp(), mu - S[:, 0], S.diagonal()
    w, m = slice(1, 1 + n_features), slice(1 + n_features, size)
    squares = (X - a[:, None] * t[w] - t[m]) ** 2 + s2[:, None] * t[w] ** 2
    squares = squares + (a**2 + s2)[:, None] * S_w[w] + S_w[m] + 2 * a[:, None] * S[w, m].diagonal()
    log_2pi = math.log(2 * math.pi)
    fit = -0.5 * (inverse * squares + mu[0] + log_2pi).sum()
    latents = 0.5 * (1 - a**2 - s2 + 2 * log_s).sum()
    alpha, beta = model.noise_shape, torch.as_tensor(model.noise_scale)
    prior = alpha * beta.log() - math.lgamma(alpha) - alpha * mu[0] - beta * inverse
    scales = torch.as_tensor(model.loading_scale), torch.as_tensor(model.mean_scale)
    for where, centre, scale in (
        (w, 0.0, scales[0]),
        (m, torch.as_tensor(model.mean_loc), scales[1]),
    ):
        square = ((mu[where] - centre) ** 2 + S_w[where]) / scale**2
        prior = prior - 0.5 * (square + log_2pi + 2 * scale.log()).sum()
    entropy = 0.5 * size * (1 + log_2pi) + root.diagonal().abs().log().sum()
    return fit + latents + prior + entropy


def test_a_full_normal_over_the_globals_of_factor_analysis_is_at_the_closed_forms_optimum():
    """Climbed by torch's L-BFGS, from a narrow q(theta) round the fit's means.

    1e-6: both leave about 1e-8 nats for each of 12 rows; means are then off by sqrt(1e-6) sds.
    """
    draw = np.random.default_rng(3).normal
    X = draw(size=(12, 1)) * [1.5, -1.0] + 0.5 * draw(size=(12, 2)) + 3
    model = FactorAnalysis(1, mean_loc=0.0, mean_scale=1.0)  # latents stand for the mean as well
    vi = FactorizedVI(model, global_family=FullNormal(), random_state=0).fit(X)
    found, table = vi.global_posterior_, torch.as_tensor(X)
    centre = [np.log(found.mean["noise_variance"]), *found.mean["loadings"], *found.mean["mean"]]
    centre = torch.as_tensor(np.hstack([np.ravel(part) for part in centre]))
    narrow = 0.1 * torch.eye(5)[*torch.tril_indices(5, 5)]
    z = torch.as_tensor(vi.transform(X)[:, 0])
    unknowns = torch.cat([centre, narrow, z, torch.full((12,), -1.0)]).double().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [unknowns],
        max_iter=2000,
        max_eval=4000,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
    )

    def closure():
        optimizer.zero_grad()
        loss = -_full_normal_elbo(unknowns, table, vi.model_)
        loss.backward()
        return loss

    optimizer.step(closure)
    best = float(_full_normal_elbo(unknowns.detach(), table, vi.model_))
    assert vi.elbo_ == pytest.approx(best, abs=1e-6)
    mu = unknowns.detach().numpy()[:5]
    assert np.ravel(found.mean["loadings"]) == pytest.approx(mu[1:3], abs=1e-3)
    assert found.mean["mean"] == pytest.approx(mu[3:], abs=1e-3)
    diagonal = FactorizedVI(model, random_state=0).fit(X)
    assert diagonal.elbo_ < best - 0.01
