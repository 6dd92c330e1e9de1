"""Series with unknown globals: chains beside the exact posterior, and beside independent factors.

Exact moments are by importance sampling from a wide t distribution around the chain's answer, the
latents integrated out by a filter; the weights count for hundreds of draws.
"""

import warnings

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_t, norm
from torch.distributions import Beta, HalfNormal, Normal, Uniform

from skavi import FactorizedVI
from skavi.families import DiagonalNormal
from skavi.models import CouplingBiasWarning, MarkovModel


class NoisyAutoregression(MarkovModel):
    """The how-to's: an autoregression observed in noise."""

    n_latents = 1

    def global_prior(self, n_features):
        scales = {"scale": HalfNormal(2.0), "noise": HalfNormal(2.0)}
        return {"persistence": Uniform(-1.0, 1.0)} | scales

    def initial_prior(self, theta):
        return Normal(torch.zeros(1), theta["scale"] / torch.sqrt(1 - theta["persistence"] ** 2))

    def transition(self, z_previous, theta):
        return Normal(theta["persistence"] * z_previous, theta["scale"])

    def likelihood(self, z, theta):
        return Normal(z, theta["noise"])


class StochasticVolatility(MarkovModel):
    """The gallery's: the log variance of returns is an autoregression."""

    n_latents = 1

    def global_prior(self, n_features):
        priors = {"mean": Normal(0.0, 2.0), "scale": HalfNormal(0.5)}
        return priors | {"persistence": Beta(20.0, 1.5)}

    def initial_prior(self, theta):
        return Normal(theta["mean"], theta["scale"] / torch.sqrt(1 - theta["persistence"] ** 2))

    def transition(self, z_previous, theta):
        away = z_previous - theta["mean"]
        return Normal(theta["mean"] + theta["persistence"] * away, theta["scale"])

    def likelihood(self, z, theta):
        return Normal(0.0, torch.exp(z / 2))


def kalman_evidence(theta, x):
    """Return log p(x | theta), for all thetas at once."""
    rho, q, r = theta["persistence"], theta["scale"] ** 2, theta["noise"] ** 2
    mean, variance, total = 0 * rho, q / (1 - rho**2), 0 * rho
    for value in x:
        sd = np.sqrt(variance + r)
        total = total + norm.logpdf(value, mean, sd)
        gain = variance / sd**2
        mean, variance = mean + gain * (value - mean), variance * (1 - gain)
        mean, variance = rho * mean, rho**2 * variance + q
    return total


def grid_evidence(theta, x):
    """Return log p(x | theta): latents on 60 points over four sds of their long run."""
    evidence = []
    for mean, scale, rho in zip(theta["mean"], theta["scale"], theta["persistence"], strict=True):
        sd = scale / np.sqrt(1 - rho**2)
        z = np.clip(mean + sd * np.linspace(-4, 4, 60), -30, 30)  # where exp is finite
        moves = norm.logpdf(z, (mean + rho * (z - mean))[:, np.newaxis], scale)
        moves -= logsumexp(moves, 1, keepdims=True)
        first = norm.logpdf(z, mean, sd)
        chance, total = np.exp(first - logsumexp(first)), 0.0
        density = norm.pdf(x[:, np.newaxis], 0, np.exp(z / 2))
        for row in density:
            joint = chance * row
            total += np.log(joint.sum())
            chance = joint / joint.sum() @ np.exp(moves)
        evidence.append(total)
    return np.array(evidence)


def exact_moments(vi, evidence, x, n_draws):
    """Return posterior means and sds of theta by name."""
    space, q = vi.model_.global_space(torch.as_tensor(x)[:, np.newaxis]), vi.global_posterior_
    centre, sd = (
        np.array([moment[name].item() for name in space.slices])
        for moment in (q.unconstrained_mean, q.unconstrained_corrected_sd)
    )
    proposal = multivariate_t(centre, np.diag((1.5 * sd) ** 2), df=4)
    u = torch.as_tensor(proposal.rvs(n_draws, random_state=0))
    thetas = [space.constrain(each) for each in u]
    named = {name: np.array([float(theta[name]) for theta in thetas]) for name in space.slices}
    prior = np.array([float(space.log_prior(each)) for each in u])
    logs = evidence(named, x) + prior - proposal.logpdf(u)
    weights = np.exp(logs - logsumexp(logs))
    assert 1 / (weights**2).sum() > 100
    mean = {name: weights @ values for name, values in named.items()}
    return mean, {n: np.sqrt(weights @ (v - mean[n]) ** 2) for n, v in named.items()}


def walk(n=60):
    """The how-to's series: a random walk in noise."""
    rng = np.random.default_rng(0)
    level = np.cumsum(0.3 * rng.normal(size=120))
    return (level + rng.normal(size=120))[:n]


def returns(n=120):
    """The gallery's series: returns whose log variance has persistence 0.95."""
    rng, log_variance = np.random.default_rng(1), np.zeros(n)
    for i in range(1, n):
        log_variance[i] = 0.95 * log_variance[i - 1] + 0.3 * rng.normal()
    return np.exp(log_variance / 2) * rng.normal(size=n)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("model", "x", "evidence", "n_draws"),
    [
        (NoisyAutoregression(), walk(), kalman_evidence, 4000),
        (StochasticVolatility(), returns(), grid_evidence, 1000),
    ],
)
def test_globals_are_near_the_exact_posterior(model, x, evidence, n_draws):
    """Within half an exact sd of the exact mean, and nearer than under independent factors."""
    chain = FactorizedVI(model, random_state=0).fit(x[:, np.newaxis])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CouplingBiasWarning)
        independent = FactorizedVI(model, family=DiagonalNormal(), random_state=0)
        independent.fit(x[:, np.newaxis])
    mean, sd = exact_moments(chain, evidence, x, n_draws)
    for name in mean:
        near, far = (
            abs(float(vi.global_posterior_.mean[name]) - mean[name]) / sd[name]
            for vi in (chain, independent)
        )
        print(f"{name}: {mean[name]:.3f} +- {sd[name]:.3f}; {near:.2f} and {far:.2f} sds off")
        assert near < 0.5
        assert near < far
