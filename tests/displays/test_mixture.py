"""The display of mixtures: ellipses hold half of a component, and rows in doubt are faint."""

import numpy as np
import pytest
from matplotlib.patches import Ellipse
from scipy.stats import chi2

from skavi import FactorizedVI
from skavi.displays import MixtureDisplay
from skavi.models import FactorAnalysis, MixtureModel

POINTS = np.array([[0.0, 0.0], [1.0, 1.0], [5.0, np.nan], [6.0, 6.0]])
PROBABILITIES = np.array([[1.0, 0.0, 0.0], [0.6, 0.4, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
MEANS = np.array([[0.5, 0.5], [5.5, 6.0], [3.0, 3.0]])
COVARIANCES = np.array([[[2.0, 0.9], [0.9, 1.0]], np.eye(2), np.eye(2)])


def test_ellipses_hold_half_and_rows_in_doubt_are_faint():
    weights = np.array([0.6, 0.395, 0.005])
    display = MixtureDisplay(POINTS, PROBABILITIES, weights, MEANS, COVARIANCES, ("a", "b")).plot()
    ellipses = [p for p in display.ax_.patches if isinstance(p, Ellipse)]
    assert len(ellipses) == 2  # the third component is empty
    edge = ellipses[0].get_patch_transform().transform([[1.0, 0.0], [0.0, 1.0]]) - MEANS[0]
    squared = np.einsum("ni,ij,nj->n", edge, np.linalg.inv(COVARIANCES[0]), edge)
    np.testing.assert_allclose(chi2(2).cdf(squared), 0.5, atol=1e-4)
    drawn = [c for c in display.ax_.collections if len(c.get_offsets())]
    assert [len(c.get_offsets()) for c in drawn] == [2, 1]  # without the row with a hole
    sure, doubtful = drawn[0].get_alpha()
    assert sure == 1
    assert 0.15 < doubtful < 0.6
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["component 0 (weight 0.60)", "component 1 (weight 0.40)"]


@pytest.mark.parametrize("covariance", ["diagonal", "tied", "full"])
def test_a_fit_is_drawn_with_its_own_numbers(covariance):
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(0, 1, (30, 3)), rng.normal(8, 1, (20, 3))])
    vi = FactorizedVI(MixtureModel(2, covariance=covariance), n_init=1, random_state=0).fit(X)
    display = MixtureDisplay.from_estimator(vi, X, features=(2, 0))
    theta = vi.global_posterior_.mean
    np.testing.assert_array_equal(display.means, theta["means"][:, [2, 0]])
    variances = {"diagonal": lambda: theta["variances"][1, 2]}
    whole = np.broadcast_to(theta.get("covariances", np.eye(3)), (2, 3, 3))
    expected = variances.get(covariance, lambda: whole[1, 2, 2])()
    assert display.covariances[1, 0, 0] == pytest.approx(expected)


def test_of_mixed_columns_the_normal_ones_are_drawn():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.poisson(3.0, 40), rng.normal(size=(40, 2))]).astype(float)
    X[:20] += 6
    model = MixtureModel(2, {"poisson": [0], "normal": [1, 2]})
    vi = FactorizedVI(model, n_init=1, random_state=0).fit(X)
    display = MixtureDisplay.from_estimator(vi, X, features=(2, 1))
    theta = vi.global_posterior_.mean
    np.testing.assert_array_equal(display.means, theta["means"][:, [1, 0]])
    assert display.covariances[1, 0, 0] == pytest.approx(theta["variances"][1, 1])
    with pytest.raises(ValueError, match=r"feature=0.*draws normal columns"):
        MixtureDisplay.from_estimator(vi, X, features=(0, 1))


def test_counts_have_no_ellipses_and_other_models_are_refused():
    X = np.random.default_rng(0).poisson([[1.0, 9.0], [9.0, 1.0]] * 10).astype(float)
    vi = FactorizedVI(MixtureModel(2, "poisson"), n_init=1, random_state=0).fit(X)
    assert not MixtureDisplay.from_estimator(vi, X).ax_.patches
    with pytest.raises(ValueError, match=r"FactorAnalysis has no globals.*fit a MixtureModel"):
        MixtureDisplay.from_estimator(FactorizedVI(FactorAnalysis(1)).fit(X), X)
