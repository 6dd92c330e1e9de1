"""Regressions on columns of any scale, under narrow and wide priors: fits reach their optimum.

Under q(b) = N(m, diag(s^2)) the linear predictor of a row is normal, with mean m0 + m1 x and
variance s0^2 + s1^2 x^2. So the ELBO takes one expectation in one dimension: in closed form for
normal and Poisson responses, by 64 Gauss-Hermite nodes for Bernoulli ones. scipy maximises it here,
from the maximum a posteriori with the curvature's sds, in units of these.
"""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import gammaln
from torch.distributions import Bernoulli, Normal, Poisson

from skavi import AmortizedVI, FactorizedVI
from skavi.models import HierarchicalModel

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
LIKELIHOODS = {
    "normal": lambda eta: Normal(eta, 1.0),
    "logistic": lambda eta: Bernoulli(logits=eta),
    "poisson": lambda eta: Poisson(torch.exp(eta), validate_args=False),
}


class Regression(HierarchicalModel):
    """y given b0 + b1 x for rows (x, y), with b ~ N(0, sd^2)."""

    n_latents = 0

    def __init__(self, response="normal", sd=1.0):
        self.response = response
        self.sd = sd

    def global_prior(self, n_features):
        return {"b": Normal(torch.zeros(2), self.sd)}

    def log_likelihood(self, theta, z, X):
        eta = theta["b"][0] + theta["b"][1] * X[:, 0]
        return LIKELIHOODS[self.response](eta).log_prob(X[:, 1])


def rows_of(response, scale, seed):
    rng = np.random.default_rng(seed)
    u = 0.5 + rng.normal(size=40)
    eta = 0.3 + 0.8 * u
    y = {
        "normal": lambda: eta + rng.normal(size=40),
        "logistic": lambda: (rng.random(40) < 1 / (1 + np.exp(-eta))) * 1.0,
        "poisson": lambda: rng.poisson(np.exp(eta)).astype(float),
    }[response]()
    return np.c_[scale * u, y]


def expected_log_likelihood(response, y, mean, variance):
    if response == "normal":
        return -0.5 * ((y - mean) ** 2 + variance + np.log(2 * np.pi))
    if response == "poisson":
        return y * mean - np.exp(np.minimum(mean + variance / 2, 600)) - gammaln(y + 1)
    eta = mean + np.sqrt(variance) * NODES[:, None]
    return y * mean - WEIGHTS @ np.logaddexp(0, eta)


def highest_elbo(response, X, sd):
    """Return the highest mean-field ELBO, in nats."""
    x, y = X.T
    design = np.c_[np.ones(len(x)), x]
    b, unit = np.zeros(2), np.array([1.0, 1 / np.abs(x).max()])
    for _ in range(200):  # Newton's method with step halving, in units of the column
        log_p, slope, curvature = map_terms(response, y, design @ b)
        g = unit * (design.T @ slope - b / sd**2)
        H = unit[:, None] * (design.T @ (design * curvature[:, None]) + np.eye(2) / sd**2) * unit
        step, here = unit * np.linalg.solve(H, g), log_p - 0.5 * b @ b / sd**2
        length = 1.0
        while length > 1e-12:
            new = b + length * step
            if map_terms(response, y, design @ new)[0] - 0.5 * new @ new / sd**2 >= here:
                break
            length /= 2
        b = b + length * step
    sds = unit / np.sqrt(np.diag(H))

    def loss(v):
        m, s = b + sds * v[:2], sds * np.exp(np.clip(v[2:], -20, 20))
        terms = expected_log_likelihood(response, y, design @ m, design**2 @ s**2)
        prior = -0.5 * (m**2 + s**2) / sd**2 - np.log(sd) + np.log(s) + 0.5
        return -terms.sum() - prior.sum()

    best = np.zeros(4)
    for _ in range(3):
        best = minimize(loss, best, method="BFGS", options={"gtol": 1e-9}).x
        best = minimize(loss, best, method="Nelder-Mead", options={"fatol": 1e-10}).x
    return -loss(best)


def map_terms(response, y, eta):
    """Return the log likelihood, its slope and minus its curvature in eta, constants left out."""
    if response == "normal":
        return -0.5 * ((y - eta) ** 2).sum(), y - eta, np.ones_like(eta)
    if response == "poisson":
        rate = np.exp(np.minimum(eta, 600))
        return (y * eta - rate).sum(), y - rate, rate
    p = 1 / (1 + np.exp(-np.clip(eta, -600, 600)))
    return (y * eta - np.logaddexp(0, eta)).sum(), y - p, p * (1 - p)


def shortfall(kind, response, scale, sd, seed):
    X = rows_of(response, scale, seed)
    vi = kind(Regression(response, sd), random_state=seed).fit(X)
    assert vi.converged_
    return highest_elbo(response, X, sd) - vi.elbo_


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FactorizedVI, AmortizedVI])
@pytest.mark.parametrize("response", list(LIKELIHOODS))
@pytest.mark.parametrize(("scale", "sd"), [(1e-3, 100.0), (1e6, 1.0), (1e6, 100.0)])
def test_corner_cases_reach_the_optimum(kind, response, scale, sd):
    """One seed each: the grid of every night has three."""
    assert abs(shortfall(kind, response, scale, sd, seed=0)) < 0.01


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [FactorizedVI, AmortizedVI])
@pytest.mark.parametrize("response", list(LIKELIHOODS))
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("sd", [1.0, 3.0, 10.0, 100.0])
def test_no_scale_and_no_prior_stops_a_fit_below_its_optimum(kind, response, scale, sd):
    for seed in range(3):
        assert abs(shortfall(kind, response, scale, sd, seed)) < 0.01
