"""Adam: minibatches that weigh rows, the stop rule by hand, and averages of the last stage."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from benchmarks.extremes import counts
from seeds import seeds
from skavi import AmortizedVI, FactorizedVI
from skavi.distributions import Flat
from skavi.families import Point
from skavi.inference_functions import Polynomial
from skavi.models import HierarchicalModel, LinearModel, LocalLevel, TopicModel
from skavi.noise import GaussHermite, MonteCarlo
from skavi.solvers import Adam

COLUMN = np.random.default_rng(0).normal(scale=2.7, size=(60, 1))
WINDOW, DECAY, SMALLEST = 200, 0.3, 0.003  # as documented: windows of steps, falls, the last rate


def _still(iteration):
    return 0.0


def _steady(iteration):
    return 1.0


@pytest.mark.parametrize("estimator", [FactorizedVI, AmortizedVI])
@pytest.mark.parametrize("model", [LinearModel(), LocalLevel(1.0, 1.0)], ids=["rows", "chain"])
@pytest.mark.filterwarnings("ignore::skavi.closability.AmortizationWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_minibatches_weigh_rows(estimator, model):
    """At a learning rate of 0 batches estimate one ELBO, which all rows together give exactly.

    Heavy rows are the largest ones: without weights both ELBOs would be of another size.
    """
    weights = np.where(np.abs(COLUMN[:, 0]) > 3, 9.0, 0.5)
    function = {"inference_function": Polynomial(1)} if estimator is AmortizedVI else {}

    def curve(batch_size):
        solver = Adam(batch_size=batch_size, schedule=_still)
        noise = GaussHermite(3) if model.coupling.independent else None
        vi = estimator(model, noise=noise, solver=solver, random_state=0, **function)
        return vi.fit(COLUMN, sample_weight=weights).elbo_curve_

    whole, parts = curve(None), curve(20)
    assert np.ptp(whole) < 1e-9 * abs(whole[0])
    error = parts.std(ddof=1) / len(parts) ** 0.5
    assert abs(parts.mean() - whole[0]) < 4 * error
    assert error < 0.05 * abs(whole[0])


def stop(curve, tol, falls, n_errors=2):
    """Return the iteration and two standard errors where windows have failed to rise `falls` times.

    A window that is compared and does not rise is none to compare the next with: the rate fell.
    """
    before = None
    for end in range(WINDOW, len(curve) + 1, WINDOW):
        window = curve[end - WINDOW : end]
        now = window.mean(), window.var(ddof=1) / WINDOW
        if before is None:
            before = now
            continue
        error = math.sqrt(now[1] + before[1])
        rose = now[0] - before[0] > max(n_errors * error, tol)
        before = now if rose else None
        falls -= not rose
        if not falls:
            return end, 2 * error
    return None, None


@pytest.mark.parametrize(("schedule", "rate", "n_draws"), [(_steady, 0.002, 2), (None, 0.05, 1)])
def test_adam_stops_where_a_window_does_not_rise_by_two_standard_errors(schedule, rate, n_draws):
    """The first time with a schedule; without one when 0.3^k < 0.003, the fifth time."""
    solver = Adam(learning_rate=rate, schedule=schedule)
    vi = FactorizedVI(LinearModel(), noise=MonteCarlo(n_draws), solver=solver, random_state=0)
    vi.fit(COLUMN)
    falls = 1 if schedule else math.ceil(math.log(SMALLEST) / math.log(DECAY))
    n_iter, error = stop(vi.elbo_curve_, vi.tol_ * len(COLUMN), falls)
    assert vi.converged_
    assert vi.n_iter_ == n_iter
    assert vi.suboptimality_ == pytest.approx(error, rel=1e-9)  # rounding
    assert stop(vi.elbo_curve_, 0.0, falls, 20)[0] < n_iter  # twenty end it sooner


@pytest.mark.parametrize("tol", [0.002, 0.005, 0.01])
def test_a_coarse_tol_is_reached_where_falls_promise_less(tol):
    """The stage after which no more than tol is to come is followed by one more, the last.

    Falls gain in proportion to the rate: after one that gained g, those after the next one gain
    0.3^2 g + 0.3^3 g + ... = 0.09 g / 0.7 in all. Two standard errors are added to g.
    """
    vi = FactorizedVI(LinearModel(), noise=MonteCarlo(1), solver=Adam(0.05), tol=tol)
    vi.set_params(random_state=0).fit(COLUMN)
    least, before, last = tol * len(COLUMN), -math.inf, False
    for falls in range(1, 6):
        end, noise = stop(vi.elbo_curve_, least, falls)
        if last:
            break
        now = vi.elbo_curve_[end - WINDOW : end].mean()
        to_come = DECAY**2 / (1 - DECAY) * (now - before + noise)
        last, before = DECAY ** (falls + 1) < SMALLEST or 0 < to_come <= least, now
    assert vi.converged_
    assert vi.n_iter_ == end
    assert falls == {0.002: 5, 0.005: 4, 0.01: 3}[tol]


def test_one_window_ends_a_last_stage_that_has_gained_less_than_tol():
    """It is compared with the window before the fall, by two standard errors of both.

    At a tol of 0.01 it has gained -0.3 + 1.2 nats at most, more than 0.6, and is waited for; at
    0.03 it has gained -0.2 + 1.2 at most, less than 1.8.
    """
    ends = {}
    for tol in (0.01, 0.03):
        vi = FactorizedVI(LinearModel(), noise=MonteCarlo(1), solver=Adam(0.05), tol=tol)
        curve = vi.set_params(random_state=0).fit(COLUMN).elbo_curve_
        windows = curve[: len(curve) // WINDOW * WINDOW].reshape(-1, WINDOW)
        mean, error = windows.mean(1), (2 * windows.var(axis=1, ddof=1) / WINDOW) ** 0.5
        ends[tol] = len(windows)
        fall = {0.01: 4, 0.03: 3}[tol]  # the window that brings the last stage
        gain = mean[fall + 1] - mean[fall] + 2 * error[fall + 1]
        assert vi.converged_
        assert (0 < gain <= tol * len(COLUMN)) == (ends[tol] == fall + 2)
    assert ends == {0.01: 7, 0.03: 5}


def test_iterates_of_the_last_stage_are_averaged():
    """Ten iterates of equal steps average to the one five and a half steps along.

    The slope is always the same and the ELBO is flat, so that each stage is two windows of 200
    long. The fourth fall of the rate is the last but one: iterates from 1601 on count.
    """
    seen = []

    class Slope(HierarchicalModel):
        def n_latents(self, n_features):
            return 1

        def global_prior(self, n_features):
            return {"theta": Flat()}

        def global_family(self, asked):
            return Point()

        def local_prior(self, theta):
            return Normal(torch.zeros(1), 1.0)

        def likelihood(self, z, theta):
            raise NotImplementedError

        def log_likelihood(self, theta, z, X):
            if theta["theta"].requires_grad:
                seen.append(float(theta["theta"].detach()))
            return (theta["theta"] - theta["theta"].detach()).expand(len(X))

    solver = Adam(learning_rate=0.5)
    vi = FactorizedVI(Slope(), noise=MonteCarlo(1), solver=solver, max_iter=1610, random_state=0)
    with pytest.warns(UserWarning, match="did not converge"):
        vi.fit(np.zeros((1, 1)))
    before, first = seen[-10:-8]  # an iterate is seen one step later
    average = before + 5.5 * (first - before)
    assert first > before
    assert float(vi.global_posterior_.mean["theta"]) == pytest.approx(average, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(0, 1))
def test_steps_that_ruin_the_elbo_are_taken_back(seed):
    """One word, two topics: a unit of a network is almost idle, and its first steps are vast.

    Unguarded, both fits "converged", at -3e50 and -3,843 nats; F-VI has -76.0.
    """
    X = counts(np.random.default_rng(0))[:, :1]
    start, end = FactorizedVI(TopicModel(2)).fit(X), AmortizedVI(TopicModel(2), random_state=seed)
    # A start is within 0.02 nats of F-VI's factors, which are the best there are.
    assert start.elbo_ - 0.05 < end.fit(X).elbo_ < start.elbo_ + 0.05
