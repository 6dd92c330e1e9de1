"""Hidden Markov models: variational Baum-Welch, several series, holes, orders of states."""

import numpy as np
import pytest
import torch

from skavi import FactorizedVI
from skavi.models import HiddenMarkovModel
from skavi.solvers import Newton

MOVES = np.array([[0.95, 0.04, 0.01], [0.1, 0.85, 0.05], [0.05, 0.15, 0.8]])


def states(n, seed=0):
    rng, found = np.random.default_rng(seed), [0]
    for _ in range(n - 1):
        found.append(rng.choice(3, p=MOVES[found[-1]]))
    return np.array(found)


def regimes(n, seed=0):
    state = states(n, seed)
    noise = np.random.default_rng(seed + 1).normal(size=(n, 1))
    return np.array([-2.0, 0.0, 2.0])[state][:, np.newaxis] + 0.7 * noise, state


def fit(X, **given):
    return FactorizedVI(HiddenMarkovModel(3, **given), random_state=0).fit(X)


def test_regimes_are_found_and_sweeps_never_lower_the_elbo():
    X, state = regimes(400)
    vi = fit(X)
    assert vi.converged_
    assert np.diff(vi.elbo_curve_).min() > -1e-9
    assert (vi.predict(X) == state).mean() > 0.95
    np.testing.assert_allclose(vi.global_posterior_.mean["transitions"], MOVES, atol=0.1)
    means = vi.global_posterior_.mean["means"][:, 0]
    np.testing.assert_allclose(means, [-2, 0, 2], atol=0.25)
    transitions = vi.global_posterior_.mean["transitions"]
    often = np.linalg.matrix_power(transitions, 1000)[0]
    assert (np.diff(often) <= 1e-9).all()  # in the order of the long run


def test_coordinate_updates_and_newton_meet():
    """Closed-form updates and derivatives through the tree: one optimum, to 1e-5 nats."""
    X, _ = regimes(60)
    sweeps = fit(X)
    newton = FactorizedVI(sweeps.model_, solver=Newton(), init=sweeps, tol=1e-10).fit(X)
    assert abs(newton.elbo_ - sweeps.elbo_) < 1e-5


def test_series_begin_anew():
    """Two series with the labels of one column: both first rows are drawn from "initial"."""
    X, _ = regimes(120)
    labelled = np.hstack([np.repeat([1.0, 2.0], 60)[:, np.newaxis], X])
    together = fit(labelled, series=0)
    alone = [together.score(labelled[part]) * 60 for part in (slice(60), slice(60, 120))]
    assert abs(together.score(labelled) * 120 - sum(alone)) < 1e-8
    joined = np.hstack([np.ones((120, 1)), X])
    assert abs(together.score(joined) * 120 - sum(alone)) > 1e-3
    each = [together.forecast(labelled[part], 2) for part in (slice(60), slice(60, 120))]
    np.testing.assert_allclose(together.forecast(labelled, 2), np.swapaxes(each, 0, 1), rtol=1e-9)
    with pytest.raises(ValueError, match=r"2 series begin 4 times.*sort X by series"):
        fit(labelled[np.r_[0:30, 60:90, 30:60, 90:120]], series=0)


def test_weights_count_whole_series():
    """A series of weight 2 is that series twice."""
    X, _ = regimes(80)
    label = np.repeat([1.0, 2.0], 40)[:, np.newaxis]
    table = np.hstack([X, label])
    model = HiddenMarkovModel(3, series=1)
    prior = fit(table, series=1).model_  # the same priors for both
    weights = np.where(label[:, 0] == 1, 2.0, 1.0)
    again = np.vstack([table, np.hstack([X[:40], np.full((40, 1), 3.0)])])
    one = FactorizedVI(prior, random_state=0).fit(table, sample_weight=weights)
    two = FactorizedVI(prior, init=one).fit(again)  # starts alone may end at other optima
    np.testing.assert_allclose(one.elbo_, two.elbo_, rtol=1e-9)
    with pytest.raises(ValueError, match=r"sample_weight differs within a series .first at row 5"):
        FactorizedVI(model).fit(table, sample_weight=np.arange(80) >= 5)


def test_rows_with_holes_are_marginalised():
    X, state = regimes(200)
    X[50:60] = np.nan
    vi = fit(X)
    assert vi.converged_
    seen = np.isfinite(X[:, 0])
    assert (vi.predict(X) == state)[seen].mean() > 0.93
    assert np.isfinite(vi.impute(X)).all()


def test_counts():
    state, rng = states(200), np.random.default_rng(1)
    rates = np.array([1.0, 6.0, 20.0])[state][:, np.newaxis]
    X = rng.poisson(np.tile(rates, 2)).astype(float)
    vi = fit(X, likelihood="poisson")
    assert vi.converged_
    assert (vi.predict(X) == state).mean() > 0.9


def test_a_forecast_ends_in_the_long_run():
    X, _ = regimes(200)
    vi = fit(X)
    mean, sd = vi.forecast(X, 300)
    assert abs(mean[-1] - mean[-2]) < 1e-3
    assert 0.5 < sd[-1, 0] / X.std() < 1.5


def test_it_draws_series_like_its_own():
    X, _ = regimes(200)
    vi = fit(X)
    drawn, z = vi.sample(2000, random_state=0)
    assert drawn.shape == (2000, 1)
    assert set(np.unique(z)) == {0, 1, 2}
    stays = (z[1:] == z[:-1]).mean()
    assert 0.7 < stays < 0.98  # the chain remembers: independent rows would stay 0.4


def test_wrong_arguments_are_told():
    X = np.zeros((5, 1))
    with pytest.raises(ValueError, match=r"likelihood='gamma'.* one of \['normal'"):
        fit(X, likelihood="gamma")
    with pytest.raises(ValueError, match="n_states"):
        FactorizedVI(HiddenMarkovModel(0)).fit(X)
    model = HiddenMarkovModel(2)
    with pytest.raises(ValueError, match="takes the priors left at None from data"):
        model.global_prior(1)
    assert model.begins(torch.zeros(3, 1)).tolist() == [True, False, False]
