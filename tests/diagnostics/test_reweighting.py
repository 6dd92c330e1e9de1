"""The posterior of theta by importance weights, against quadrature and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from torch.distributions import Normal

from diagnostics.test_khat import KnownNormal
from skavi import AmortizedVI, FactorizedVI
from skavi._estimators.fitted_estimator import position_on
from skavi.diagnostics import ImportanceWeightsWarning, reweighted
from skavi.diagnostics._adaptive_sampling import sample
from skavi.diagnostics.reweighting import Marginal
from skavi.inference_functions import Polynomial
from skavi.models import FactorAnalysis, HierarchicalModel, LinearModel, LocalLevel, RandomEffects

pytest.importorskip("arviz_stats", reason="the arviz extra")

SCHOOLS = np.array(
    [[28, 15], [8, 10], [-3, 16], [7, 11], [-1, 9], [1, 11], [18, 10], [12, 18]], float
)


def log_joint_of_schools(mu, u):
    """Return log p(X, mu, u = log tau), schools' effects integrated out."""
    tau = np.exp(u)
    logs = norm.logpdf(mu, 0, 5) + u - np.log1p((tau / 5) ** 2) + np.log(2 / (5 * np.pi))
    for y, s in SCHOOLS:
        logs = logs + norm.logpdf(y, mu, np.sqrt(tau**2 + s**2))
    return logs


def schools_by_quadrature():
    """Return mean and sd of mu, tau and log tau: p(mu, tau | X) on a grid.

    y_n ~ N(mu, tau^2 + s_n^2), mu ~ N(0, 5), tau ~ HalfCauchy(5), in u = log tau: 1e-4 is reached
    with a tenth of these nodes.
    """
    mu, u = np.linspace(-25, 35, 1201)[:, None], np.linspace(-14, 7, 2101)[None]
    tau, logs = np.exp(u), log_joint_of_schools(mu, u)
    weights = np.exp(logs - logs.max())
    evidence = np.log(weights.sum() * 0.05 * 0.01) + logs.max()
    weights /= weights.sum()
    found = {}
    for name, value in (("mu", mu), ("tau", tau), ("log tau", u)):
        mean = (weights * value).sum()
        found[name] = mean, np.sqrt((weights * (value - mean) ** 2).sum())
    return found, evidence


@pytest.mark.parametrize("centred", [False, True])
def test_eight_schools_get_the_exact_sds(centred):
    """At the default draws within 2.5 %; mean-field's sd of tau is 24 % too small."""
    vi = FactorizedVI(RandomEffects(centred=centred)).fit(SCHOOLS)
    found = reweighted(vi, SCHOOLS, random_state=0)
    exact, evidence = schools_by_quadrature()
    assert found.khat < 0.5
    for name in ("mu", "tau"):
        mean, sd = exact[name]
        assert found.mean[name] == pytest.approx(mean, abs=0.03 * sd)
        assert found.sd[name] == pytest.approx(sd, rel=0.025)
    log_tau = np.log(found.draws["tau"])
    spread = np.sqrt(np.cov(log_tau, aweights=found.weights))
    assert spread == pytest.approx(exact["log tau"][1], rel=0.025)
    assert abs(found.log_evidence - evidence) < 4 * found.log_evidence_se < 0.1


def test_a_normal_posterior_is_met():
    """LinearModel with a flat theta: theta | X ~ N(mean x, (tau^2 + sigma^2) / n)."""
    X = np.random.default_rng(0).normal(2.0, 1.5, size=(20, 1))
    vi = AmortizedVI(LinearModel(1.0, 1.0), Polynomial()).fit(X)
    found = reweighted(vi, X, random_state=0)
    sd = np.sqrt(2.0 / 20)
    assert found.mean["theta"] == pytest.approx(X.mean(), abs=0.02 * sd)
    assert found.sd["theta"] == pytest.approx(sd, rel=0.02)
    quantiles = found.quantile([0.05, 0.5, 0.95])["theta"]
    np.testing.assert_allclose(quantiles, norm(X.mean(), sd).ppf([0.05, 0.5, 0.95]), atol=0.03 * sd)
    drawn = found.sample(4000, random_state=0)["theta"]
    assert drawn.std() == pytest.approx(sd, rel=0.06)
    assert list(found.summary()["name"]) == ["theta"]


