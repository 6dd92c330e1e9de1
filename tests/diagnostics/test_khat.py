"""k-hat: the library's own on weights that are written out here, and what it says."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.exceptions import NotFittedError
from torch.distributions import Normal

from skavi import FactorizedVI
from skavi.diagnostics import psis_khat
from skavi.diagnostics.khat import smoothed_weights
from skavi.families import FullNormal
from skavi.models import (
    HierarchicalModel,
    LatentVariableModel,
    LinearModel,
    LocalLevel,
    RandomEffects,
)

array_stats = pytest.importorskip("arviz_stats.base", reason="the arviz extra").array_stats

X = np.array([[0.3], [-1.2], [2.5], [0.8]])
TAU, SIGMA = 1.155, 2.43
SCHOOLS = np.array(
    [[28, 15], [8, 10], [-3, 16], [7, 11], [-1, 9], [1, 11], [18, 10], [12, 18]], float
)


class KnownNormal(HierarchicalModel):
    """z ~ N(0, I_2), x ~ N(sum z, 1): no globals, and a posterior that a full normal q meets."""

    def n_latents(self, n_features):
        return 2

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta):
        return Normal(torch.zeros(2), 1.0)

    def likelihood(self, z, theta):
        return Normal(z.sum(-1, keepdim=True), 1.0)


class KnownMean(HierarchicalModel):
    """theta ~ N(0, 0.5^2), x ~ N(theta, 1), z ~ N(0, 1) apart: mean-field q is the posterior."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {"theta": Normal(0.0, 0.5)}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta):
        return Normal(theta["theta"] + 0 * z, 1.0)


@pytest.mark.parametrize("shape", [0.3, 0.8])
def test_khat_is_the_shape_of_the_weights_own_tail(shape):
    """Weights U^-k of uniform U are Pareto of shape k; their inverses are bounded, of shape < 0.

    The sd of the estimated shape is about (1 + k) / sqrt(3 sqrt(n)) = 0.09, and the library draws
    it towards 0.5 by a few hundredths.
    """
    uniform = np.random.default_rng(0).uniform(size=20_000)
    weights, khat = smoothed_weights(-shape * np.log(uniform))
    assert khat == pytest.approx(shape, abs=0.2)
    assert smoothed_weights(shape * np.log(uniform))[1] < 0.1
    assert weights.sum() == pytest.approx(1.0)
    assert np.corrcoef(np.log(weights), np.log(uniform))[0, 1] < -0.99


def test_the_globals_prior_is_part_of_the_joint_weights():
    """All weights are the evidence; without the prior they would vary with theta."""
    vi = FactorizedVI(KnownMean(), tol=1e-12).fit(X)
    assert psis_khat(vi, X, n_draws=200, random_state=0).joint == -math.inf


def test_khat_is_the_librarys_on_the_same_weights():
    """The draws again, in the order in which they are made, with scipy's densities for weights."""
    vi = FactorizedVI(LinearModel()).fit(X)
    khat = psis_khat(vi, X, n_draws=500, random_state=3)
    z, q = vi.posterior(X), vi.global_posterior_
    z_mean, z_sd = z.mean[:, 0], z.sd[:, 0]
    theta_mean, theta_sd = float(q.mean["theta"]), float(q.sd["theta"])
    state = np.random.RandomState(3)

    def log_rows(theta, z):
        return norm.logpdf(z) + norm.logpdf(X[:, 0], theta + TAU * z, SIGMA)

    joint = np.empty(500)
    for s in range(500):
        e_z, e_theta = state.standard_normal((4, 1))[:, 0], state.standard_normal(1)[0]
        z, theta = z_mean + z_sd * e_z, theta_mean + theta_sd * e_theta
        log_q = norm.logpdf(z, z_mean, z_sd).sum() + norm.logpdf(theta, theta_mean, theta_sd)
        joint[s] = log_rows(theta, z).sum() - log_q
    rows = np.empty((500, 4))
    for s in range(500):
        z = z_mean + z_sd * state.standard_normal((4, 1))[:, 0]
        rows[s] = log_rows(theta_mean, z) - norm.logpdf(z, z_mean, z_sd)
    # The same weights to rounding; the tail's fit does not amplify it.
    assert khat.joint == pytest.approx(array_stats.psislw(-joint)[1], abs=1e-6)
    # Given theta q(z_n) is exact for this model: no weight varies.
    assert np.ptp(rows, axis=0).max() < 1e-5
    assert (khat.per_row == -math.inf).all()


