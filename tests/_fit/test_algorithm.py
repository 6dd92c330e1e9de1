"""What a fit keeps and what it moves, whatever its components."""

import numpy as np
import pytest

from skavi import AmortizedVI, FactorizedVI
from skavi.inference_functions import Polynomial
from skavi.models import FactorAnalysis
from skavi.noise import MonteCarlo

RNG = np.random.default_rng(5)
TABLE = RNG.normal(size=(60, 1)) @ RNG.normal(size=(1, 3)) + 0.5 * RNG.normal(size=(60, 3)) + 2


@pytest.mark.parametrize(
    "fresh",
    [
        FactorizedVI(FactorAnalysis(1), noise=MonteCarlo(), random_state=0, max_iter=4000),
        AmortizedVI(FactorAnalysis(1), Polynomial(1), noise=MonteCarlo(), random_state=0),
    ],
    ids=lambda vi: type(vi).__name__,
)
def test_fresh_draws_reach_what_closed_forms_do(fresh):
    """q(theta) moves although the model has closed forms: nothing was fitted for it to stay at.

    Adam's stop rule leaves well under 0.1 nats a row (two standard errors of a window's mean);
    q(theta) held at its start is 60 nats a row below. A linear function carries FA's optimum.
    """
    exact = FactorizedVI(FactorAnalysis(1), random_state=0).fit(TABLE)
    fresh.fit(TABLE)
    assert exact.elbo_ - fresh.elbo_ < 0.1 * len(TABLE)
    assert exact.elbo_ > fresh.elbo_ - 3 * fresh.elbo_se_
