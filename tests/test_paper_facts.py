"""The numbers that the paper's linear and saw experiments must give, from exact answers."""

import numpy as np
import pytest

from closed_forms import (
    linear_constant,
    linear_factorized,
    paper_saw_data,
    published,
    saw_constant,
    saw_evidence,
    saw_factorized,
    saw_linear,
)
from skavi import AmortizedVI, FactorizedVI
from skavi.inference_functions import Constant, Polynomial
from skavi.models import LinearModel, SawTimeSeries

pytestmark = pytest.mark.filterwarnings("ignore::skavi.closability.AmortizationWarning")
TAU, SIGMA = 1.155, 2.43


@pytest.fixture(scope="module")
def saw():
    return paper_saw_data()[:, np.newaxis]


SAW = {
    "F-VI": (None, 553.0139),
    "f(x_n-1, x_n)": (Polynomial(1, context=(1, 0)), 553.0139),
    "f(x_n-1, x_n), by default": (Polynomial(1), 553.0139),
    "f(x_n)": (Polynomial(1, context=(0, 0)), 892.634),
    "constant": (Constant(), 2933.567),
}


@pytest.mark.parametrize("name", SAW)
def test_the_saw_on_the_papers_data(name, saw):
    function, loss = SAW[name]
    model = SawTimeSeries()
    vi = FactorizedVI(model) if function is None else AmortizedVI(model, function)
    vi.fit(saw)
    digits = len(str(loss).split(".")[1])
    assert published(vi.elbo_, len(saw)) == pytest.approx(loss, abs=0.51 * 10**-digits)
    assert vi.elbo_ <= saw_evidence(saw) + 1e-8


@pytest.mark.parametrize(
    ("function", "exact"),
    [
        (None, saw_factorized),
        (Polynomial(1), saw_factorized),
        (Polynomial(1, context=(0, 0)), lambda x: saw_linear(x, context=(0, 0))),
        (Constant(), saw_constant),
    ],
    ids=["F-VI", "f(x_n-1, x_n)", "f(x_n)", "constant"],
)
def test_the_saws_posteriors_are_exact(function, exact, saw):
    model, best = SawTimeSeries(), exact(saw)
    vi = FactorizedVI(model) if function is None else AmortizedVI(model, function)
    latents, q = vi.fit(saw).posterior(saw), vi.global_posterior_
    assert vi.elbo_ == pytest.approx(best.elbo, rel=1e-8)
    # 1e-8 nats a row leave 1e-5 nats in all: sqrt(2e-5) of an sd in one direction at most.
    np.testing.assert_allclose(latents.mean[:, 0], best.z_mean, atol=1e-4)
    np.testing.assert_allclose(latents.sd[:, 0], best.z_sd, atol=1e-4)
    assert q.mean["theta"] == pytest.approx(best.theta_mean, abs=1e-4)
    assert q.sd["theta"] == pytest.approx(best.theta_sd, rel=1e-3)


@pytest.fixture(scope="module")
def column():
    rng = np.random.default_rng(1954)
    x = 0.5 + TAU * rng.normal(size=10_000) + SIGMA * rng.normal(size=10_000)
    return x[:, np.newaxis]


@pytest.mark.parametrize("degree", ["F-VI", 0, 1, 2])
def test_the_linear_model_is_exact_on_10_000_rows(degree, column):
    model = LinearModel(TAU, SIGMA)
    exact = linear_constant if degree == 0 else linear_factorized
    best = exact(column, TAU, SIGMA)
    function = Constant() if degree == 0 else Polynomial(degree) if degree != "F-VI" else None
    vi = FactorizedVI(model) if function is None else AmortizedVI(model, function)
    latents, q = vi.fit(column).posterior(column), vi.global_posterior_
    assert vi.converged_
    assert vi.elbo_ == pytest.approx(best.elbo, rel=1e-8)
    # The accuracy that the project promises at default settings.
    np.testing.assert_allclose(latents.mean[:, 0], best.z_mean, atol=1e-6)
    np.testing.assert_allclose(latents.sd[:, 0], best.z_sd, atol=1e-6)
    assert q.mean["theta"] == pytest.approx(best.theta_mean, abs=1e-6)
    assert q.sd["theta"] == pytest.approx(best.theta_sd, abs=1e-6)
