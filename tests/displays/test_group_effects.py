"""The caterpillar plot: groups in order, bars at their quantiles, and what is not drawn."""

import numpy as np
import pandas as pd
import pytest

from skavi import FactorizedVI
from skavi.displays import GroupEffectsDisplay
from skavi.models import FactorAnalysis, MixedEffects


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(6), 8)
    x = rng.normal(size=48)
    y = 3 * rng.normal(size=6)[group] + x + 0.5 * rng.normal(size=48)
    X = pd.DataFrame({"y": y, "school": [f"school {i}" for i in group], "x": x})
    model = MixedEffects("y", "school", ["x"], ["x"], centred=True)
    return FactorizedVI(model, random_state=0).fit(X), X


def test_groups_are_in_order_with_bars_at_their_quantiles(fitted):
    vi, X = fitted
    display = GroupEffectsDisplay.from_estimator(vi, X, effect="x")
    posterior = vi.posterior(X)
    order = posterior.mean[:, 1].argsort()
    ticks = [text.get_text() for text in display.ax_.get_yticklabels()]
    assert ticks == list(posterior.groups[order])
    for bars, ends in zip(display.ax_.collections, [(0.05, 0.95), (0.25, 0.75)], strict=True):
        drawn = np.array([segment[:, 0] for segment in bars.get_segments()])
        np.testing.assert_allclose(drawn, posterior.quantile(ends)[:, order, 1].T)
    assert display.ax_.get_xlabel() == "x"
    by_place = GroupEffectsDisplay.from_estimator(vi, X, effect=1)
    np.testing.assert_array_equal(by_place.mean, display.mean)


def test_many_groups_are_drawn_at_both_ends_and_said():
    mean = np.arange(100.0)[::-1]
    quantiles = mean + np.array([-2.0, -1.0, 1.0, 2.0])[:, None]
    labels = [f"a name of more than {40} characters: {i}" for i in range(100)]
    display = GroupEffectsDisplay(labels, mean, quantiles).plot(most=5)
    assert len(display.ax_.get_yticklabels()) == 5
    drawn = np.sort(display.ax_.lines[0].get_xdata())
    np.testing.assert_array_equal(drawn, [0, 1, 97, 98, 99])
    assert display.ax_.get_ylabel() == "95 of 100 groups in between are not drawn"
    assert max(len(text.get_text()) for text in display.ax_.get_yticklabels()) <= 24


def test_what_cannot_be_drawn_is_said(fitted):
    vi, X = fitted
    with pytest.raises(ValueError, match=r"effect='slope' must be one of \['intercept', 'x'\]"):
        GroupEffectsDisplay.from_estimator(vi, X, effect="slope")
    with pytest.raises(ValueError, match="effect=2 must be one of"):
        GroupEffectsDisplay.from_estimator(vi, X, effect=2)
    table = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ValueError, match="rows of FactorAnalysis are in none"):
        GroupEffectsDisplay.from_estimator(FactorizedVI(FactorAnalysis(1)).fit(table), table)
