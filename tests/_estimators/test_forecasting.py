"""Forecasts against the Kalman filter's, and in closed form."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, Poisson

from skavi import AmortizedVI, FactorizedVI
from skavi.inference_functions import Polynomial
from skavi.models import LinearModel, LocalLevel, MarkovModel

SERIES = np.cumsum(np.random.default_rng(0).normal(size=(40, 1)), 0)


class Pulled(MarkovModel):
    """An autoregression with known coefficients, observed in two columns."""

    n_latents = 1

    def global_prior(self, n_features):
        return {}

    def initial_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def transition(self, z_previous, theta):
        return Normal(0.8 * z_previous, 0.6)

    def likelihood(self, z, theta):
        return Normal(z * torch.tensor([1.0, -2.0]), 0.5)


def test_a_level_stays_and_its_uncertainty_grows_by_a_step_a_row():
    vi = FactorizedVI(LocalLevel(level_sd=0.7, noise_sd=1.2)).fit(SERIES)
    last, ahead = vi.posterior(SERIES), np.arange(1, 6)[:, np.newaxis]
    mean, sd = vi.forecast(SERIES, 5)
    np.testing.assert_allclose(mean, np.full((5, 1), last.mean[-1, 0]), rtol=1e-12)
    np.testing.assert_allclose(sd**2, last.sd[-1] ** 2 + ahead * 0.49 + 1.44, rtol=1e-12)


def test_unknown_variances_widen_a_forecast_by_their_means():
    vi = FactorizedVI(LocalLevel()).fit(SERIES)
    last, variances = vi.posterior(SERIES), vi.global_posterior_.mean
    _, sd = vi.forecast(SERIES, 3)
    ahead = np.arange(1, 4)[:, np.newaxis] * variances["level_variance"]
    exact = last.sd[-1] ** 2 + ahead + variances["noise_variance"]
    np.testing.assert_allclose(sd**2, exact, rtol=1e-6)


def test_paths_of_an_autoregression_have_its_moments():
    """10,000 paths: means within 4 hundredths of their sd, sds within 4 %."""
    X = SERIES * [[1.0, -2.0]]
    vi = FactorizedVI(Pulled()).fit(X)
    last, ahead = vi.posterior(X), np.arange(1, 7)
    mean, sd = vi.forecast(X, 6)
    centre = 0.8**ahead * last.mean[-1, 0]
    z = 0.8 ** (2 * ahead) * last.sd[-1, 0] ** 2 + 0.36 * (1 - 0.64**ahead) / (1 - 0.64)
    exact = np.stack([z + 0.25, 4 * z + 0.25], 1) ** 0.5
    assert (np.abs(mean - centre[:, np.newaxis] * [1, -2]) < 0.04 * exact).all()
    np.testing.assert_allclose(sd, exact, rtol=0.04)
    again = vi.forecast(X, 6)
    np.testing.assert_array_equal(mean, again[0])  # draws are fixed


def test_globals_and_counts_take_part():
    class Counts(Pulled):
        def global_prior(self, n_features):
            return {"level": Normal(0.0, 2.0)}

        def likelihood(self, z, theta):
            return Poisson((theta["level"] + z).exp())

    X = np.random.default_rng(0).poisson(3.0, size=(30, 1)).astype(float)
    vi = FactorizedVI(Counts()).fit(X)
    mean, sd = vi.forecast(X, 50)
    level = vi.global_posterior_
    stationary = 0.36 / (1 - 0.64)
    far = np.exp(level.mean["level"] + 0.5 * (level.sd["level"] ** 2 + stationary))
    assert mean[-1, 0] == pytest.approx(far, rel=0.06)
    assert (sd**2 > mean).all()


@pytest.mark.filterwarnings("ignore::skavi.closability.AmortizationWarning")
def test_amortized_fits_forecast_from_their_last_row():
    vi = AmortizedVI(LocalLevel(0.7, 1.2), Polynomial(1, context=(3, 0))).fit(SERIES)
    mean, _ = vi.forecast(SERIES, 2)
    np.testing.assert_allclose(mean[:, 0], vi.transform(SERIES)[-1, 0], rtol=1e-12)


def test_what_cannot_be_forecast_is_told():
    vi = FactorizedVI(LocalLevel(0.7, 1.2)).fit(SERIES)
    with pytest.raises(ValueError, match=r"steps=0 must be an integer >= 1"):
        vi.forecast(SERIES, 0)
    with pytest.raises(NotImplementedError, match="LinearModel does not define forecast"):
        FactorizedVI(LinearModel()).fit(SERIES).forecast(SERIES, 1)
