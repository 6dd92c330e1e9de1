"""Filled cells and their intervals."""

import numpy as np
import pytest

from pictures import assert_legible
from skavi.displays import (
    ImputationDisplay,
)


def test_filled_cells_have_the_intervals_of_impute(plane, rng, table):
    holes = table.mask(rng.random(table.shape) < 0.2)
    holes.iloc[:25, 2] = np.nan
    display = ImputationDisplay.from_estimator(plane, holes, truth=table)
    gone = holes["c"].isna().to_numpy()
    filled, sd = (part[gone, 2] for part in plane.impute(holes, return_sd=True))
    points = display.ax_.get_lines()[0].get_ydata()
    np.testing.assert_allclose(points, np.sort(filled))
    bars = np.array(display.ax_.collections[0].get_segments())
    # The 95 % quantile of a standard normal is 1.644854.
    half = (bars[:, 1, 1] - bars[:, 0, 1]) / 2
    np.testing.assert_allclose(half, 1.644854 * sd[np.argsort(filled)], rtol=1e-6)
    inside = np.abs(table["c"][gone] - filled) < 1.644854 * sd
    label = display.ax_.get_legend().get_texts()[0].get_text()
    assert label == f"truth ({inside.mean():.0%} inside)"
    assert display.ax_.get_ylabel() == "c"
    assert_legible(display)
    with pytest.raises(ValueError, match="'a': no cell of that column is missing"):
        ImputationDisplay.from_estimator(plane, table, "a")
