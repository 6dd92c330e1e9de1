"""benchmarks/coverage.py: its exact intervals, and that corrected ones cover as much."""

import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.stats import halfcauchy, norm

from benchmarks.coverage import (
    ALLOWED,
    N_STUDIES,
    TAUS,
    exact_interval,
    intervals,
    measure,
    simulated,
)


def test_exact_intervals_hold_90_per_cent():
    """The posterior of (mu, log tau) integrated anew, by adaptive quadrature in two dimensions."""
    X = simulated(5, 1.0, seed=3)

    def density(mu, log_tau):
        tau = np.exp(log_tau)
        rows = norm(mu, np.hypot(X[:, 1], tau)).logpdf(X[:, 0]).sum()
        return np.exp(rows + norm(0, 5).logpdf(mu) + halfcauchy(scale=5).logpdf(tau) + log_tau)

    low, high = exact_interval(X)
    total, below, above = (
        dblquad(density, -8, 4, *ends, epsabs=1e-12, epsrel=1e-5)[0]
        for ends in ((-15, 15), (-15, low), (high, 15))
    )
    assert below / total == pytest.approx(0.05, abs=1e-3)
    assert above / total == pytest.approx(0.05, abs=1e-3)


def test_corrected_intervals_lie_between_qs_and_the_exact_ones():
    """On most sets: q's 90 % intervals are too short, corrected ones nearer to the exact length."""
    sets = [intervals(simulated(13, 1.0, seed)) for seed in range(4)]
    lengths = {
        name: np.median([np.ptp(each[name]) for each in sets])
        for name in ("q", "corrected", "exact")
    }
    assert lengths["q"] < lengths["corrected"]
    short, nearer = (abs(lengths[n] - lengths["exact"]) for n in ("q", "corrected"))
    assert nearer < short


@pytest.mark.nightly
@pytest.mark.parametrize("n_studies", N_STUDIES)
@pytest.mark.parametrize("tau", TAUS)
def test_corrected_intervals_cover_nearly_as_much_as_exact_ones(n_studies, tau):
    """1,000 sets: a difference of coverages on common sets errs by less than 1 point."""
    run = measure(n_studies, tau, 1000)
    assert run["corrected"] >= run["exact"] - ALLOWED, run
