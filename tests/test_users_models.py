"""Models as readers of PyTorch write them, on raw data: each fit reaches its optimum, or says so.

Constants are in float32, distributions come straight from torch, and columns are not standardised.
Right values are from closed forms, quadrature, or references that nobody here wrote (posteriordb).
"""

import warnings

import numpy as np
import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Binomial,
    Dirichlet,
    Gamma,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    Normal,
    Poisson,
    Uniform,
)

from skavi import AmortizedVI, FactorizedVI, amortization_gap
from skavi.inference_functions import Constant
from skavi.models import HierarchicalModel, LatentVariableModel, TopicModel
from skavi.noise import GaussHermite


class NoLatents(HierarchicalModel):
    """The base of models that have globals only."""

    n_latents = 0


class Logistic(NoLatents):
    """y ~ Bernoulli(logit = b0 + b1 x) for rows (x, y), with coefficients b ~ N(0, sd^2)."""

    def __init__(self, sd=10.0):
        self.sd = sd

    def global_prior(self, n_features):
        return {"b": Normal(torch.zeros(2), self.sd)}

    def log_likelihood(self, theta, z, X):
        return Bernoulli(logits=theta["b"][0] + theta["b"][1] * X[:, 0]).log_prob(X[:, 1])


def raw_column():
    rng = np.random.default_rng(0)
    x = 500 + 100 * rng.normal(size=30)
    return np.c_[x, (rng.random(30) < 1 / (1 + np.exp(-(x - 500) / 100))) * 1.0]


@pytest.mark.parametrize("sd", [2.0, 4.0, 10.0, 100.0])
def test_a_raw_column_is_as_easy_as_a_standardised_one(sd):
    """The same model of (x - 500) / 100, whose coefficients have the prior of the raw ones.

    b0 + b1 x = (b0 + 500 b1) + 100 b1 u: not mean-field in the same coordinates, so ELBOs differ;
    the maximum a posteriori does not. Where the prior is wide it is a plain logistic regression, by
    iteratively reweighted least squares here, and q's mean is near it: within one posterior sd.
    """
    X = raw_column()
    design, b = np.c_[np.ones(30), X[:, 0]], np.zeros(2)
    for _ in range(100):
        p = 1 / (1 + np.exp(-design @ b))
        H = design.T @ (design * (p * (1 - p))[:, None]) + np.eye(2) / sd**2
        b = b + np.linalg.solve(H, design.T @ (X[:, 1] - p) - b / sd**2)
    sds = np.sqrt(np.diag(np.linalg.inv(H)))
    vi = FactorizedVI(Logistic(sd), random_state=0).fit(X)
    assert vi.converged_
    assert np.all(np.abs(vi.global_posterior_.mean["b"] - b) < sds)


def test_the_optimum_of_the_raw_column():
    """ELBO -29.21 and b = (-8.14, .016): by L-BFGS written by hand, and Laplace agrees."""
    vi = FactorizedVI(Logistic(), random_state=0).fit(raw_column())
    assert vi.elbo_ == pytest.approx(-29.2101, abs=1e-3)
    np.testing.assert_allclose(vi.global_posterior_.mean["b"], [-8.14, 0.0163], rtol=1e-2)


class Visits(HierarchicalModel):
    """Counts at four visits a row, with the raw age at each in the columns behind them."""

    n_latents = 1

    def __init__(self, slope=1.0, shift=0.0):
        self.slope = slope
        self.shift = shift

    def global_prior(self, n_features):
        return {
            "b0": Normal(0.0, 10.0),
            "b1": Normal(0.0, 10.0 * self.slope),
            "tau": HalfNormal(2.0),
        }

    def local_prior(self, theta):
        return Normal(0.0, 1.0)

    def log_likelihood(self, theta, z, X):
        eta = theta["b0"] + theta["b1"] * X[:, 4:] + theta["tau"] * z
        return Poisson(torch.exp(eta), validate_args=False).log_prob(X[:, :4]).sum(-1)


def visits():
    rng = np.random.default_rng(2)
    age = rng.uniform(20, 70, (30, 1)) + np.arange(4)
    y = rng.poisson(np.exp(0.2 + 0.03 * age + 0.5 * rng.normal(size=(30, 1))))
    return np.c_[y, age].astype(float)


