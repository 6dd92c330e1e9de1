"""The parts of the inference gap, against closed forms and quadrature."""

import numpy as np
import pytest

from diagnostics.test_reweighting import SCHOOLS, schools_by_quadrature
from skavi import AmortizedVI, FactorizedVI, amortization_gap
from skavi.diagnostics import inference_gap
from skavi.inference_functions import Constant
from skavi.models import FactorAnalysis, LinearModel, LocalLevel, MixtureModel, RandomEffects

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

    The evidence by weights has a standard error of 0.012 nats: four of them.
    """
    vi = FactorizedVI(RandomEffects(centred=centred)).fit(SCHOOLS)
    found = inference_gap(vi, SCHOOLS, random_state=0)
    _, evidence = schools_by_quadrature()
    assert found.globals > 0
    assert vi.elbo_ + found.total + found.globals == pytest.approx(evidence, abs=0.05)


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


def test_chains_are_refused():
    walk = np.cumsum(np.random.default_rng(0).normal(size=(20, 1)), 0)
    with pytest.raises(ValueError, match="couples them"):
        inference_gap(FactorizedVI(LocalLevel()).fit(walk), walk)