def on_a_grid(vi, X):
    """Return (mean, sd) of each of two globals, and the log evidence: p(u, X) on a grid.

    Likelihoods are those that test_integrals and test_chain_integrals have against closed forms.
    """
    target = Marginal.of(position_on(vi, X), np.random.RandomState(0))
    q = vi.global_posterior_.widest_factor()
    lines = [m + s * torch.linspace(-6, 6, 37).double() for m, s in zip(q.mean, q.sd, strict=True)]
    grid = torch.cartesian_prod(*lines)
    logs = target(grid)
    weights, moments = torch.softmax(logs, 0), {}
    for name, value in target.objective.space.draws(grid).items():
        mean = float(weights @ value)
        moments[name] = mean, float(weights @ (value - mean) ** 2) ** 0.5
    cell = math.prod(float(line[1] - line[0]) for line in lines)
    return moments, float(torch.logsumexp(logs, 0)) + math.log(cell)


def test_variances_of_a_local_level_get_the_exact_posterior():
    X = np.cumsum(np.random.default_rng(0).normal(size=(25, 1)), 0)
    vi = FactorizedVI(LocalLevel()).fit(X)
    found, (moments, evidence) = reweighted(vi, X, 2000, random_state=0), on_a_grid(vi, X)
    for name, (mean, sd) in moments.items():
        assert found.mean[name] == pytest.approx(mean, abs=0.04 * sd)
        assert found.sd[name] == pytest.approx(sd, rel=0.05)
    assert abs(found.log_evidence - evidence) < 4 * found.log_evidence_se < 0.1


def test_equal_rows_count_as_often_as_they_are():
    X = np.repeat([[0.0], [1.0], [5.0]], [3, 1, 2], axis=0)
    found = reweighted(FactorizedVI(LinearModel(1.0, 1.0)).fit(X), X, random_state=0)
    assert found.mean["theta"] == pytest.approx(X.mean(), abs=0.02)


class Regression(HierarchicalModel):
    """The last column on the others, without latents: a normal posterior and a known evidence."""

    n_latents = 0

    def global_prior(self, n_features):
        return {"b": Normal(torch.zeros(n_features - 1), 2.0)}

    def log_likelihood(self, theta, z, X):
        return Normal(X[:, :-1] @ theta["b"], 1.0).log_prob(X[:, -1])


def test_the_evidence_of_a_regression_is_exact_within_its_error():
    """y ~ N(0, I + 4 A A')."""
    rng = np.random.default_rng(0)
    A = rng.normal(size=(15, 3))
    y = A @ [1.0, -1.0, 0.5] + rng.normal(size=15)
    X = np.column_stack([A, y])
    found = reweighted(FactorizedVI(Regression()).fit(X), X, random_state=0)
    expected = multivariate_normal(np.zeros(15), np.eye(15) + 4 * A @ A.T).logpdf(y)
    assert abs(found.log_evidence - expected) < 4 * found.log_evidence_se < 0.1


def test_too_many_globals_are_told():
    X = np.random.default_rng(0).normal(size=(40, 12))
    vi = FactorizedVI(FactorAnalysis(3)).fit(X)
    with pytest.warns(ImportanceWeightsWarning, match="theta has too many numbers"):
        found = reweighted(vi, X, n_draws=500, random_state=0)
    assert found.khat > found.threshold
    assert "k-hat" in found._repr_html_()


def test_what_cannot_be_weighted_is_refused():
    X = np.cumsum(np.random.default_rng(0).normal(size=(20, 1)), 0)
    with pytest.raises(ValueError, match="n_draws=10 must be"):
        reweighted(FactorizedVI(LinearModel()).fit(X), X, n_draws=10)
    with pytest.raises(ValueError, match="no globals"):
        reweighted(FactorizedVI(KnownNormal()).fit(X), X)


def test_a_narrow_and_shifted_start_is_left():
    """A banana: x ~ N(0, 1), y | x ~ N(x^2, 0.5^2), from a start 8 sds off and far too narrow."""

    def log_density(u):
        x, y = u.T
        return Normal(0.0, 1.0).log_prob(x) + Normal(x**2, 0.5).log_prob(y)

    start = torch.tensor([4.0, -4.0]).double(), 0.01 * torch.eye(2).double()
    found = sample(log_density, *start, 4000, np.random.RandomState(0))
    weights = torch.softmax(found.log_weights, 0)
    assert found.log_mean == pytest.approx(0.0, abs=4 * found.log_mean_se)
    np.testing.assert_allclose(weights @ found.draws, [0.0, 1.0], atol=0.15)
    assert float(weights @ found.draws[:, 0] ** 2) == pytest.approx(1.0, abs=0.15)
