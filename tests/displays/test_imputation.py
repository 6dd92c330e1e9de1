"""Filled cells and their intervals."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from pictures import assert_legible
from skavi import FactorizedVI
from skavi.displays import (
    ImputationDisplay,
)
from skavi.models import FactorAnalysis

RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(
    RNG.normal(size=(80, 2)) @ RNG.normal(size=(2, 5)) + 0.5 * RNG.normal(size=(80, 5)),
    columns=list("abcde"),
)


@pytest.fixture(autouse=True)
def figures_closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def plane():
    return FactorizedVI(FactorAnalysis(2, noise="diagonal"), random_state=0).fit(TABLE)


def test_filled_cells_have_the_intervals_of_impute(plane):
    holes = TABLE.mask(RNG.random(TABLE.shape) < 0.2)
    holes.iloc[:25, 2] = np.nan
    display = ImputationDisplay.from_estimator(plane, holes, truth=TABLE)
    gone = holes["c"].isna().to_numpy()
    filled, sd = (part[gone, 2] for part in plane.impute(holes, return_sd=True))
    points = display.ax_.get_lines()[0].get_ydata()
    np.testing.assert_allclose(points, np.sort(filled))
    bars = np.array(display.ax_.collections[0].get_segments())
    # The 95 % quantile of a standard normal is 1.644854.
    half = (bars[:, 1, 1] - bars[:, 0, 1]) / 2
    np.testing.assert_allclose(half, 1.644854 * sd[np.argsort(filled)], rtol=1e-6)
    inside = np.abs(TABLE["c"][gone] - filled) < 1.644854 * sd
    label = display.ax_.get_legend().get_texts()[0].get_text()
    assert label == f"truth ({inside.mean():.0%} inside)"
    assert display.ax_.get_ylabel() == "c"
    assert_legible(display)
    with pytest.raises(ValueError, match="'a': no cell of that column is missing"):
        ImputationDisplay.from_estimator(plane, TABLE, "a")
