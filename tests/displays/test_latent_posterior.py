"""Pairs of latents."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from skavi import FactorizedVI
from skavi.displays import (
    LatentPosteriorDisplay,
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


def test_pairs_are_those_whose_means_vary_most():
    X = RNG.normal(size=(60, 9))
    posterior = FactorizedVI(FactorAnalysis(7), random_state=0, max_iter=400).fit(X).posterior(X)
    display = LatentPosteriorDisplay(posterior, np.repeat(list("ab"), 30)).plot_pairs()
    assert display.axes_.shape == (5, 5)
    assert "5 of 7 latents" in display.figure_.get_suptitle()
    most = np.sort(np.argsort(-posterior.mean.std(0))[:5])
    points = display.axes_[3, 1].collections[0].get_offsets()
    np.testing.assert_allclose(
        np.sort(points, 0), np.sort(posterior.mean[:, most[[1, 3]]], 0), rtol=1e-12
    )
    assert [t.get_text() for t in display.figure_.legends[0].get_texts()] == ["a", "b"]
