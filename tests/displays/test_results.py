"""Displays of results: loadings, pairs of latents, topics, filled cells, predictive checks."""

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
    LatentPosteriorDisplay,
    LoadingsDisplay,
    PredictiveCheckDisplay,
    TopicWordsDisplay,
)
from skavi.models import FactorAnalysis, LinearModel, MixedEffects, TopicModel

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


# Loadings


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


def test_columns_and_latents_left_out_are_told():
    loadings = RNG.normal(size=(60, 30))
    display = LoadingsDisplay(
        loadings, [f"column {i}" for i in range(60)], [f"f{i}" for i in range(30)]
    )
    display.plot(most=10)
    assert display.ax_.get_title() == "10 of 60 columns drawn; 20 of 30 latents drawn"
    largest = np.sort(np.argsort(-np.abs(loadings).max(1))[:10])
    assert [t.get_text() for t in display.ax_.get_yticklabels()] == [f"column {i}" for i in largest]
    assert_legible(display)


def test_a_biplot_has_arrows_along_the_loadings_and_labels_apart(plane):
    display = LoadingsDisplay.from_estimator(plane).plot_biplot(plane.posterior(TABLE), most=4)
    tips = np.array([text.xy for text in display.ax_.texts if hasattr(text, "xy")])
    lengths = np.linalg.norm(display.loadings, axis=1)
    longest = display.loadings[np.argsort(-lengths, kind="stable")[:4]]
    np.testing.assert_allclose(tips / tips[0, 0], longest / longest[0, 0], rtol=1e-10)
    assert "4 of 5 columns" in display.ax_.get_title()
    assert_legible(display)


def test_labels_of_equal_arrows_do_not_overlap():
    names = [f"a name of forty characters, number {i:05}" for i in range(8)]
    display = LoadingsDisplay(np.ones((8, 2)), names, ["f0", "f1"])
    posterior = FactorizedVI(FactorAnalysis(2), random_state=0).fit(TABLE).posterior(TABLE)
    assert_legible(display.plot_biplot(posterior, np.repeat(["one", "two"], 40)))


def test_a_model_without_loadings_is_refused():
    vi = FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]])
    with pytest.raises(ValueError, match="LinearModel has not: fit a FactorAnalysis"):
        LoadingsDisplay.from_estimator(vi)


# Pairs


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


# Topics


@pytest.fixture(scope="module")
def documents():
    topics = np.kron(np.eye(2), np.full(4, 0.25))
    shares = RNG.dirichlet([0.4, 1.2], size=60)
    return pd.DataFrame(
        [RNG.multinomial(40, p) for p in shares @ topics], columns=[f"word{i}" for i in range(8)]
    )


def test_topics_show_their_most_probable_words_the_larger_topic_first(documents):
    vi = FactorizedVI(TopicModel(2), random_state=0).fit(documents)
    display = TopicWordsDisplay.from_estimator(vi, X=documents, n_words=4)
    shares = vi.transform(documents).mean(0)
    probabilities = vi.model_.word_probabilities(vi.global_posterior_)
    first, second = np.argsort(-shares)
    assert display.axes_[0].get_title() == f"topic {first} ({shares[first]:.0%})"
    for ax, topic in zip(display.axes_, [first, second], strict=True):
        words = [t.get_text() for t in ax.get_yticklabels()]
        assert words == vi.model_.top_words(vi.global_posterior_, documents.columns, 4)[topic]
        widths = [bar.get_width() for bar in ax.patches]
        np.testing.assert_allclose(widths, np.sort(probabilities[topic])[::-1][:4])
        assert_legible(display, ax)
    one = TopicWordsDisplay.from_estimator(vi, most=1)
    assert "1 of 2 topics" in one.figure_.get_supxlabel()
    with pytest.raises(ValueError, match="words has 3 entries, but topics have 8"):
        TopicWordsDisplay.from_estimator(vi, ["a", "b", "c"])
    other = FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]])
    with pytest.raises(ValueError, match="LinearModel has none: fit a TopicModel"):
        TopicWordsDisplay.from_estimator(other)


# Filled cells


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


# Predictive checks


def outside(ax):
    """Share of places at which the observed line leaves the replicates' band."""
    band = ax.collections[0].get_paths()[0].vertices
    line = ax.get_lines()[0]
    n = len(line.get_xdata())
    low, high = band[1 : n + 1, 1], band[n + 2 : 2 * n + 2, 1][::-1]
    y = line.get_ydata()
    return ((y < np.minimum(low, high) - 1e-12) | (y > np.maximum(low, high) + 1e-12)).mean()


def test_a_right_model_stays_in_its_band_and_a_wrong_one_leaves_it(plane):
    right = PredictiveCheckDisplay.from_estimator(plane, TABLE, random_state=0)
    assert right.replicated.shape == (20, 80, 5)
    skewed = np.exp(2 * TABLE)
    vi = FactorizedVI(FactorAnalysis(2, noise="diagonal"), random_state=0).fit(skewed)
    wrong = PredictiveCheckDisplay.from_estimator(vi, skewed, random_state=0)
    for good, bad in zip(right.axes_, wrong.axes_, strict=True):
        assert outside(good) < 0.3 < outside(bad)
        assert_legible(right, good)


def test_counts_have_bars_and_missing_cells_are_missing_in_replicates():
    counts = RNG.poisson(2.0, size=(60, 3)).astype(float)
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


def test_replicates_are_given_the_columns_that_the_model_is_given():
    group = np.repeat(np.arange(10), 6)
    X = pd.DataFrame({"y": 50.0 * (group % 2), "school": [f"s{g}" for g in group]})
    X["x"] = 10.0 * (group % 2)
    X["y"] += 5 * X["x"] + RNG.normal(size=60)
    model = MixedEffects("y", groups="school", fixed=["x"])
    vi = FactorizedVI(model, random_state=0).fit(X)
    display = PredictiveCheckDisplay.from_estimator(vi, X, random_state=0)
    assert display.names == ["y"]
    # Where x is 10, y is some 100 above: of every replicate, if it was given x.
    values, high = display.replicated[:, :, 0], X["x"].to_numpy() > 5
    assert (values[:, high].mean(1) - values[:, ~high].mean(1)).mean() > 50
    shifted = FactorAnalysis(1, likelihood="poisson", offset="o")
    counts = pd.DataFrame(RNG.poisson(2.0, size=(30, 3)), columns=list("abo"))
    vi = FactorizedVI(shifted, random_state=0).fit(counts)
    with pytest.raises(ValueError, match="drawn with an offset of 0"):
        PredictiveCheckDisplay.from_estimator(vi, counts)
