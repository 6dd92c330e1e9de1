"""Finite latents beside the same model with them summed out: `low_dim_gauss_mix`-like data."""

import numpy as np
import pytest
import torch
from torch.distributions import Beta, Categorical, HalfNormal, Normal

from seeds import seeds
from skavi import FactorizedVI
from skavi._numerics.sums import inner
from skavi.diagnostics import reweighted
from skavi.families import Chain, DiagonalNormal
from skavi.models import HiddenMarkovModel, HierarchicalModel, MixtureModel
from skavi.noise import GaussHermite
from skavi.objective import bind


class Finite(HierarchicalModel):
    """Two components; priors of the means that tell which is which."""

    n_latents = 1

    def global_prior(self, n_features):
        means = Normal(torch.tensor([-2.0, 2.0]), 2.0)
        return {"mu": means, "sigma": HalfNormal(2.0 * torch.ones(2)), "share": Beta(5.0, 5.0)}

    def local_prior(self, theta):
        return Categorical(torch.stack([theta["share"], 1 - theta["share"]]))

    def likelihood(self, z, theta):
        state = z.long()
        return Normal(theta["mu"][state], theta["sigma"][state])


class Summed(Finite):
    """The same with the state summed out."""

    n_latents = 0

    def log_likelihood(self, theta, z, X):
        logs = torch.stack([theta["share"], 1 - theta["share"]]).log()
        return torch.logsumexp(logs + Normal(theta["mu"], theta["sigma"]).log_prob(X), -1)


def _rows(n, seed=0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < 0.35, rng.normal(-2.75, 1, n), rng.normal(2.75, 1, n))[:, None]


def test_what_is_lost_is_the_divergence_of_the_states():
    """ELBO + E_q(theta) KL(q(s) || p(s | x, theta)) = the ELBO with s summed out, at one q(theta).

    To 1e-6 nats in all, of 1,000 rows: for any q(s), here for factors that are not the best ones.
    """
    X = torch.as_tensor(_rows(1000))
    finite, summed = (bind(m, None, DiagonalNormal(), X) for m in (Finite(), Summed()))
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([-2.5, 2.6, 0.1, 0.0, -0.6]).double()
    raw_globals = torch.cat([mean, torch.full((5,), -1.5).double()])
    nodes = GaussHermite(3).nodes(5, 0, 1, generator)
    raw = torch.randn(len(X), 1, generator=generator, dtype=torch.float64)
    log_q, divergence = finite.local_factors(raw).log_probabilities, torch.zeros(len(X)).double()
    u = finite.global_factor(raw_globals).draw(nodes.globals_)
    for point, weight in zip(u, nodes.weights, strict=True):
        log_joint = finite.log_joints_at(finite.space.constrain(point), X)
        away = log_q - torch.log_softmax(log_joint, -1)
        divergence += weight * (log_q.exp() * away).sum(-1)
    ours = finite.row_terms(raw, raw_globals, X, nodes) + divergence
    theirs = summed.row_terms(X[:, :0], raw_globals, X, nodes)
    assert divergence.min() > 0
    np.testing.assert_allclose(ours.sum(), theirs.sum(), rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def exact():
    """Return the posterior of the summed-out model's globals, by importance weights."""
    X = _rows(1000)
    summed = FactorizedVI(Summed(), noise=GaussHermite(3), random_state=0).fit(X)
    found = reweighted(summed, X, n_draws=20_000, random_state=0)
    assert found.khat < 0.5
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(0, *range(1, 20)))
def test_globals_are_those_of_the_summed_out_model(exact, seed):
    """Within 0.1 exact sd where components lie apart, from every seed; of 1,000 rows it is 0.012.

    The means of 20,000 draws are 0.007 sd off themselves.
    """
    vi = FactorizedVI(Finite(), noise=GaussHermite(3), random_state=seed).fit(_rows(1000))
    assert vi.converged_
    for name, mean in exact.mean.items():
        away = np.abs(vi.global_posterior_.mean[name] - mean)
        assert (away < 0.1 * exact.sd[name]).all()


@pytest.mark.parametrize(
    ("model", "family"),
    [(MixtureModel(2), None), (HiddenMarkovModel(2), Chain())],
)
def test_second_derivatives_are_those_of_the_elbo(model, family):
    """Covariances of slopes beside derivatives through the sums over states; to rounding."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    X[2, 1] = torch.nan
    weights = torch.full((9,), 2.0, dtype=torch.float64)
    model = model.adapted(X, weights)
    objective = bind(model, family, DiagonalNormal(), X)
    size = objective.global_family.n_parameters(objective.space.size)
    raw = 0.3 * torch.randn(size, generator=generator, dtype=torch.float64)

    def rows(raw):
        return inner(weights, objective.row_terms(X[:, :0], raw, X, None))

    *_, slope, hessian = objective.row_derivatives(X[:, :0], raw, X, None, weights, False)
    torch.testing.assert_close(slope, torch.autograd.functional.jacobian(rows, raw))
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(rows, raw))
