"""Latents with bounds: quadrature's mean-field optimum, and every distribution of torch."""

import inspect

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import distributions
from torch.distributions import Beta, Gamma, HalfNormal, LogNormal, Normal, Uniform, biject_to

from skavi import AmortizedVI, FactorizedVI
from skavi.inference_functions import Polynomial
from skavi.models import ConditionalModel, HierarchicalModel, MarkovModel
from skavi.noise import GaussHermite

X = np.array([[0.3], [1.7], [4.0]])


class Bounded(HierarchicalModel):
    """One latent a row with a prior that is given, under normal noise."""

    n_latents = 1

    def __init__(self, prior=None):
        self.prior = prior

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta):
        return self.prior()

    def likelihood(self, z, theta):
        return Normal(z.double(), 0.5)  # whole numbers for a Categorical


def _gamma():
    return Gamma(2.0, 1.0)


BOUNDED = {
    "Gamma": _gamma,
    "Beta": lambda: Beta(2.0, 3.0),
    "LogNormal": lambda: LogNormal(0.0, 1.0),
    "HalfNormal": lambda: HalfNormal(2.0),
    "Uniform": lambda: Uniform(-1.0, 5.0),
}


def _mean_field_optimum(prior, x):
    """Return mean, sd and 5 % quantile of the best N(m, s^2) of the number without bounds."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    nodes, weights = torch.as_tensor(nodes), torch.as_tensor(weights / weights.sum())
    bijection = biject_to(prior.support)

    def loss(point):
        u = point[0] + np.exp(point[1]) * nodes
        z = bijection(u)
        log_joint = prior.log_prob(z) + bijection.log_abs_det_jacobian(u, z)
        return -float(weights @ (log_joint + Normal(z, 0.5).log_prob(torch.tensor(x)))) - point[1]

    m, log_s = minimize(loss, [0.0, -1.0], method="Nelder-Mead", options={"xatol": 1e-7}).x
    z = bijection(m + np.exp(log_s) * nodes)
    mean = weights @ z
    low = bijection(torch.tensor(m - 1.6448536 * np.exp(log_s)))
    return float(mean), float((weights @ (z - mean) ** 2).sqrt()), float(low)


@pytest.mark.parametrize("name", BOUNDED)
def test_a_posterior_is_the_mean_field_optimum(name):
    """Within 0.01 sd, on the latents' own scale; transform, score and sample speak it, too."""
    prior = BOUNDED[name]()
    vi = FactorizedVI(Bounded(BOUNDED[name]), noise=GaussHermite(40)).fit(X)
    posterior = vi.posterior(X)
    for n, x in enumerate(X[:, 0]):
        mean, sd, low = _mean_field_optimum(prior, x)
        assert posterior.mean[n, 0] == pytest.approx(mean, abs=0.01 * sd)
        assert posterior.sd[n, 0] == pytest.approx(sd, rel=0.01)
        assert posterior.quantile(0.05)[n, 0] == pytest.approx(low, abs=0.01 * sd)
        assert posterior.cdf(posterior.quantile(0.05))[n, 0] == pytest.approx(0.05)
    np.testing.assert_allclose(vi.transform(X), posterior.mean)
    draws = posterior.sample(4000, random_state=0)
    np.testing.assert_allclose(draws.mean(0), posterior.mean, atol=0.1)
    rows, latents = vi.sample(2000, random_state=0)
    assert bool(prior.support.check(torch.as_tensor(latents)).all())
    assert latents.mean() == pytest.approx(float(prior.mean), abs=0.2)
    np.testing.assert_allclose((rows - latents).std(), 0.5, rtol=0.1)
    np.testing.assert_allclose(vi.inverse_transform(latents[:5]), latents[:5])


