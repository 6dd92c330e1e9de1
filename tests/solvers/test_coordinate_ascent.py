"""Coordinate ascent: when it stops."""

import numpy as np
import pytest
from sklearn.datasets import load_iris

from skavi import FactorizedVI
from skavi.models import FactorAnalysis, MixtureModel
from skavi.solvers import CoordinateAscent


@pytest.mark.parametrize("memory", [0, 16])
@pytest.mark.parametrize("tol", [2e-3, 5e-3, 1e-2])
def test_one_small_gain_is_not_the_end(memory, tol):
    """Two sweeps in turn gain no more than tol nats a row before the ascent stops.

    At these tolerances gains alone decide. Columns of unlike noise take many sweeps, and mixed ones
    (memory 16) gain less here and more again there.
    """
    rng = np.random.default_rng(1)
    X = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 6)) * [1, 3, 0.3, 1, 5, 0.2]
    X += rng.normal(size=(40, 6)) * [0.1, 0.3, 3, 1, 0.2, 2]
    vi = FactorizedVI(FactorAnalysis(2, "diagonal"), solver=CoordinateAscent(memory), tol=tol)
    gains = np.diff(vi.fit(X).elbo_curve_)
    assert vi.converged_
    assert (gains[-2:] <= tol * len(X)).all()
    assert gains[-3] > tol * len(X)


@pytest.mark.parametrize(("covariance", "seed"), [("tied", 0), ("full", 1)])
def test_sweeps_that_misled_are_forgotten(covariance, seed):
    """Mixed steps that look back far beyond a bend are refused in turn: 34 and 37 sweeps."""
    model = MixtureModel(3, covariance=covariance)
    vi = FactorizedVI(model, n_init=1, random_state=seed).fit(load_iris().data)
    assert vi.converged_
    assert vi.n_iter_ <= 27


def test_latents_are_put_in_order_before_the_end():
    """Once q(theta) is at rest, that starts a second ascent: 47 sweeps in all, not 33."""
    model = MixtureModel(3, covariance="tied")
    vi = FactorizedVI(model, n_init=1, random_state=1).fit(load_iris().data)
    weights = vi.global_posterior_.mean["weights"]
    assert (np.diff(weights) <= 0).all()
    assert vi.converged_
    assert vi.n_iter_ <= 38
