"""Loadings: correlations with latents, in a heatmap and beside the rows."""

import numpy as np
import pytest

from pictures import assert_legible
from skavi import FactorizedVI
from skavi.displays import (
    LoadingsDisplay,
)
from skavi.models import FactorAnalysis, LinearModel


def test_loadings_of_numbers_are_correlations_with_the_latent(plane):
    """Under the model at its mean theta: cov(x, z) = W, var(x) = W W' + v, so the correlation
    is w / sqrt(w w' + v). Of 20,000 rows that the fit draws, 5 standard errors are .035."""
    display = LoadingsDisplay.from_estimator(plane)
    X, Z = plane.sample(20_000, random_state=0)
    correlations = np.corrcoef(X.T, Z.T)[:5, 5:]
    # One draw of theta, whose loadings vary about their mean by some sds of q(theta).
    np.testing.assert_allclose(display.loadings, correlations, atol=0.1)
    image = display.ax_.get_images()[0]
    np.testing.assert_array_equal(image.get_array(), display.loadings)
    assert image.get_clim() == (-np.abs(display.loadings).max(), np.abs(display.loadings).max())
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == list("abcde")
    assert_legible(display)


def test_columns_and_latents_left_out_are_told(rng):
    loadings = rng.normal(size=(60, 30))
    display = LoadingsDisplay(
        loadings, [f"column {i}" for i in range(60)], [f"f{i}" for i in range(30)]
    )
    display.plot(most=10)
    assert display.ax_.get_title() == "10 of 60 columns drawn; 20 of 30 latents drawn"
    largest = np.sort(np.argsort(-np.abs(loadings).max(1))[:10])
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == [f"column {i}" for i in largest]
    assert_legible(display)


def test_a_biplot_has_arrows_along_the_loadings_and_labels_apart(plane, table):
    display = LoadingsDisplay.from_estimator(plane).plot_biplot(plane.posterior(table), most=4)
    tips = np.array([text.xy for text in display.ax_.texts if hasattr(text, "xy")])
    lengths = np.linalg.norm(display.loadings, axis=1)
    longest = display.loadings[np.argsort(-lengths, kind="stable")[:4]]
    np.testing.assert_allclose(tips / tips[0, 0], longest / longest[0, 0], rtol=1e-10)
    assert "4 of 5 columns" in display.ax_.get_title()
    assert_legible(display)


def test_labels_of_equal_arrows_do_not_overlap(table):
    names = [f"a name of forty characters, number {i:05}" for i in range(8)]
    display = LoadingsDisplay(np.ones((8, 2)), names, ["f0", "f1"])
    posterior = FactorizedVI(FactorAnalysis(2), random_state=0).fit(table).posterior(table)
    assert_legible(display.plot_biplot(posterior, np.repeat(["one", "two"], 40)))


def test_a_model_without_loadings_is_refused():
    vi = FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]])
    with pytest.raises(ValueError, match="LinearModel has not: fit a FactorAnalysis"):
        LoadingsDisplay.from_estimator(vi)
