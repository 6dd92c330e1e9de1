"""Corrected sds, quantiles and draws of theta: closed forms of a normal with a given covariance."""

import numpy as np
import pytest
import torch
from scipy.stats import lognorm, norm
from torch.distributions import LogNormal, Normal

from skavi import FactorizedVI
from skavi.families import DiagonalNormal
from skavi.models import HierarchicalModel, LinearModel
from skavi.posterior import GlobalPosterior
from skavi.posterior._correction import Correction

MEAN, SD = np.array([0.5, -1.0]), np.array([0.2, 0.3])  # of a, and of log b
# Of (a, log b, log sd of a, log sd of b): positive definite, dominant on its diagonal.
COVARIANCE = np.array(
    [
        [0.30, 0.12, 0.01, 0.02],
        [0.12, 0.20, 0.00, 0.05],
        [0.01, 0.00, 0.50, 0.00],
        [0.02, 0.05, 0.00, 0.40],
    ]
)


class TwoGlobals(HierarchicalModel):
    """One global on the real line, one on the positive half."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {"a": Normal(0.0, 1.0), "b": LogNormal(0.0, 1.0)}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta):
        return Normal(z, 1.0)


def posterior_with(covariance):
    raw = np.concatenate([MEAN, np.log(SD)])
    return GlobalPosterior(TwoGlobals(), DiagonalNormal(), raw, 1, Correction(covariance))


@pytest.fixture(scope="module")
def posterior():
    return posterior_with(COVARIANCE)


def test_unconstrained_sds_are_roots_of_the_diagonal(posterior):
    found = posterior.unconstrained_corrected_sd
    np.testing.assert_allclose(found["a"], 0.30**0.5, rtol=1e-12)
    np.testing.assert_allclose(found["b"], 0.20**0.5, rtol=1e-12)


def test_sds_on_the_models_scale_are_by_the_delta_method(posterior):
    """E b = exp(m + s^2 / 2) has slopes E b in m and s^2 E b in log s."""
    m, s = MEAN[1], SD[1]
    J = np.exp(m + s**2 / 2) * np.array([0, 1, 0, s**2])
    assert float(posterior.corrected_sd["b"]) == pytest.approx(np.sqrt(J @ COVARIANCE @ J))
    assert float(posterior.corrected_sd["a"]) == pytest.approx(0.30**0.5)


def test_corrected_quantiles_are_the_wider_normals(posterior):
    q = np.array([0.05, 0.5, 0.95])
    found, own = posterior.quantile(q, corrected=True), posterior.quantile(q)
    np.testing.assert_allclose(found["a"], norm.ppf(q, 0.5, 0.30**0.5), rtol=1e-12)
    np.testing.assert_allclose(found["b"], lognorm.ppf(q, 0.20**0.5, scale=np.exp(-1.0)))
    np.testing.assert_allclose(own["b"], lognorm.ppf(q, 0.3, scale=np.exp(-1.0)))


def test_corrected_draws_have_the_covariance(posterior):
    """40,000 draws: a variance's standard error is 0.7 %, a correlation's 0.5 %."""
    draws = posterior.sample(40_000, random_state=0, corrected=True)
    found = np.cov(draws["a"], np.log(draws["b"]))
    np.testing.assert_allclose(found, COVARIANCE[:2, :2], rtol=0.03, atol=0.003)
    own = posterior.sample(40_000, random_state=0)
    np.testing.assert_allclose(
        np.cov(own["a"], np.log(own["b"])), np.diag(SD**2), rtol=0.03, atol=0.002
    )


def test_a_summary_has_corrected_sds_and_quantiles(posterior):
    row = posterior.summary().set_index("name").loc["b"]
    assert row["sd"] == pytest.approx(float(posterior.sd["b"]))
    assert row["corrected_sd"] == pytest.approx(float(posterior.corrected_sd["b"]))
    assert row["95%"] == pytest.approx(float(posterior.quantile(0.95, corrected=True)["b"]))


def test_sds_that_are_far_too_small_are_told(posterior):
    """sqrt(0.30) / 0.2 = 2.74; a factor of up to 1.5 is not worth a line."""
    assert "too small, by linear response up to 2.74 times" in posterior.note
    assert repr(posterior).endswith("\n" + posterior.note)
    assert "corrected=True" in posterior._repr_html_()
    slight = posterior_with(np.diag([*(1.49 * SD) ** 2, 1e-9, 1e-9]))
    assert slight.note == "" and "\n" not in repr(slight)
    clear = posterior_with(np.diag([*(1.51 * SD) ** 2, 1e-9, 1e-9]))
    assert "1.51 times" in clear.note


def test_a_posterior_without_correction_says_why():
    bare = GlobalPosterior(TwoGlobals(), DiagonalNormal(), np.zeros(4), 1)
    assert bare.corrected_sd is None and bare.note == ""
    assert bare.corrected_reason == "Linear response was not computed."
    with pytest.raises(ValueError, match=r"corrected=True: there is no linear response\. Linear"):
        bare.quantile(0.5, corrected=True)
    assert (
        FactorizedVI(LinearModel()).fit([[0.0], [2.0]]).global_posterior_.corrected_reason is None
    )


def test_a_reason_holds_no_markup():
    """Torch's words or a user's repr may: "got <class 'int'>", or worse."""
    reason = Correction.without("cannot: <script>evil()</script>").reason
    assert reason == "cannot: (script)evil()(/script)"