def test_a_function_gives_the_same_factors():
    noise = GaussHermite(20)
    amortized = AmortizedVI(Bounded(_gamma), Polynomial(2), noise=noise).fit(X)
    table = FactorizedVI(Bounded(_gamma), noise=noise).fit(X)
    np.testing.assert_allclose(amortized.transform(X), table.transform(X), atol=1e-4)
    tree = table.to_arviz(X, n_draws=20, random_state=0)
    assert float(tree["posterior"]["z"].min()) > 0


def test_covariates_may_move_a_bounded_prior():
    class Sized(ConditionalModel):
        covariates = (1,)
        n_latents = 1

        def global_prior(self, n_features):
            return {"size": Normal(0.0, 1.0)}

        def local_prior(self, theta, covariates):
            return Gamma(2.0, torch.exp(-theta["size"] * covariates))

        def likelihood(self, z, theta, covariates):
            return Normal(z, 0.5)

    table = np.column_stack([[1.0, 2.0, 4.0, 9.0], [0.0, 0.0, 1.0, 1.0]])
    vi = FactorizedVI(Sized()).fit(table)
    assert vi.global_posterior_.mean["size"] > 0.3
    assert vi.transform(table).min() > 0
    rows, latents = vi.sample(covariates=[[0.0], [1.0]], random_state=0)
    assert rows.shape == (2, 2)
    assert latents.min() > 0


# --- every distribution of torch ----------------------------------------------------------------

#: How to make the distributions whose parameters are not one or two positive numbers.
MADE = {
    "Bernoulli": lambda: distributions.Bernoulli(0.3),
    "Binomial": lambda: distributions.Binomial(3, torch.tensor(0.3)),
    "Categorical": lambda: distributions.Categorical(torch.ones(3)),
    "Dirichlet": lambda: distributions.Dirichlet(torch.ones(1)),
    "Geometric": lambda: distributions.Geometric(0.3),
    "ContinuousBernoulli": lambda: distributions.ContinuousBernoulli(0.3),
    "GeneralizedPareto": lambda: distributions.GeneralizedPareto(0.0, 1.0, 0.1),
    "Independent": lambda: distributions.Independent(Normal(torch.zeros(1), 1.0), 1),
    "InverseGamma": lambda: distributions.InverseGamma(torch.tensor(3.0), torch.tensor(1.0)),
    "LKJCholesky": lambda: distributions.LKJCholesky(2, torch.tensor(1.0)),
    "LogisticNormal": lambda: distributions.LogisticNormal(torch.zeros(1), torch.ones(1)),
    "LogitRelaxedBernoulli": lambda: distributions.LogitRelaxedBernoulli(
        torch.tensor(1.0), torch.tensor(0.3)
    ),
    "LowRankMultivariateNormal": lambda: distributions.LowRankMultivariateNormal(
        torch.zeros(1), torch.ones(1, 1), torch.ones(1)
    ),
    "MixtureSameFamily": lambda: distributions.MixtureSameFamily(
        distributions.Categorical(torch.ones(2)), Gamma(torch.tensor([2.0, 9.0]), 1.0)
    ),
    "Multinomial": lambda: distributions.Multinomial(3, torch.ones(1)),
    "MultivariateNormal": lambda: distributions.MultivariateNormal(torch.zeros(1), torch.eye(1)),
    "NegativeBinomial": lambda: distributions.NegativeBinomial(3, torch.tensor(0.3)),
    "OneHotCategorical": lambda: distributions.OneHotCategorical(torch.ones(1)),
    "OneHotCategoricalStraightThrough": lambda: distributions.OneHotCategoricalStraightThrough(
        torch.ones(1)
    ),
    "RelaxedBernoulli": lambda: distributions.RelaxedBernoulli(
        torch.tensor(1.0), torch.tensor(0.3)
    ),
    "RelaxedOneHotCategorical": lambda: distributions.RelaxedOneHotCategorical(
        torch.tensor(1.0), torch.ones(1)
    ),
    "StudentT": lambda: distributions.StudentT(5.0),
    "TransformedDistribution": lambda: distributions.TransformedDistribution(
        Normal(0.0, 1.0), distributions.SigmoidTransform()
    ),
    "Uniform": lambda: Uniform(0.0, 5.0),
    "Wishart": lambda: distributions.Wishart(torch.tensor(3.0), torch.eye(2)),
    "VonMises": lambda: distributions.VonMises(0.0, 1.0),
}
FINITE = {"Bernoulli", "Binomial", "Categorical", "OneHotCategorical"}
FINITE |= {"OneHotCategoricalStraightThrough"}
REFUSED = {
    "Dirichlet": "softmax",
    "GeneralizedPareto": "use Pareto",
    "Geometric": "largest",
    "LKJCholesky": "matrix",
    "LogisticNormal": "softmax",
    "Multinomial": "largest",
    "NegativeBinomial": "largest",
    "Poisson": "largest",
    "RelaxedOneHotCategorical": "softmax",
    "VonMises": "atan2",
    "Wishart": "matrix",
}
#: Not distributions of their own.
BASES = {"Distribution", "ExponentialFamily"}
NAMES = sorted(
    name
    for name in distributions.__all__
    if inspect.isclass(each := getattr(distributions, name))
    and issubclass(each, distributions.Distribution)
    and name not in BASES
)


