"""Factors of a Gaussian process: their ELBO against quadrature, their optimum against autograd."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.integrate import quad
from scipy.stats import norm
from torch.distributions import Normal

from skavi import AmortizedVI, FactorizedVI
from skavi._numerics.quadrature import product_rule
from skavi.families import DiagonalFactors, DiagonalNormal, FullNormal
from skavi.inference_functions import Polynomial
from skavi.models import GaussianProcess
from skavi.models._gaussian_process_newton import Prior, best_factors
from skavi.noise import ClosedForm

LIKELIHOODS = ["normal", "bernoulli", "poisson"]
each_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS)


def answers(n=12, seed=0):
    rng = np.random.default_rng(seed)
    return np.column_stack([np.sort(rng.uniform(0, 6, n)), rng.integers(0, 2, n)])


def at(mean, sd):
    return DiagonalFactors(*(torch.tensor([part]).double().mT for part in (mean, sd)))


@each_likelihood
def test_the_expectation_is_that_of_the_log_joint(likelihood):
    """Against 40 x 40 Gauss-Hermite nodes for two rows."""
    model, X = (
        GaussianProcess(likelihood=likelihood),
        torch.tensor([[0.0, 1.0], [0.7, 0.0]]).double(),
    )
    mean, sd = [0.3, -0.8], [0.6, 0.9]
    nodes, weights = (torch.as_tensor(part) for part in product_rule((40, 40)))
    z = torch.tensor(mean).double() + torch.tensor(sd).double() * nodes
    values = torch.func.vmap(lambda each: model.log_joint({}, each.unsqueeze(-1), X))(z)
    closed = model.expected_log_local(at(mean, sd), None, X)
    assert float(closed) == pytest.approx(float(weights @ values), abs=1e-8)


def test_binary_cells_are_integrated_where_latents_vary_much():
    """E log p(1 | z) = -E softplus(-z), for z of sd 9, by scipy's adaptive quadrature."""
    model, y = GaussianProcess(amplitude=10.0, likelihood="bernoulli"), torch.ones(1).double()
    term = model._expected_fit(y)(torch.tensor([-2.0]).double(), torch.tensor([9.0]).double())
    exact = quad(lambda z: -np.logaddexp(0, -z) * norm.pdf(z, -2, 9), -110, 110, points=[0, -2])
    assert float(term) == pytest.approx(exact[0], abs=1e-6)


@each_likelihood
@pytest.mark.parametrize("amplitude", [0.3, 4.0])
def test_no_direction_is_left_at_the_optimum(likelihood, amplitude):
    """The gradient by autograd, in sds and log sds; concave, so the stationary point is the best.

    Times come close: K is as good as singular, and P has entries of 1e8.
    """
    model = GaussianProcess(amplitude=amplitude, likelihood=likelihood)
    X = torch.as_tensor(answers(30))
    best = model.local_optimum(None, X, DiagonalNormal())
    mean, log_sd = best.mean.clone().requires_grad_(), best.sd.log().requires_grad_()
    factors = DiagonalFactors(mean, log_sd.exp())
    elbo = model.expected_log_local(factors, None, X) + factors.entropy().sum()
    by_mean, by_log_sd = torch.autograd.grad(elbo, (mean, log_sd))
    assert float((by_mean * best.sd).abs().max()) < 1e-5
    assert float(by_log_sd.abs().max()) < 1e-5


@each_likelihood
def test_fits_need_no_nodes_and_any_family_of_one_latent_is_the_same(likelihood):
    X, model = answers(), GaussianProcess(likelihood=likelihood)
    vi = FactorizedVI(model).fit(X)
    full = FactorizedVI(model, family=FullNormal()).fit(X)
    low = AmortizedVI(model, Polynomial(1, (1, 1)), random_state=0)
    with pytest.warns(UserWarning, match="No function of a window of rows closes"):
        low.fit(X)
    assert isinstance(vi.noise_, ClosedForm)
    assert vi.elbo_ == pytest.approx(full.elbo_, abs=1e-9)
    assert low.elbo_ <= vi.elbo_ + 1e-9
    assert_allclose(vi.transform(X), full.transform(X), atol=1e-9)


@pytest.mark.parametrize("largest", [1e3, 1e6, 1e9])
def test_large_counts_are_no_obstacle(largest):
    """A normal approximation knows them: the latent of a count y has sd y^-1/2 and mean log y."""
    X = np.array([[0.0, 1.0], [9.0, largest], [18.0, 2.0]])
    latents = (
        FactorizedVI(GaussianProcess(amplitude=30.0, likelihood="poisson")).fit(X).posterior(X)
    )
    assert latents.mean[1, 0] == pytest.approx(np.log(largest), abs=1.0 / largest)
    assert latents.sd[1, 0] == pytest.approx(largest**-0.5, rel=1e-3)


def test_a_good_start_is_kept():
    """From the optimum itself it stays; a worse one is no obstacle."""
    model, X = GaussianProcess(likelihood="poisson"), torch.as_tensor(answers())
    best = model.local_optimum(None, X, DiagonalNormal())
    again = model.local_optimum(None, X, DiagonalNormal(), best)
    far = model.local_optimum(None, X, DiagonalNormal(), at([50.0] * 12, [0.1] * 12))
    for other in (again, far):
        assert_allclose(other.mean, best.mean, atol=1e-7)
        assert_allclose(other.sd, best.sd, rtol=1e-7)


def test_normal_cells_take_one_step():
    """The optimum is known: m = K (K + v I)^-1 y and 1 / s_i^2 = P_ii + 1 / v."""
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.5], [0.5, 2.0]]).double())
    y, prior = torch.tensor([1.0, -2.0]).double(), Prior.of(root)

    def fit(mean, sd):
        return -0.5 * ((y - mean) ** 2 + sd**2) / 0.25

    best = best_factors(prior, fit, y)
    K = (root @ root.mT).numpy()
    assert_allclose(best.mean[:, 0], K @ np.linalg.solve(K + 0.25 * np.eye(2), y.numpy()))
    assert_allclose(best.sd[:, 0] ** -2, np.diag(np.linalg.inv(K)) + 4)


class Shifted(GaussianProcess):
    def _observation(self, z):
        return Normal(z + 3.0, 0.5)


def test_a_subclass_with_another_density_gets_nodes():
    X = answers(5)
    vi = FactorizedVI(Shifted()).fit(X)
    assert not isinstance(vi.noise_, ClosedForm)
    shifted = X - [0.0, 3.0]
    assert vi.elbo_ == pytest.approx(FactorizedVI(GaussianProcess()).fit(shifted).elbo_, abs=1e-6)
