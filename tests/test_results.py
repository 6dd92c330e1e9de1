"""Results as data: frames, quantiles, ArviZ's trees and what notebooks show."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import dirichlet, lognorm, norm
from torch.distributions import Dirichlet, HalfNormal, MultivariateNormal, Normal, Uniform
from torch.distributions.constraints import less_than

from skavi import FactorizedVI
from skavi.distributions import Flat
from skavi.families import DiagonalNormal
from skavi.models import (
    FactorAnalysis,
    HierarchicalModel,
    LinearModel,
    LocalLevel,
)
from skavi.posterior import GlobalPosterior, LatentPosterior

QUANTILES = np.array([0.05, 0.5, 0.95])
SCHOOLS = np.array(
    [[28, 15], [8, 10], [-3, 16], [7, 11], [-1, 9], [1, 11], [18, 10], [12, 18]], float
)


class Below(Flat):
    """Flat on x < 2: its bijection falls."""

    def __init__(self):
        super().__init__()
        self.support = less_than(2.0)


class ManyKinds(HierarchicalModel):
    """One global of each kind of support."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {
            "real": Normal(torch.zeros(2, 2), 1.0),
            "positive": HalfNormal(1.0),
            "interval": Uniform(1.0, 3.0),
            "below": Below(),
            "vector": MultivariateNormal(torch.zeros(2), torch.eye(2)),
            "simplex": Dirichlet(torch.ones(2)),
        }

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta):
        return Normal(z, theta["positive"])


@pytest.fixture(scope="module")
def global_posterior():
    mean = np.array([0.1, -0.4, 2.0, 1.0, 0.3, -0.7, 0.2, 1.0, 2.0, 0.5])
    log_sd = np.log(np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 0.2, 0.3, 0.4]))
    return GlobalPosterior(ManyKinds(), DiagonalNormal(), np.concatenate([mean, log_sd]), 1)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 3)) + 0.3 * rng.normal(size=(40, 3))
    return pd.DataFrame(X, index=[f"case {i}" for i in range(40)], columns=["a", "b", "c"])


@pytest.fixture(scope="module")
def fitted(table):
    return FactorizedVI(FactorAnalysis(2), random_state=0).fit(table)


# Latents


def test_a_frame_keeps_rows_and_names(fitted, table):
    posterior = fitted.posterior(table)
    frame = posterior.to_frame()
    assert list(frame.index) == list(table.index)
    latents = ["factorizedvi0", "factorizedvi1"]
    assert list(fitted.get_feature_names_out()) == latents
    labels = ["mean", "sd", "5%", "50%", "95%"]
    assert list(frame) == [f"{name}_{label}" for name in latents for label in labels]
    np.testing.assert_array_equal(frame["factorizedvi1_mean"], posterior.mean[:, 1])
    np.testing.assert_array_equal(frame["factorizedvi0_sd"], posterior.sd[:, 0])
    np.testing.assert_array_equal(frame["factorizedvi1_95%"], posterior.quantile(0.95)[:, 1])


def test_an_array_gives_numbered_rows(fitted, table):
    fitted = FactorizedVI(LinearModel(), output="mean_sd").fit([[1.0], [2.0]])
    frame = fitted.posterior([[1.0], [2.0]]).to_frame(quantiles=(0.25,))
    assert list(frame.index) == [0, 1]
    assert list(frame) == ["factorizedvi0_mean", "factorizedvi0_sd", "factorizedvi0_25%"]


def test_a_posterior_by_hand_has_plain_names():
    posterior = LatentPosterior(np.zeros((2, 1)), np.ones((2, 1)), np.ones((2, 1, 1)))
    assert list(posterior.to_frame(quantiles=())) == ["latent0_mean", "latent0_sd"]


def test_latent_quantiles_are_the_normals(fitted, table):
    posterior = fitted.posterior(table)
    expected = norm.ppf(QUANTILES[:, None, None], posterior.mean, posterior.sd)
    np.testing.assert_allclose(posterior.quantile(QUANTILES), expected, rtol=1e-12)
    np.testing.assert_allclose(posterior.quantile(0.95), expected[2], rtol=1e-12)


@pytest.mark.parametrize("q", [-0.1, 1.5, [0.5, np.nan]])
def test_wrong_probabilities_are_named(fitted, table, q):
    with pytest.raises(ValueError, match=r"q=.*probabilities must be in \[0, 1\]"):
        fitted.posterior(table).quantile(q)
    with pytest.raises(ValueError, match=r"q=.*probabilities must be in \[0, 1\]"):
        fitted.global_posterior_.quantile(q)


# Globals


def test_global_quantiles_are_exact_through_every_elementwise_bijection(global_posterior):
    """Closed forms on the model's scale, bijections written out anew; rtol is rounding."""
    quantiles = global_posterior.quantile(QUANTILES)
    z = norm.ppf(QUANTILES)
    mean, sd = np.array([[0.1, -0.4], [2.0, 1.0]]), np.array([[0.5, 0.6], [0.7, 0.8]])
    expected = {
        "real": mean + sd * z[:, None, None],
        "positive": lognorm.ppf(QUANTILES, 0.9, scale=np.exp(0.3)),
        "interval": 1 + 2 / (1 + np.exp(-(-0.7 + 1.0 * z))),
        "below": 2 - np.exp(0.2 - 1.1 * z),  # falls in u, so takes the other tail
        "vector": np.array([1.0, 2.0]) + z[:, None] * np.array([0.2, 0.3]),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(quantiles[name], value, rtol=1e-12, err_msg=name)


def test_quantiles_of_a_simplex_agree_with_many_draws(global_posterior):
    """One logit u ~ N(0.5, 0.4^2) makes a simplex of two (stick breaking): monotone, so exact.

    4,096 Sobol draws place a quantile to about 1e-3.
    """
    first = 1 / (1 + np.exp(-(0.5 + 0.4 * norm.ppf(QUANTILES))))
    quantiles = global_posterior.quantile(QUANTILES)["simplex"]
    np.testing.assert_allclose(quantiles[:, 0], first, atol=2e-3)
    np.testing.assert_allclose(quantiles[::-1, 1], 1 - first, atol=2e-3)
    assert dirichlet([1, 1]).mean().sum() == 1


def test_a_summary_has_a_row_a_number(global_posterior):
    summary = global_posterior.summary()
    assert list(summary) == ["name", "index", "mean", "sd", "5%", "50%", "95%"]
    places = [("real", (i, j)) for i in range(2) for j in range(2)]
    places += [("positive", ()), ("interval", ()), ("below", ())]
    places += [(name, (i,)) for name in ("vector", "simplex") for i in range(2)]
    assert list(zip(summary["name"], summary["index"], strict=True)) == places
    row = summary.iloc[places.index(("real", (1, 0)))]
    assert row["mean"] == pytest.approx(global_posterior.mean["real"][1, 0])
    assert row["sd"] == pytest.approx(global_posterior.sd["real"][1, 0])
    assert row["5%"] == pytest.approx(global_posterior.quantile(0.05)["real"][1, 0])
    assert (summary["5%"] < summary["50%"]).all() and (summary["50%"] < summary["95%"]).all()


def test_a_model_without_globals_has_an_empty_summary():
    vi = FactorizedVI(LocalLevel(level_sd=1.0, noise_sd=1.0)).fit([[1.0], [2.0]])
    assert len(vi.global_posterior_.summary()) == 0
    assert vi.global_posterior_.quantile(0.5) == {}
    assert "0 numbers" in vi.global_posterior_._repr_html_()
