"""Models of rows given covariates: closed forms, and all that carries covariates along."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal
from torch.distributions import Normal

import skavi
from skavi import AmortizedVI, FactorizedVI, amortization_gap, can_close_gap
from skavi.families import FullNormal
from skavi.inference_functions import Polynomial
from skavi.models import ConditionalModel


class Regression(ConditionalModel):
    """x ~ N(c b, 0.5^2), b ~ N(0, 3^2): no latents."""

    n_latents = 0

    def __init__(self, covariates=("c0", "c1")):
        self.covariates = covariates

    def global_prior(self, n_features):
        return {"slopes": Normal(torch.zeros(2), 3.0)}

    def likelihood(self, z, theta, covariates):
        return Normal((covariates @ theta["slopes"]).unsqueeze(-1), 0.5)


class Factors(ConditionalModel):
    """x = W z + B c + noise with W and B known: z | x, c is normal."""

    covariates = (1, 4)
    n_latents = 2
    W = np.array([[1.0, 0.2], [-0.3, 0.8], [0.5, 0.5]])
    B = np.array([[0.7, -1.0], [0.0, 0.4], [1.5, 0.3]])

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta, covariates):
        return Normal(covariates, 1.0)  # E z = c

    def likelihood(self, z, theta, covariates):
        W, B = torch.tensor(self.W), torch.tensor(self.B)
        return Normal(z @ W.mT + covariates @ B.mT, 0.6)


def table(n=40, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(n, 2)), columns=["c0", "c1"])
    frame["x"] = 1.5 * frame["c0"] - frame["c1"] + 0.5 * rng.normal(size=n)
    return frame[["c1", "x", "c0"]]


def factor_table(n=30, seed=0):
    """Columns x0, c0, x1, x2, c1."""
    rng = np.random.default_rng(seed)
    c = rng.normal(size=(n, 2))
    z = c + rng.normal(size=(n, 2))
    x = z @ Factors.W.T + c @ Factors.B.T + 0.6 * rng.normal(size=(n, 3))
    return np.column_stack([x[:, 0], c[:, 0], x[:, 1:], c[:, 1]])


def test_a_regression_has_its_posterior_and_evidence():
    """x ~ N(C b, s^2 I), b ~ N(0, t^2 I): x ~ N(0, s^2 I + t^2 C C'), and b | x is normal with
    precision C'C / s^2 + I / t^2 and mean C'x / s^2 over it. A full q(b) attains both.
    """
    X = table()
    vi = FactorizedVI(Regression(), global_family=FullNormal()).fit(X)
    C, x = X[["c0", "c1"]].to_numpy(), X["x"].to_numpy()
    evidence = multivariate_normal.logpdf(x, np.zeros(40), 0.25 * np.eye(40) + 9 * C @ C.T)
    assert vi.elbo_ == pytest.approx(evidence, abs=1e-8)
    covariance = np.linalg.inv(C.T @ C / 0.25 + np.eye(2) / 9)
    np.testing.assert_allclose(vi.global_posterior_.mean["slopes"], covariance @ C.T @ x / 0.25)
    np.testing.assert_allclose(vi.global_posterior_.sd["slopes"], np.diag(covariance) ** 0.5)
    assert (vi.n_features_in_, vi.transform(X).shape) == (3, (40, 0))


def test_factors_given_covariates_have_their_posterior_and_evidence():
    """z ~ N(c, I), x ~ N(W z + B c, s^2 I): x ~ N(W c + B c, s^2 I + W W'), and z | x has
    precision P = I + W'W / s^2 and mean c + P^-1 W' (x - W c - B c) / s^2.
    """
    X = factor_table()
    vi = FactorizedVI(Factors(), family=FullNormal()).fit(X)
    c, x, W, B = X[:, [1, 4]], X[:, [0, 2, 3]], Factors.W, Factors.B
    rest = x - c @ (W + B).T
    evidence = multivariate_normal.logpdf(rest, np.zeros(3), 0.36 * np.eye(3) + W @ W.T)
    np.testing.assert_allclose(vi.score_samples(X), evidence, atol=1e-8)
    precision = np.eye(2) + W.T @ W / 0.36
    mean = c + np.linalg.solve(precision, W.T @ rest.T / 0.36).T
    np.testing.assert_allclose(vi.transform(X), mean, atol=1e-6)
    # E[x | z, c], of the columns that are explained.
    here = vi.inverse_transform(mean, covariates=c)
    np.testing.assert_allclose(here, mean @ W.T + c @ B.T)


def test_a_function_of_x_and_c_closes_the_gap():
    X = factor_table()
    amortized = AmortizedVI(Factors(), Polynomial(1)).fit(X)
    assert abs(amortization_gap(amortized, X).total) < 1e-8
    verdict = can_close_gap(Factors(), X, random_state=0)
    assert verdict.closable
    assert verdict.context == (0, 0)
    assert can_close_gap(Factors(), n_features=3, random_state=0).closable


def test_rows_keep_their_covariates_through_weights_and_parts():
    X = table(200)
    full = FactorizedVI(Regression()).fit(X)
    slopes = full.global_posterior_.mean["slopes"]
    twice = FactorizedVI(Regression()).fit(X[:100], sample_weight=np.full(100, 2.0))
    again = FactorizedVI(Regression()).fit(pd.concat([X[:100], X[:100]]))
    assert twice.elbo_ == pytest.approx(again.elbo_, abs=1e-6)
    parts = FactorizedVI(Regression(), global_family=FullNormal())
    for part in (X[:100], X[100:]):
        parts.partial_fit(part)
    np.testing.assert_allclose(parts.global_posterior_.mean["slopes"], slopes, atol=1e-6)


def test_samples_hold_the_covariates_they_were_drawn_for():
    X = table()
    vi = FactorizedVI(Regression()).fit(X)
    given = X[["c0", "c1"]][:5]
    drawn, Z = vi.sample(covariates=given, random_state=0)
    assert (drawn.shape, Z.shape) == ((5, 3), (5, 0))
    np.testing.assert_array_equal(drawn[:, [2, 0]], given)
    means = np.mean([vi.sample(covariates=given, random_state=s)[0] for s in range(400)], 0)
    expected = given.to_numpy() @ vi.global_posterior_.mean["slopes"]
    np.testing.assert_allclose(means[:, 1], expected, atol=0.1)  # 4 of the mean's sds
    with pytest.raises(ValueError, match=r"pass covariates=... \(c0, c1"):
        vi.sample(3)
    with pytest.raises(ValueError, match="covariates has 5 rows, but there are 3"):
        vi.sample(3, covariates=given)


def test_a_fit_is_saved_with_its_columns(tmp_path):
    X = table()
    vi = FactorizedVI(Regression()).fit(X)
    skavi.save(vi, tmp_path / "fit.skavi")
    back = skavi.load(tmp_path / "fit.skavi", model=Regression())
    np.testing.assert_array_equal(back.score_samples(X), vi.score_samples(X))


def test_draws_for_arviz_are_of_the_explained_columns():
    pytest.importorskip("arviz_base")
    X = table()
    tree = FactorizedVI(Regression()).fit(X).to_arviz(X, n_draws=4)
    assert dict(tree["observed_data"]["x"].sizes) == {"row": 40, "feature": 1}
    assert list(tree["posterior_predictive"]["x"].coords["feature"]) == ["x"]


def test_a_conditional_model_names_covariates():
    with pytest.raises(ValueError, match="name at least one column"):
        FactorizedVI(Regression(covariates=None)).fit(table())
    with pytest.raises(ValueError, match=r"covariates=1.5\): covariates must name columns"):
        FactorizedVI(Regression(covariates=1.5)).fit(table())
