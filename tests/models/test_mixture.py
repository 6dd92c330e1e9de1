"""Mixtures: expectations by draws of theta, missing cells, counts, and scikit-learn's mixture."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import BayesianGaussianMixture

import skavi
from skavi import AmortizedVI, FactorizedVI, amortization_gap
from skavi.families import DiagonalNormal
from skavi.inference_functions import Polynomial
from skavi.models import MixtureModel
from skavi.objective import bind

IRIS, KINDS = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def iris():
    return FactorizedVI(MixtureModel(3), random_state=0).fit(IRIS)


@pytest.mark.parametrize("likelihood", ["normal", "poisson", "bernoulli"])
def test_closed_forms_are_means_over_draws_of_theta(likelihood):
    """To 4 standard errors of 200 draws."""
    generator = torch.Generator().manual_seed(0)
    X = (3 * torch.rand(5, 2, generator=generator, dtype=torch.float64)).round()
    X = X.clamp_max(1) if likelihood == "bernoulli" else X
    X[0, 1] = torch.nan
    model = MixtureModel(3, likelihood).adapted(X, torch.ones(5).double())
    objective = bind(model, None, DiagonalNormal(), X)
    raw = 0.3 * torch.randn(objective.space.size, generator=generator, dtype=torch.float64)
    q = objective.global_factor(torch.cat([raw, torch.full_like(raw, -1.5)]))
    noise = torch.randn(200, len(raw), generator=generator, dtype=torch.float64)
    thetas = [objective.space.constrain(u) for u in q.draw(noise)]
    draws = torch.stack([objective.log_joints_at(theta, X) for theta in thetas])
    error = draws.std(0) / len(draws) ** 0.5
    away = (objective.expected_log_joints(q, X, None) - draws.mean(0)).abs() / error
    assert away.max() < 4
    priors = torch.stack([objective.space.log_prior(u) for u in q.draw(noise)])
    away = (objective.space.expected_log_prior(q) - priors.mean()).abs()
    assert away < 4 * priors.std() / len(priors) ** 0.5


def test_clusters_are_those_of_scikit_learn(iris):
    other = BayesianGaussianMixture(
        n_components=3, covariance_type="diag", max_iter=1000, random_state=0
    ).fit(IRIS)
    assert iris.converged_
    ours, theirs = (adjusted_rand_score(KINDS, m.predict(IRIS)) for m in (iris, other))
    assert ours >= theirs - 0.02
    assert iris.global_posterior_.mean["weights"].sum() == pytest.approx(1.0, abs=1e-3)
    assert list(iris.get_feature_names_out()) == ["component0", "component1", "component2"]
    np.testing.assert_allclose(iris.transform(IRIS).sum(1), 1)


def test_a_missing_cell_is_left_out(iris):
    row = IRIS[[100]].copy()
    row[0, 1:] = np.nan
    theta = [iris.global_posterior_.sample(4000, random_state=0)[n] for n in ("means", "variances")]
    weights = iris.global_posterior_.sample(4000, random_state=0)["weights"]
    means, variances = (each[..., 0] for each in theta)
    density = -0.5 * ((row[0, 0] - means) ** 2 / variances + np.log(2 * np.pi * variances))
    logs = (density + np.log(weights)).mean(0)
    expected = np.exp(logs - logs.max())
    np.testing.assert_allclose(iris.transform(row)[0], expected / expected.sum(), atol=0.03)


def test_clusters_with_holes_are_found_and_filled_in():
    holes = IRIS.copy()
    holes[np.random.default_rng(0).random(IRIS.shape) < 0.2] = np.nan
    vi = FactorizedVI(MixtureModel(3), n_init=1, random_state=0).fit(holes)
    assert vi.converged_
    assert adjusted_rand_score(KINDS, vi.predict(holes)) > 0.6
    filled, missing = vi.impute(holes), np.isnan(holes)
    error = np.abs(filled - IRIS)[missing].mean()
    assert error < 0.5 * np.abs(np.nanmean(holes, 0) - IRIS)[missing].mean()


def test_counts_form_clusters():
    rng = np.random.default_rng(0)
    kinds = rng.random(60) < 0.5
    X = rng.poisson(np.where(kinds[:, None], [2.0, 8.0], [8.0, 1.0])).astype(float)
    vi = FactorizedVI(MixtureModel(2, "poisson"), random_state=0).fit(X)
    assert adjusted_rand_score(kinds, vi.predict(X)) > 0.8
    assert vi.sample(5, random_state=0)[0].shape == (5, 2)


def test_a_quadratic_function_closes_the_gap():
    X = IRIS[::3, 2:]
    vi = FactorizedVI(MixtureModel(2), n_init=1, random_state=0).fit(X)
    amortized = AmortizedVI(MixtureModel(2), Polynomial(2), n_init=1, random_state=0).fit(X)
    assert abs(amortization_gap(amortized, X, vi).total) < 1e-4


def test_a_fit_is_saved_and_loaded(iris, tmp_path):
    skavi.save(iris, tmp_path / "iris.skavi")
    again = skavi.load(tmp_path / "iris.skavi")
    np.testing.assert_array_equal(again.transform(IRIS), iris.transform(IRIS))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (MixtureModel(0), r"n_components"),
        (MixtureModel(2, "student_t"), r"likelihood"),
        (MixtureModel(2, covariance="spherical"), r'covariance.*"diagonal"'),
        (MixtureModel(2, concentration=-1.0), r"concentration"),
    ],
)
def test_wrong_arguments_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        FactorizedVI(model).fit(IRIS)
