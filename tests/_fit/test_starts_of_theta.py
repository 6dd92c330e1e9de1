"""Starts of theta: how many, from where, and what is told of them."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from skavi import AmortizedVI, FactorizedVI
from skavi._data.rows import Rows
from skavi._fit import algorithm
from skavi._fit.iterates import Solution
from skavi._fit.starts_of_theta import starts_of_theta
from skavi.diagnostics import SeveralOptimaWarning
from skavi.distributions import Flat
from skavi.families import DiagonalNormal
from skavi.models import FactorAnalysis, HierarchicalModel, LinearModel
from skavi.noise import GaussHermite
from skavi.objective import bind


class Mean(HierarchicalModel):
    """x ~ N(mu, 1), with mu ~ N(0, sd^2), or flat."""

    n_latents = 0

    def __init__(self, sd=1.0):
        self.sd = sd

    def global_prior(self, n_features):
        return {"mu": Flat() if self.sd is None else Normal(0.0, self.sd)}

    def likelihood(self, z, theta):
        return Normal(theta["mu"] + torch.zeros(len(z), 1), 1.0)


class TwoPlaces(HierarchicalModel):
    """A posterior of mu with two narrow peaks, at -4 and (5 nats lower) at 4."""

    n_latents = 0

    def global_prior(self, n_features):
        return {"mu": Normal(0.0, 3.0)}

    def log_likelihood(self, theta, z, X):
        left = Normal(theta["mu"], 0.1).log_prob(X[:, 0] - 4)
        right = Normal(theta["mu"], 0.1).log_prob(X[:, 0] + 4) - 5
        return torch.logsumexp(torch.stack([left, right]), 0)


X = np.random.default_rng(0).normal(2.0, 1.0, (25, 1))


@pytest.mark.parametrize(("sd", "n"), [(1.0, 25), (100.0, 25), (None, 4)])
def test_a_start_has_the_sd_that_the_curvature_gives(sd, n):
    """The posterior of mu is normal with precision n + 1 / sd^2, however wide the prior."""
    model, rows = Mean(sd), Rows(torch.as_tensor(X[:n]), torch.ones(n, dtype=torch.float64))
    objective = bind(model, DiagonalNormal(), DiagonalNormal(), rows.X)
    generator = torch.Generator().manual_seed(0)
    (start,) = starts_of_theta(objective, rows, GaussHermite(3), generator, None)
    factor = objective.global_factor(start.raw_globals)
    precision = n + (0 if sd is None else 1 / sd**2)
    assert float(factor.mean) == pytest.approx(X[:n].sum() / precision, abs=1e-5)
    assert float(factor.sd) == pytest.approx(precision**-0.5, rel=1e-5)


def test_as_many_starts_are_fitted_as_asked_for():
    vi = FactorizedVI(Mean(), n_init=3, random_state=0).fit(X)
    assert len(vi.starts_) == 3
    assert vi.starts_[0] == vi.elbo_
    np.testing.assert_allclose(vi.starts_, vi.elbo_, atol=1e-6)


def test_one_maximum_is_fitted_once():
    assert len(FactorizedVI(Mean(), random_state=0).fit(X).starts_) == 1


def test_models_with_a_start_of_their_own_take_it_and_others_around_it():
    assert len(FactorizedVI(LinearModel()).fit(X).starts_) == 1
    table = np.random.default_rng(1).normal(size=(40, 4)) @ np.diag([3, 2, 1, 1])
    vi = FactorizedVI(FactorAnalysis(1), n_init=2, random_state=0).fit(table)
    assert len(vi.starts_) == 2
    assert vi.starts_[0] == pytest.approx(FactorizedVI(FactorAnalysis(1)).fit(table).elbo_)


def test_functions_start_from_the_best_of_the_references():
    """Two peaks: the reference that was fitted to the higher one is taken."""
    vi = AmortizedVI(TwoPlaces(), n_init=None, random_state=0).fit(np.zeros((3, 1)))
    assert float(vi.global_posterior_.mean["mu"]) == pytest.approx(-4, abs=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_the_higher_of_two_peaks_is_kept_and_both_are_told(seed):
    """15 nats lie between the peaks of three rows; the prior tells none from the other."""
    vi = FactorizedVI(TwoPlaces(), random_state=seed).fit(np.zeros((3, 1)))
    assert float(vi.global_posterior_.mean["mu"]) == pytest.approx(-4, abs=0.1)
    vi = FactorizedVI(TwoPlaces(), n_init=8, random_state=seed).fit(np.zeros((3, 1)))
    assert float(vi.global_posterior_.mean["mu"]) == pytest.approx(-4, abs=0.1)
    assert np.all(np.diff(vi.starts_) <= 0)


def test_a_best_start_that_stands_alone_is_warned_of(monkeypatch):
    """Of two starts, one at either peak, the best is confirmed by none."""
    own = algorithm.starts_of_theta

    def one_at_each_peak(objective, rows, noise, generator, n_init):
        (state, *_) = own(objective, rows, noise, generator, None)
        places = (torch.tensor([peak, -2.0], dtype=torch.float64) for peak in (-4.0, 4.0))
        return [type(state)(state.raw_locals, {}, place) for place in places]

    monkeypatch.setattr(algorithm, "starts_of_theta", one_at_each_peak)
    with pytest.warns(SeveralOptimaWarning, match=r"n_init=2 starts"):
        vi = FactorizedVI(TwoPlaces(), random_state=0).fit(np.zeros((3, 1)))
    assert vi.starts_[0] - vi.starts_[1] == pytest.approx(15, abs=1)


def test_a_fit_that_did_not_converge_is_kept_only_if_none_did(monkeypatch):
    """Its ELBO is that of a rule which it may have exploited."""
    own, fits = algorithm.fit_model, []

    def first_unconverged(plan, rows, start, progress, stage):
        fit = own(plan, rows, start, progress, stage)
        fits.append(fit)
        if len(fits) > 1:
            return fit
        return Solution(fit.problem, fit.solver, algorithm.replace(fit.outcome, converged=False))

    monkeypatch.setattr(algorithm, "fit_model", first_unconverged)
    vi = FactorizedVI(Mean(), n_init=2, random_state=0).fit(X)
    assert vi.converged_
    assert len(vi.starts_) == 1


@pytest.mark.parametrize("given", ["init", "warm_start"])
def test_starts_are_not_asked_for_where_one_is_given(given):
    vi = FactorizedVI(Mean(), random_state=0).fit(X)
    arguments = {"init": vi} if given == "init" else {"warm_start": True}
    vi = vi.set_params(n_init=2, **arguments)
    with pytest.raises(ValueError, match=f"n_init=2 asks for starts of theta, but {given}"):
        vi.fit(X)
    assert len(vi.starts_) == 1  # nothing fitted is lost
