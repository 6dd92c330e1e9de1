"""Observed columns beside those that a fit draws."""

import numpy as np
import pandas as pd
import pytest

from pictures import assert_legible
from skavi import FactorizedVI
from skavi.displays import (
    PredictiveCheckDisplay,
)
from skavi.models import FactorAnalysis, MixedEffects


def outside(ax):
    """Share of places at which the observed line leaves the replicates' band."""
    band = ax.collections[0].get_paths()[0].vertices
    line = ax.get_lines()[0]
    n = len(line.get_xdata())
    low, high = band[1 : n + 1, 1], band[n + 2 : 2 * n + 2, 1][::-1]
    y = line.get_ydata()
    return ((y < np.minimum(low, high) - 1e-12) | (y > np.maximum(low, high) + 1e-12)).mean()


def test_a_right_model_stays_in_its_band_and_a_wrong_one_leaves_it(plane, table):
    right = PredictiveCheckDisplay.from_estimator(plane, table, random_state=0)
    assert right.replicated.shape == (20, 80, 5)
    skewed = np.exp(2 * table)
    vi = FactorizedVI(FactorAnalysis(2, noise="diagonal"), random_state=0).fit(skewed)
    wrong = PredictiveCheckDisplay.from_estimator(vi, skewed, random_state=0)
    for good, bad in zip(right.axes_, wrong.axes_, strict=True):
        assert outside(good) < 0.3 < outside(bad)
        assert_legible(right, good)


def test_counts_have_bars_and_missing_cells_are_missing_in_replicates(rng):
    counts = rng.poisson(2.0, size=(60, 3)).astype(float)
    counts[:10, 1] = np.nan
    vi = FactorizedVI(FactorAnalysis(1, likelihood="poisson"), random_state=0).fit(counts)
    display = PredictiveCheckDisplay.from_estimator(vi, counts, features=[1], random_state=0)
    assert np.isnan(display.replicated[:, :10]).all()
    assert not np.isnan(display.replicated[:, 10:]).any()
    line = display.axes_[0].get_lines()[0]
    shares = [(counts[10:, 1] == value).mean() for value in line.get_xdata()]
    np.testing.assert_allclose(line.get_ydata(), shares)
    seed = PredictiveCheckDisplay.from_estimator(vi, counts, features=[1], random_state=0)
    np.testing.assert_array_equal(seed.replicated, display.replicated)


def test_replicates_are_given_the_columns_that_the_model_is_given(rng):
    group = np.repeat(np.arange(10), 6)
    X = pd.DataFrame({"y": 50.0 * (group % 2), "school": [f"s{g}" for g in group]})
    X["x"] = 10.0 * (group % 2)
    X["y"] += 5 * X["x"] + rng.normal(size=60)
    model = MixedEffects("y", groups="school", fixed=["x"])
    vi = FactorizedVI(model, random_state=0).fit(X)
    display = PredictiveCheckDisplay.from_estimator(vi, X, random_state=0)
    assert display.names == ["y"]
    # Where x is 10, y is some 100 above: of every replicate, if it was given x.
    values, high = display.replicated[:, :, 0], X["x"].to_numpy() > 5
    assert (values[:, high].mean(1) - values[:, ~high].mean(1)).mean() > 50
    shifted = FactorAnalysis(1, likelihood="poisson", offset="o")
    counts = pd.DataFrame(rng.poisson(2.0, size=(30, 3)), columns=list("abo"))
    vi = FactorizedVI(shifted, random_state=0).fit(counts)
    with pytest.raises(ValueError, match="drawn with an offset of 0"):
        PredictiveCheckDisplay.from_estimator(vi, counts)
