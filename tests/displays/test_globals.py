"""The forest plot: bars at both kinds of quantiles, labels by name, and what is not drawn."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from skavi import FactorizedVI
from skavi.displays import GlobalsDisplay
from skavi.models import FactorAnalysis, LinearModel, LocalLevel, RandomEffects, TopicModel

LONG = [f"a column with a name of forty letters {i:02d}" for i in range(3)]


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(60, 3)), columns=LONG)
    X.insert(1, "age", rng.normal(size=60))
    X["site"] = rng.choice(["a", "b"], 60)
    return FactorizedVI(FactorAnalysis(1, covariates=["age", "site"]), random_state=0).fit(X)


def ticks(ax):
    return [text.get_text() for text in ax.get_yticklabels()]


def bars(ax):
    """Return the ends of the bars, (2, n), by their legend."""
    return {
        each.get_label(): np.array([segment[:, 0] for segment in each.get_segments()]).T
        for each in ax.collections
    }


def test_bars_are_at_both_kinds_of_quantiles(fitted):
    display = GlobalsDisplay.from_estimator(fitted)
    q = fitted.global_posterior_
    names = [ax.get_xlabel() for ax in display.axes_]
    assert names == ["noise_variance", "loadings", "coefficients", "mean"]
    for ax, name in zip(display.axes_, names, strict=True):
        drawn = bars(ax)
        ends = [0.05, 0.95]
        expected = q.quantile(ends)[name].reshape(2, -1)
        np.testing.assert_allclose(drawn["90 % of q"], expected)
        expected = q.quantile(ends, corrected=True)[name].reshape(2, -1)
        np.testing.assert_allclose(drawn["90 % by linear response"], expected)
        np.testing.assert_allclose(ax.lines[0].get_xdata(), q.mean[name].reshape(-1))
        assert ax.yaxis_inverted()


def test_numbers_have_the_names_of_columns_and_covariates(fitted):
    display = GlobalsDisplay.from_estimator(fitted, ["mean", "coefficients", "noise_variance"])
    mean, coefficients, noise = map(ticks, display.axes_)
    assert mean == LONG
    assert coefficients[:3] == [
        "a column wi...letters 00, age",
        "a column wi...letters 00, site_b",
        "a column wi...letters 01, age",
    ]
    assert noise == ["noise_variance"]
    display.figure_.canvas.draw()
    boxes = [t.get_window_extent() for ax in display.axes_ for t in ax.get_yticklabels()]
    boxes += [t.get_window_extent() for t in display.ax_.get_legend().get_texts()]
    assert all(box.x0 >= -1 and box.x1 <= display.figure_.bbox.x1 + 1 for box in boxes)
    effects = FactorizedVI(RandomEffects()).fit([[28, 15], [8, 10], [-3, 16], [7, 11]])
    assert ticks(GlobalsDisplay.from_estimator(effects, "mu").ax_) == ["mu"]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_topics_and_covariates_are_named_and_no_response_is_drawn_without_one():
    X = np.random.default_rng(0).poisson(2.0, size=(12, 5)).astype(float)
    vi = FactorizedVI(TopicModel(2, covariates=[-1]), max_iter=2, n_init=1, random_state=0).fit(X)
    assert vi.global_posterior_.corrected_sd is None
    display = GlobalsDisplay.from_estimator(vi, "coefficients")
    assert ticks(display.ax_) == ["topic0, x4", "topic1, x4"]
    assert list(bars(display.ax_)) == ["90 % of q"]


def test_of_many_numbers_the_first_are_drawn_and_said():
    mean = {
        "loadings": np.arange(300.0).reshape(100, 3),
        "mean": np.arange(40.0),
        "v": np.array(1.0),
    }
    quantiles = {name: np.stack([each - 1, each + 2]) for name, each in mean.items()}
    display = GlobalsDisplay(mean, quantiles).plot(most=21)
    assert [len(ticks(ax)) for ax in display.axes_] == [10, 10, 1]
    assert display.ax_.get_xlabel() == "loadings (the first 10 of 300 numbers)"
    assert ticks(display.ax_)[-1] == "3, 0"
    np.testing.assert_array_equal(display.ax_.lines[0].get_xdata(), np.arange(10.0))
    np.testing.assert_array_equal(bars(display.ax_)["90 % of q"][1], np.arange(10.0) + 2)
    whole = GlobalsDisplay(mean, quantiles).plot(most=400)
    assert [len(ticks(ax)) for ax in whole.axes_] == [300, 40, 1]
    assert whole.figure_.get_size_inches()[1] > display.figure_.get_size_inches()[1]


def test_all_are_drawn_on_axes_that_are_given(fitted):
    _, ax = plt.subplots()
    display = GlobalsDisplay.from_estimator(fitted, ["loadings", "mean"], ax=ax)
    assert display.ax_ is ax and display.axes_ == [ax]
    assert [text.split(":")[0] for text in ticks(ax)] == ["loadings"] * 3 + ["mean"] * 3
    assert ax.get_xlabel() == "loadings\nmean"


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_means_are_of_the_colour_of_text(style, fitted):
    with plt.style.context(style):
        ax = GlobalsDisplay.from_estimator(fitted, "mean").ax_
        assert ax.lines[0].get_color() == plt.rcParams["axes.labelcolor"]


def test_what_cannot_be_drawn_is_said(fitted):
    with pytest.raises(ValueError, match=r"names: there is no global 'slope'; the model has \['no"):
        GlobalsDisplay.from_estimator(fitted, "slope")
    none = FactorizedVI(LocalLevel(level_sd=1.0, noise_sd=1.0)).fit([[0.0], [1.0], [2.0]])
    with pytest.raises(ValueError, match=r"nothing to draw; the model has \[\]"):
        GlobalsDisplay.from_estimator(none)
    one = FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]])
    assert len(GlobalsDisplay.from_estimator(one).axes_) == 1