def test_a_raw_age_has_the_elbo_of_a_rescaled_one():
    """b1 age = (10 b1) (age / 10): with the prior of b1 moved along, mean-field in b1 is mean-field
    in 10 b1, so the ELBOs are equal. What was planted is b1 = .03, tau = .5.
    """
    X = visits()
    rescaled = np.c_[X[:, :4], X[:, 4:] / 10]
    raw = FactorizedVI(Visits(), random_state=0).fit(X)
    other = FactorizedVI(Visits(slope=10.0), random_state=0).fit(rescaled)
    assert raw.converged_
    assert raw.elbo_ == pytest.approx(other.elbo_, abs=1e-4)
    assert float(raw.global_posterior_.mean["b1"]) == pytest.approx(0.03, abs=0.015)
    assert float(raw.global_posterior_.mean["tau"]) == pytest.approx(0.5, abs=0.2)


class Hospitals(HierarchicalModel):
    """Deaths of operations (r of n) in hospitals, with a vague InverseGamma prior."""

    n_latents = 1

    def global_prior(self, n_features):
        return {"mu": Normal(0.0, 1000.0), "sigmasq": InverseGamma(0.001, 0.001)}

    def local_prior(self, theta):
        return Normal(theta["mu"].reshape(1), theta["sigmasq"].sqrt().reshape(1))

    def log_likelihood(self, theta, z, X):
        return Binomial(X[:, 1], logits=z[:, 0], validate_args=False).log_prob(X[:, 0])


SURGICAL = np.column_stack(
    [
        [0, 18, 8, 46, 8, 13, 9, 31, 14, 8, 29, 24],
        [47, 148, 119, 810, 211, 196, 148, 215, 207, 97, 256, 360],
    ]
).astype(float)


@pytest.mark.parametrize("seed", range(3))
def test_a_vague_prior_of_a_variance(seed):
    """posteriordb's surgical model: the mean-field optimum by 80-node quadrature and Newton."""
    vi = FactorizedVI(Hospitals(), random_state=seed).fit(SURGICAL)
    assert vi.converged_
    assert vi.elbo_ == pytest.approx(-54.68736951104768, abs=1e-4)
    assert float(vi.global_posterior_.mean["mu"]) == pytest.approx(-2.5526, abs=1e-3)
    assert float(vi.global_posterior_.mean["sigmasq"]) == pytest.approx(0.18853184, abs=1e-3)


class Curve(LatentVariableModel):
    """Counts at the times in X's first column, with a Gaussian process for their log rates."""

    n_latents = 1

    def global_prior(self, n_features):
        return {"rho": Gamma(25.0, 4.0), "alpha": HalfNormal(2.0)}

    def log_joint(self, theta, z, X):
        x, k = X.unbind(1)
        K = theta["alpha"] ** 2 * torch.exp(-0.5 * (x[:, None] - x) ** 2 / theta["rho"] ** 2)
        f = torch.linalg.cholesky(K + 1e-10 * torch.eye(len(x), dtype=x.dtype)) @ z[:, 0]
        likelihood = Poisson(torch.exp(f), validate_args=False).log_prob(k).sum()
        return likelihood + Normal(0.0, 1.0).log_prob(z).sum()


@pytest.mark.slow
def test_a_gaussian_process_of_counts_gets_going():
    """posteriordb's gp_pois_regr: rho 5.667 +- .679, alpha 2.921 +- .793 by its reference draws.

    Where the covariance of one point of the search is singular, the others still count.
    """
    X = np.c_[np.arange(-10.0, 11.0, 2.0), [40, 37, 29, 12, 4, 3, 9, 19, 77, 82, 33]]
    fits = [FactorizedVI(Curve(), random_state=seed).fit(X) for seed in (0, 1)]
    for vi in fits:
        assert vi.converged_
        assert abs(float(vi.global_posterior_.mean["rho"]) - 5.6665) < 0.679
        assert abs(float(vi.global_posterior_.mean["alpha"]) - 2.9213) < 0.793
    assert fits[0].elbo_ == pytest.approx(fits[1].elbo_, abs=0.01)


class Pair(NoLatents):
    """Two normal components, written by hand."""

    def global_prior(self, n_features):
        return {
            "w": Dirichlet(torch.ones(2)),
            "mu": Normal(torch.zeros(2), 10.0),
            "sd": HalfNormal(5.0 * torch.ones(2)),
        }

    def log_likelihood(self, theta, z, X):
        each = Normal(theta["mu"], theta["sd"], validate_args=False).log_prob(X[:, :1])
        return torch.logsumexp(each + torch.log(theta["w"]), -1)


