"""The parts of the inference gap, against closed forms and quadrature."""

import numpy as np
import pytest

from diagnostics.test_reweighting import (
    SCHOOLS,
    log_joint_of_schools,
    on_a_grid,
    schools_by_quadrature,
)
from skavi import AmortizedVI, FactorizedVI, amortization_gap
from skavi.diagnostics import gap_parts, inference_gap, reweighted
from skavi.families import DiagonalNormal
from skavi.inference_functions import Constant
from skavi.models import (
    FactorAnalysis,
    GaussianProcess,
    LinearModel,
    LocalLevel,
    MixtureModel,
    RandomEffects,
)

# Chains and independent factors of them are compared here on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::skavi.models.CouplingBiasWarning")
X = np.array([[0.0], [1.0], [5.0]])
TAU, SIGMA = 1.155, 2.43


def test_the_family_loses_what_latents_move_with_theta():
    """z | x, theta ~ N(b (x - theta), V) with b = tau / (tau^2 + sigma^2), V = 1 - b tau; q(z) is
    N(b (x - E theta), V), so the average KL over q(theta) = N(m, s^2) is (b s)^2 / (2 V).
    """
    vi = FactorizedVI(LinearModel(TAU, SIGMA)).fit(X)
    found = inference_gap(vi, X, random_state=0)
    b = TAU / (TAU**2 + SIGMA**2)
    s = float(vi.global_posterior_.sd["theta"])
    np.testing.assert_allclose(found.family, (b * s) ** 2 / (2 * (1 - b * TAU)), rtol=1e-6)
    np.testing.assert_allclose(found.amortization + found.optimisation, 0, atol=1e-9)
    assert set(found.how) == {"exact"}
    assert (found.standard_error == 0).all()


def test_the_function_loses_what_the_amortization_gap_says():
    vi = AmortizedVI(LinearModel(TAU, SIGMA), Constant()).fit(X)
    found = inference_gap(vi, X, X[:2], random_state=0)
    np.testing.assert_allclose(found.amortization, amortization_gap(vi, X).per_row, atol=1e-6)
    np.testing.assert_allclose(found.per_row, found.log_likelihood - found.elbo, atol=1e-12)
    np.testing.assert_allclose(found.generalization.per_row, found.per_row[:2], atol=1e-12)
    assert "function" in found.advice
    assert found.summary()["part"].iloc[0] == "log_likelihood"
    assert "InferenceGap" in found._repr_html_()


@pytest.mark.parametrize("centred", [False, True])
def test_globals_and_rows_add_up_to_the_evidence(centred):
    """log p(X) - ELBO = KL(q(theta) || p(theta | X)) + the rows' gaps; log p(X) by quadrature.

    With the KL by quadrature, too, to 1e-4: 60 nodes each for mu and log tau, in which q is normal,
    and KL = -H[q] - E_q log p(X, u) + log p(X). The evidence by weights has a standard error of
    0.012 nats: four of them.
    """
    vi = FactorizedVI(RandomEffects(centred=centred)).fit(SCHOOLS)
    found = inference_gap(vi, SCHOOLS, random_state=0)
    _, evidence = schools_by_quadrature()
    assert found.globals > 0
    assert vi.elbo_ + found.total + found.globals == pytest.approx(evidence, abs=0.05)
    q = vi.global_posterior_
    sds = [float(q.unconstrained_sd[name][0]) for name in ("mu", "tau")]
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    mu, u = (
        float(q.unconstrained_mean[name][0]) + sd * nodes
        for name, sd in zip(("mu", "tau"), sds, strict=True)
    )
    weights = weights / weights.sum()
    entropy = np.log(2 * np.pi * np.e) + np.log(sds).sum()
    kl = evidence - entropy - weights @ log_joint_of_schools(mu[:, None], u[None]) @ weights
    assert vi.elbo_ + found.total + kl == pytest.approx(evidence, abs=1e-4)


def test_counts_are_measured_by_quadrature_and_many_globals_left_out():
    rng = np.random.default_rng(0)
    counts = rng.poisson(np.exp(0.5 + rng.normal(size=(15, 1)) @ rng.normal(size=(1, 4))))
    vi = FactorizedVI(FactorAnalysis(2, likelihood="poisson"), random_state=0)
    found = inference_gap(vi.fit(counts.astype(float)), counts.astype(float), random_state=0)
    assert set(found.how) == {"quadrature"}
    assert (found.family > -3 * found.standard_error).all()
    assert 0 < found.standard_error.max() < 0.3
    assert found.globals is None and "numbers" in found.globals_reason


def test_states_lose_nothing_to_their_family_given_theta():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(-3, 1, size=(20, 1)), rng.normal(3, 1, size=(20, 1))])
    vi = FactorizedVI(MixtureModel(2), random_state=0).fit(rows)
    found = inference_gap(vi, rows, random_state=0)
    assert set(found.how) == {"exact"}
    assert (found.per_row > -1e-9).all()


WALK = np.cumsum(np.random.default_rng(0).normal(size=(20, 1)), 0)
KNOWN = {"level_sd": 0.7, "noise_sd": 1.2, "initial_mean": 0.0, "initial_sd": 2.0}


@pytest.mark.filterwarnings("ignore::skavi.closability.AmortizationWarning")
def test_a_series_is_one_unit_whose_parts_add_up():
    """Known variances: the chain of factors is the posterior, and its ELBO the log likelihood."""
    exact = FactorizedVI(LocalLevel(**KNOWN)).fit(WALK)
    independent = FactorizedVI(LocalLevel(**KNOWN), family=DiagonalNormal()).fit(WALK)
    amortized = AmortizedVI(LocalLevel(**KNOWN), Constant(), tol=1e-10).fit(WALK)
    none = inference_gap(exact, WALK)
    assert none.per_row == pytest.approx([0.0], abs=1e-8)
    assert none.log_likelihood == pytest.approx([exact.elbo_], abs=1e-8)
    for vi in (independent, amortized):
        found = inference_gap(vi, WALK)
        assert found.how == ["exact"] and found.globals == 0.0
        assert found.family == pytest.approx([exact.elbo_ - independent.elbo_], abs=1e-5)
        assert found.total == pytest.approx(exact.elbo_ - vi.elbo_, abs=1e-8)
    assert found.amortization == pytest.approx([independent.elbo_ - amortized.elbo_], abs=1e-5)


def test_unknown_variances_of_a_chain_add_up_to_the_evidence(monkeypatch):
    monkeypatch.setattr(gap_parts, "_WEIGHED", 500)
    vi = FactorizedVI(LocalLevel()).fit(WALK)
    found = inference_gap(vi, WALK, random_state=0)
    _, evidence = on_a_grid(vi, WALK)
    total = vi.elbo_ + found.total + found.globals
    assert total == pytest.approx(evidence, abs=0.12)  # four standard errors of 500 weights
    assert (found.family > 0).all() and found.globals > 0


def test_one_log_joint_for_all_rows_is_refused():
    times = np.column_stack([np.arange(20.0), WALK])
    vi = FactorizedVI(GaussianProcess()).fit(times)
    with pytest.raises(ValueError, match="inference_gap needs a term a row"):
        inference_gap(vi, times)
    with pytest.raises(ValueError, match="reweighted needs a term a row"):
        reweighted(vi, times)
