"""benchmarks/coverage.py: its exact intervals, and that corrected ones cover as much."""

import numpy as np
import pytest
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
    """The posterior of (mu, log tau) integrated anew, on a grid in both: the trapezoidal rule."""
    X = simulated(5, 1.0, seed=3)
    mu, log_tau = np.linspace(-15, 15, 2001), np.linspace(-8, 4, 121)
    tau = np.exp(log_tau)
    log_p = norm(0, 5).logpdf(mu)[:, None] + halfcauchy(scale=5).logpdf(tau) + log_tau
    for estimate, se in X:
        log_p = log_p + norm(mu[:, None], np.hypot(se, tau)).logpdf(estimate)
    each = np.exp(log_p - log_p.max()).sum(1)
    mass = np.cumsum(each) - 0.5 * each  # up to each point of the grid
    low, high = exact_interval(X)
    total = mass[-1]
    below, above = np.interp(low, mu, mass), total - np.interp(high, mu, mass)
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