@pytest.mark.slow
def test_no_seed_ends_with_an_empty_component():
    """Seed 1 ended 58 nats below seeds 0 and 2. What was planted: .3 at -2, .7 at 3."""
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(-2, 0.7, 60), rng.normal(3, 1.2, 140)][:, None]
    fits = [FactorizedVI(Pair(), random_state=seed).fit(x) for seed in range(3)]
    for vi in fits:
        assert vi.converged_
        assert vi.starts_[0] == pytest.approx(vi.elbo_, abs=1e-9)
        assert vi.elbo_ == pytest.approx(max(fit.elbo_ for fit in fits), abs=0.01)
        np.testing.assert_allclose(np.sort(vi.global_posterior_.mean["mu"]), [-2, 3], atol=0.3)


class Contaminated(NoLatents):
    """x ~ .9 N(m, .1^2) + .1 N(m, 10^2), by `logaddexp`, whose second derivatives torch gets wrong:
    those of logaddexp(0, -800) are NaN.
    """

    def global_prior(self, n_features):
        return {"m": Normal(0.0, 10.0)}

    def log_likelihood(self, theta, z, X):
        narrow = np.log(0.9) + Normal(theta["m"], 0.1).log_prob(X[:, 0])
        return torch.logaddexp(narrow, np.log(0.1) + Normal(theta["m"], 10.0).log_prob(X[:, 0]))


def test_outliers_by_logaddexp():
    """The exact posterior of m by quadrature on a grid, which is close to normal."""
    x = np.r_[np.random.default_rng(0).normal(3, 0.1, 30), 20.0, -15.0]
    m = np.linspace(2.7, 3.3, 20_001)[:, None]

    def density(sd):
        return np.exp(-0.5 * ((x - m) / sd) ** 2) / sd

    log_p = np.log(0.9 * density(0.1) + 0.1 * density(10.0)).sum(1) - 0.5 * (m[:, 0] / 10) ** 2
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean = float(p @ m[:, 0])
    sd = float(np.sqrt(p @ (m[:, 0] - mean) ** 2))
    vi = FactorizedVI(Contaminated(), random_state=0).fit(x[:, None])
    assert vi.converged_
    assert float(vi.global_posterior_.mean["m"]) == pytest.approx(mean, abs=1e-3)
    assert float(vi.global_posterior_.sd["m"]) == pytest.approx(sd, rel=0.02)


class Doubled(NoLatents):
    """x ~ N(m, 1), and with a share of exp(-2000) the same again: to rounding the normal model, but
    its second derivatives are NaN everywhere.
    """

    def global_prior(self, n_features):
        return {"m": Normal(0.0, 10.0)}

    def log_likelihood(self, theta, z, X):
        log_p = Normal(theta["m"], 1.0).log_prob(X[:, 0])
        return torch.logaddexp(log_p, log_p - 2000.0)


def test_first_order_steps_go_on_where_second_derivatives_are_not_finite():
    """The posterior of the conjugate model, precision n + 1/100 and mean sum(x) over it, is normal,
    so the ELBO is the log evidence: that of N(0, I + 100 11').
    """
    x = np.random.default_rng(0).normal(3, 1, 30)
    precision = len(x) + 0.01
    covariance = np.eye(len(x)) + 100
    evidence = -0.5 * (
        x @ np.linalg.solve(covariance, x)
        + np.linalg.slogdet(covariance)[1]
        + len(x) * np.log(2 * np.pi)
    )
    vi = FactorizedVI(Doubled(), random_state=0).fit(x[:, None])
    assert vi.converged_
    assert type(vi.solver_).__name__ == "LBFGS"
    assert np.isfinite(vi.suboptimality_)
    assert vi.elbo_ == pytest.approx(evidence, abs=1e-6)
    assert float(vi.global_posterior_.mean["m"]) == pytest.approx(x.sum() / precision, abs=1e-4)


class Shrunk(HierarchicalModel):
    """A horseshoe: products of heavy-tailed scales."""

    n_latents = 1

    def global_prior(self, n_features):
        return {
            "tau": HalfCauchy(1.0),
            "lam": HalfCauchy(torch.ones(n_features)),
            "b": Normal(torch.zeros(n_features), 1.0),
        }

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta):
        return Normal(z * theta["b"] * theta["lam"] * theta["tau"], 1.0)


