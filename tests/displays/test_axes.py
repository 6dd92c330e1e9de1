"""Displays of few and many classes, rows and latents, with long names, on light and dark."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from pictures import assert_legible
from skavi import FactorizedVI
from skavi.displays import (
    LatentPosteriorDisplay,
    LoadingsDisplay,
    MixtureDisplay,
    TopicWordsDisplay,
)
from skavi.displays._axes import MOST_ROWS
from skavi.models import FactorAnalysis

RNG = np.random.default_rng(0)
MANY = 100_000
LONG = "a name of forty characters, number {:05}"


@pytest.fixture(params=["default", "dark_background"], autouse=True)
def style(request):
    with plt.style.context(request.param):
        yield request.param
    plt.close("all")


@pytest.fixture(scope="module")
def posteriors():
    """Of 100 and of 100,000 rows, 1, 7 and 50 latents."""
    found = {}
    for k in (1, 7, 50):
        W = RNG.normal(size=(k, max(4, k + 3)))
        X = RNG.normal(size=(MANY if k == 7 else 100, k)) @ W + RNG.normal(size=W.shape[1])
        vi = FactorizedVI(FactorAnalysis(k), random_state=0, max_iter=3)
        with np.errstate(all="ignore"), pytest.warns():
            vi.fit(X[:100])
        found[100, k] = vi.posterior(X[:100])
        if k == 7:
            found[MANY, k] = vi.posterior(X)
    return found


def contrast(ink, ground):
    """The contrast ratio of two colours, by WCAG 2.1: (L1 + .05) / (L2 + .05)."""
    light = []
    for colour in (ink, ground):
        parts = np.array(to_rgb(colour))
        linear = np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        light.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("n_classes", [2, 7, 30])
@pytest.mark.parametrize("n", [100, MANY])
def test_maps_of_many_rows_and_classes(posteriors, n, n_classes):
    labels = np.array([LONG.format(i) for i in range(n_classes)])[RNG.integers(0, n_classes, n)]
    posterior = posteriors[n, 7]
    for draw in ("plot", "plot_intervals", "plot_pairs"):
        display = getattr(LatentPosteriorDisplay(posterior, labels), draw)()
        title = display.ax_.get_title() or display.figure_.get_suptitle()
        assert ("2,000 of 100,000 rows drawn" in title) == (n == MANY)
        drawn = [c for c in display.ax_.collections if len(c.get_offsets()) > 1]
        assert sum(len(c.get_offsets()) for c in drawn) <= 2 * MOST_ROWS
        legends = [display.ax_.get_legend(), *display.figure_.legends]
        named = [legend for legend in legends if legend is not None]
        texts = [text.get_text() for text in named[0].get_texts()]
        assert len(set(texts)) == len(np.unique(labels))  # shortened, and still different
        if draw != "plot_pairs":
            assert_legible(display)


@pytest.mark.slow
def test_series_of_many_steps_and_latents(posteriors):
    long = LatentPosteriorDisplay(posteriors[MANY, 7]).plot_series(latents=[0])
    assert "2,000 of 100,000 steps drawn" in long.ax_.get_title()
    assert len(long.ax_.get_lines()[0].get_xdata()) == MOST_ROWS
    assert long.ax_.get_lines()[0].get_xdata()[-1] == MANY - 1
    wide = LatentPosteriorDisplay(posteriors[100, 50]).plot_series()
    assert "7 of 50 latents drawn" in wide.ax_.get_title()
    one = LatentPosteriorDisplay(posteriors[100, 1]).plot_series()
    for display in (long, wide, one):
        assert_legible(display)
    assert LatentPosteriorDisplay(posteriors[100, 1]).plot_pairs().axes_.shape == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 7, 50])
def test_loadings_and_topics_of_long_names(k):
    names = [LONG.format(i) for i in range(60)]
    assert_legible(
        LoadingsDisplay(RNG.normal(size=(60, k)), names, [f"f{i}" for i in range(k)]).plot()
    )
    topics = RNG.dirichlet(np.full(60, 0.2), size=k)
    display = TopicWordsDisplay(topics, names, RNG.dirichlet(np.ones(k))).plot()
    assert len(display.axes_) == min(k, 12)
    for ax in display.axes_:
        assert_legible(display, ax)


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 7, 30])
def test_many_components_are_numbered_where_they_are(k, style):
    means = RNG.normal(scale=8.0, size=(k, 2))
    state = RNG.integers(0, k, MANY)
    points = means[state] + RNG.normal(size=(MANY, 2))
    probabilities = np.eye(k)[state]
    weights, covariances = np.full(k, 1 / k), np.tile(np.eye(2), (k, 1, 1))
    display = MixtureDisplay(points, probabilities, weights, means, covariances).plot()
    assert "2,000 of 100,000 rows drawn" in display.ax_.get_title()
    numbers = [text.get_text() for text in display.ax_.texts]
    assert numbers == ([str(i) for i in range(k)] if k == 30 else [])
    assert (display.ax_.get_legend() is None) == (k == 30)
    inks = [text.get_color() for text in display.ax_.texts]
    inks += [line.get_color() for line in display.ax_.get_lines()]
    assert min(contrast(ink, plt.rcParams["axes.facecolor"]) for ink in inks) > 7