def test_rows_are_the_librarys_where_they_vary():
    vi = FactorizedVI(KnownNormal()).fit(X)
    khat = psis_khat(vi, X, n_draws=400, random_state=0)
    posterior, state = vi.posterior(X), np.random.RandomState(0)
    for _ in range(400):
        state.standard_normal((4, 2)), state.standard_normal(0)
    rows = np.empty((400, 4))
    for s in range(400):
        z = posterior.mean + posterior.sd * state.standard_normal((4, 2))
        p = norm.logpdf(z).sum(1) + norm.logpdf(X[:, 0], z.sum(1), 1)
        rows[s] = p - norm.logpdf(z, posterior.mean, posterior.sd).sum(1)
    expected = [array_stats.psislw(-column)[1] for column in rows.T]
    np.testing.assert_allclose(khat.per_row, expected, atol=1e-6)


def test_an_exact_family_has_weights_that_do_not_vary():
    vi = FactorizedVI(KnownNormal(), family=FullNormal(), tol=1e-14).fit(X)
    khat = psis_khat(vi, X, n_draws=300, random_state=0)
    assert khat.joint < 0.5 and "close to the posterior" in khat.advice


@pytest.mark.parametrize("kind", ["chain", "joint"])
def test_coupled_rows_are_drawn_one_at_a_time_given_the_others(kind):
    """Both forms of one model: the same conditionals, so k-hats of the same weights."""

    class Walk(LatentVariableModel):
        def n_latents(self, n_features):
            return 1

        def global_prior(self, n_features):
            return {}

        def log_joint(self, theta, z, X):
            steps = torch.diff(z[:, 0], prepend=z.new_zeros(1))
            return -0.5 * (steps**2).sum() - (torch.cosh(z) + (z - X) ** 4).sum()

    if kind == "joint":
        vi = FactorizedVI(Walk()).fit(X)
        khat = psis_khat(vi, X, n_draws=100, random_state=0)
        assert np.isfinite(khat.per_row).all()
    else:
        # A normal chain given its neighbours is normal with sd 1 / sqrt(precision): q's own.
        vi = FactorizedVI(LocalLevel(level_sd=1.0, noise_sd=1.0)).fit(X)
        khat = psis_khat(vi, X, n_draws=100, random_state=0)
        assert (khat.per_row == -math.inf).all()
    assert khat.per_row.shape == (4,)


def test_a_correct_optimum_may_have_a_high_khat_and_is_not_called_unconverged():
    """Eight schools, centred: the exact mean-field optimum, whose k-hat is far above 0.7."""
    vi = FactorizedVI(RandomEffects(centred=True)).fit(SCHOOLS)
    assert vi.converged_
    khat = psis_khat(vi, SCHOOLS, random_state=0)
    assert khat.joint > 0.7
    assert "It does not mean that the fit did not converge" in khat.advice
    assert "k-hat > 0.7" in khat._repr_html_().replace("&gt;", ">")


@pytest.mark.parametrize(("n_draws", "threshold"), [(100, 0.5), (1000, 2 / 3), (2500, 0.7)])
def test_the_threshold_depends_on_the_number_of_draws(n_draws, threshold):
    """min(1 - 1 / log10 S, 0.7)"""
    vi = FactorizedVI(KnownNormal()).fit(X[:1])
    assert psis_khat(vi, X[:1], n_draws, random_state=0).threshold == pytest.approx(threshold)


def test_what_it_needs_is_said(monkeypatch):
    vi = FactorizedVI(LinearModel())
    with pytest.raises(NotFittedError):
        psis_khat(vi, X)
    with pytest.raises(ValueError, match="n_draws=10 must be an integer >= 100"):
        psis_khat(vi.fit(X), X, n_draws=10)
    monkeypatch.setitem(__import__("sys").modules, "arviz_stats", None)
    with pytest.raises(ImportError, match=r'pip install "skavi\[arviz\]"'):
        psis_khat(vi, X)