@pytest.mark.slow
def test_a_horseshoe_is_integrated_exactly():
    """Every term reads one number of each of its vectors, so four dimensions serve for all nine.

    65,536 quasi-random points were overfitted: they gave -168.94, which no finer rule confirms.
    """
    X = np.random.default_rng(0).normal(size=(40, 3))
    vi = FactorizedVI(Shrunk(), random_state=0).fit(X)
    assert vi.converged_
    finer = GaussHermite((8, 9), shared=vi.noise_.shared)
    there = FactorizedVI(Shrunk(), noise=finer, init=vi, random_state=1).fit(X)
    assert vi.elbo_ == pytest.approx(there.elbo_, abs=1e-4)
    assert there.elbo_ == pytest.approx(-169.04695, abs=1e-4)


class BoundedCounts(HierarchicalModel):
    """posteriordb's GLMM_Poisson_model: uniform priors, effects of years."""

    n_latents = 1

    def global_prior(self, n_features):
        slopes = {f"beta{i}": Uniform(-10.0, 10.0) for i in (1, 2, 3)}
        return {"alpha": Uniform(-20.0, 20.0), **slopes, "sigma": Uniform(0.0, 5.0)}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), theta["sigma"].reshape(1))

    def log_likelihood(self, theta, z, X):
        t, c = X.unbind(1)
        slope = theta["beta1"] + t * (theta["beta2"] + t * theta["beta3"])
        eta = theta["alpha"] + t * slope + z[:, 0]
        return Poisson(torch.exp(eta), validate_args=False).log_prob(c)


PEREGRINES = (
    "26 33 32 34 22 30 24 24 28 28 36 43 36 36 44 57 56 49 63 84 59 87 91 100 121 132 151 149 145 "
    "221 209 198 251 258 262 265 259 261 263 244"
)


def test_bounded_priors_of_a_cubic_trend():
    """posteriordb's own mean-field optimum, with the uniforms' constants: -176.6821."""
    counts = np.array(PEREGRINES.split(), dtype=float)
    year = np.arange(40.0)
    X = np.c_[(year - year.mean()) / year.std(), counts]
    X[:, 0] *= 1.66802789939819 / X[-1, 0]
    vi = FactorizedVI(BoundedCounts(), random_state=0).fit(X)
    assert vi.converged_
    assert vi.elbo_ == pytest.approx(-176.6821, abs=0.01)


def topics_of_three():
    rng = np.random.default_rng(0)
    beta, share = rng.dirichlet(np.full(60, 0.1), 3), rng.dirichlet(np.full(3, 0.5), 150)
    return np.stack([rng.multinomial(60, p) for p in share @ beta]).astype(float)


def test_no_document_is_better_under_the_functions_factor():
    """Under one theta F-VI's factor of a row is optimal, so no function can do better."""
    C = topics_of_three()
    factorized = FactorizedVI(TopicModel(2), random_state=0).fit(C)
    amortized = AmortizedVI(TopicModel(2), random_state=0).fit(C)
    gap = amortization_gap(amortized, C, factorized)
    assert gap.per_row.min() > -1e-6
    assert gap.n_amortized_better == 0
    assert gap.total > -amortized.model_.coarsest_tol * len(C)


def test_a_constant_function_solves_no_row_better():
    amortized = AmortizedVI(TopicModel(2), Constant(), random_state=0).fit(topics_of_three())
    assert amortization_gap(amortized, topics_of_three()).n_amortized_better == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_rows", "n_seeds"), [(120, 2), pytest.param(300, 10, marks=pytest.mark.nightly)]
)
def test_topics_of_every_seed_are_within_a_thousandth(n_rows, n_seeds):
    """Fits of one start each ended up to 2.7 % lower. One seed in ten may."""
    rng = np.random.default_rng(1)
    topics, share = rng.dirichlet(np.full(120, 0.1), 6), rng.dirichlet(np.full(6, 0.3), n_rows)
    X = np.stack([rng.multinomial(60, p) for p in share @ topics]).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one start may stand alone, and says so
        elbos = [
            FactorizedVI(TopicModel(7), random_state=seed).fit(X).elbo_ for seed in range(n_seeds)
        ]
    short = (max(elbos) - np.array(elbos)) / abs(max(elbos))
    assert (short >= 1e-3).sum() <= n_seeds // 10
