"""Fits speak their model's own scale: proportions of topics, against quadrature and draws."""

import pickle

import numpy as np
import pytest
import torch
from scipy.special import expit, ndtr, roots_hermitenorm, softmax

from skavi import AmortizedVI, FactorizedVI
from skavi.families import DiagonalFactors
from skavi.models import FactorAnalysis, TopicModel
from skavi.models._own_scale import moments_of
from skavi.posterior import LatentPosterior, OwnScalePosterior

RNG = np.random.default_rng(0)
COUNTS = np.stack([RNG.multinomial(40, p) for p in RNG.dirichlet(np.full(8, 0.3), 30)]).astype(
    float
)


@pytest.fixture(scope="module", params=[FactorizedVI, AmortizedVI], ids=lambda e: e.__name__)
def fitted(request):
    return request.param(TopicModel(3), random_state=0).fit(COUNTS)


def test_moments_of_two_topics_are_those_of_quadrature():
    """softmax of two logits is the logistic function of their difference, which is normal.

    128 points leave 0.003 root mean square in the means and 0.008 in the sds; below three times
    that at worst.
    """
    mean, sd = RNG.normal(0, 2, (50, 2)), RNG.uniform(0.1, 2, (50, 2))
    nodes, weights = roots_hermitenorm(200)
    weights = weights / weights.sum()
    difference = (mean[:, :1] - mean[:, 1:]) + np.hypot(*sd.T)[:, None] * nodes
    first = expit(difference) @ weights
    second = np.sqrt(expit(difference) ** 2 @ weights - first**2)
    factors = DiagonalFactors(torch.as_tensor(mean), torch.as_tensor(sd))
    found, spread = moments_of(lambda z: z.softmax(-1), factors)
    np.testing.assert_allclose(found[:, 0], first, atol=0.01)
    np.testing.assert_allclose(spread, np.stack([second, second], 1), atol=0.024)


def test_transform_gives_proportions(fitted):
    shares = fitted.transform(COUNTS)
    assert shares.shape == (30, 3)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=0, atol=1e-14)
    posterior = fitted.posterior(COUNTS)
    np.testing.assert_array_equal(shares, posterior.mean)
    logits = posterior.logits
    draws = softmax(logits.mean + logits.sd * RNG.normal(size=(20_000, 30, 3)), axis=-1)
    np.testing.assert_allclose(shares, draws.mean(0), atol=0.02)
    np.testing.assert_allclose(posterior.sd, draws.std(0), atol=0.03)


def test_a_document_alone_has_the_same_proportions(fitted):
    together = fitted.transform(COUNTS)
    alone = np.concatenate([fitted.transform(COUNTS[n : n + 1]) for n in range(5)])
    np.testing.assert_allclose(alone, together[:5], rtol=0, atol=1e-9)


def test_columns_are_named_by_topic(fitted):
    assert list(fitted.get_feature_names_out()) == ["topic0", "topic1", "topic2"]
    wide = FactorizedVI(TopicModel(2), output="mean_sd", random_state=0).fit(COUNTS)
    assert list(wide.get_feature_names_out()) == ["topic0", "topic1", "topic0_sd", "topic1_sd"]
    table = wide.transform(COUNTS)
    posterior = wide.posterior(COUNTS)
    np.testing.assert_array_equal(table, np.hstack([posterior.mean, posterior.sd]))
    np.testing.assert_array_equal(
        wide.inverse_transform(table), wide.inverse_transform(table[:, :2])
    )
    assert list(fitted.posterior(COUNTS).to_frame(quantiles=())) == [
        f"topic{k}_{m}" for k in range(3) for m in ("mean", "sd")
    ]
    latents = FactorizedVI(FactorAnalysis(1)).fit(COUNTS)
    assert list(latents.get_feature_names_out()) == ["factor0"]


def test_proportions_are_what_words_are_expected_from(fitted):
    """One topic alone: its own words, by draws of q(topics)."""
    words = fitted.inverse_transform(np.eye(3))
    drawn = softmax(fitted.global_posterior_.sample(4000, 0)["topics"], axis=-1).mean(0)
    np.testing.assert_allclose(words, drawn, atol=0.03)
    mixed = fitted.inverse_transform([[0.2, 0.3, 0.5]])
    np.testing.assert_allclose(mixed, [[0.2, 0.3, 0.5]] @ words, rtol=1e-9)


@pytest.mark.parametrize("Z", [[[0.5, 0.6, 0.5]], [[-0.1, 0.6, 0.5]], [[np.nan, 0.5, 0.5]]])
def test_no_proportions_are_refused(fitted, Z):
    with pytest.raises(ValueError, match=r"rows that sum to 1, but row 0 is none"):
        fitted.inverse_transform(Z)


def test_proportions_of_proportions_raise(fitted):
    with pytest.raises(TypeError, match="transform\\(X\\) and posterior\\(X\\) already give"):
        fitted.model_.proportions(fitted.transform(COUNTS))


def test_posterior_of_proportions(fitted):
    """Draws sum to one; quantiles, probabilities and covariances are the draws' own."""
    posterior = fitted.posterior(COUNTS[:4])
    assert isinstance(posterior, OwnScalePosterior)
    assert type(posterior.logits) is LatentPosterior
    draws = posterior.sample(20_000, random_state=0)
    np.testing.assert_allclose(draws.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(posterior.quantile(0.5), np.median(draws, 0), atol=0.02)
    median = posterior.quantile(0.5)
    np.testing.assert_allclose(posterior.cdf(median), 0.5, atol=0.01)
    covariance = posterior.scale @ posterior.scale.transpose(0, 2, 1)
    for n in range(4):
        np.testing.assert_allclose(covariance[n], np.cov(draws[:, n].T), atol=0.006)
    assert (np.diagonal(posterior.scale, axis1=1, axis2=2) >= 0).all()
    again = pickle.loads(pickle.dumps(posterior))
    np.testing.assert_array_equal(again.quantile(0.1), posterior.quantile(0.1))


def test_the_normal_posterior_knows_its_probabilities():
    latents = LatentPosterior(np.zeros((2, 1)), np.ones((2, 1)), np.ones((2, 1, 1)))
    np.testing.assert_allclose(latents.cdf([[0.0], [1.0]]), ndtr([[0.0], [1.0]]))


def test_samples_are_proportions(fitted):
    _, Z = fitted.sample(50, random_state=0)
    np.testing.assert_allclose(Z.sum(1), 1, rtol=1e-6)