def _made(name):
    if name in MADE:
        return MADE[name]()
    cls = getattr(distributions, name)
    needed = list(cls.arg_constraints)
    return cls(*[torch.tensor(2.0)] * min(2, len(needed)))


@pytest.mark.parametrize("name", NAMES)
def test_every_distribution_is_right_or_refused(name):
    """Right: the posterior mean is within the prior's support and near quadrature's one."""
    vi = FactorizedVI(Bounded(lambda: _made(name)), noise=GaussHermite(20), tol=1e-4)
    if name in REFUSED:
        with pytest.raises(ValueError, match=rf"local_prior returned {name}.*{REFUSED[name]}"):
            vi.fit(X)
        return
    vi.fit(X)
    if name in FINITE:
        np.testing.assert_allclose(vi.transform(X).sum(1), 1)
        return
    prior = _made(name)
    grid = torch.linspace(-12, 25, 40_001, dtype=torch.float64)[:, None]
    grid = grid.float() if name == "LowRankMultivariateNormal" else grid
    inside = prior.support.check(grid if prior.event_shape else grid[:, 0])
    grid = grid[inside.reshape(-1)][1:-1]
    density = prior.log_prob(grid if prior.event_shape else grid[:, 0])
    log_joint = density[:, None] + Normal(grid, 0.5).log_prob(torch.as_tensor(X[:, 0]))
    weight = torch.softmax(log_joint, 0)
    exact = (weight * grid).sum(0)
    sd = (weight * (grid - exact) ** 2).sum(0).sqrt()
    # q is not the exact posterior: half an sd is far from what a wrong Jacobian does.
    np.testing.assert_array_less(np.abs(vi.transform(X)[:, 0] - exact.numpy()), 0.5 * sd.numpy())


def test_a_bound_that_moves_with_theta_is_refused():
    class Moving(Bounded):
        def global_prior(self, n_features):
            return {"top": Gamma(2.0, 1.0)}

        def local_prior(self, theta):
            return Uniform(0.0, theta["top"])

    with pytest.raises(ValueError, match=r"Uniform.*depends on the globals.*sigmoid"):
        FactorizedVI(Moving()).fit(X)


def test_a_chain_of_bounded_latents_is_refused():
    class Chain(MarkovModel):
        n_latents = 1

        def global_prior(self, n_features):
            return {}

        def initial_prior(self, theta):
            return Gamma(2.0, 1.0)

        def transition(self, z_previous, theta):
            return Gamma(2.0, 1.0)

        def likelihood(self, z, theta):
            return Normal(z, 1.0)

    with pytest.raises(ValueError, match=r"Gamma.*in a series are real numbers.*torch\.exp"):
        FactorizedVI(Chain()).fit(X)
