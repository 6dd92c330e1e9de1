"""The estimators where scikit-learn's users put them: pipelines, searches, files, copies."""

import copy
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import StandardScaler
from torch.distributions import Normal

from skavi import AmortizedVI, FactorizedVI
from skavi.inference_functions import MLP, Constant, Polynomial
from skavi.models import FactorAnalysis, HierarchicalModel, LinearModel

IRIS, SPECIES = load_iris(return_X_y=True)
BOTH = [FactorizedVI, AmortizedVI]


class Wave(HierarchicalModel):
    """The ten lines of a user's own model."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {"theta": Normal(0.0, 10.0)}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), self.scale)

    def likelihood(self, z, theta):
        return Normal(theta["theta"] + z * torch.sin(z) + z, torch.exp(torch.cos(z)))


def _wave_data():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(30, 1))
    return 2 + z * np.sin(z) + z + np.exp(np.cos(z)) * rng.normal(size=(30, 1))


WAVE = _wave_data()


@pytest.fixture(params=BOTH, ids=["factorized", "amortized"])
def fitted(request):
    return request.param(FactorAnalysis(), random_state=0).fit(IRIS)


# --- pipelines and searches ---------------------------------------------------------------------


def test_supervised_grid_search_over_nested_parameters():
    vi = AmortizedVI(FactorAnalysis(), MLP(), random_state=0)
    pipeline = Pipeline(
        [("scale", StandardScaler()), ("vi", vi), ("classify", LogisticRegression())]
    )
    grid = {
        "vi__model__n_components": [1, 3],
        "vi__inference_function__hidden_layer_sizes": [(8,), (16, 16)],
    }
    search = GridSearchCV(pipeline, grid, cv=3, n_jobs=2).fit(IRIS, SPECIES)
    best = search.best_estimator_["vi"]
    assert best.model_.n_components == search.best_params_["vi__model__n_components"]
    sizes = search.best_params_["vi__inference_function__hidden_layer_sizes"]
    assert best.inference_function_.hidden_layer_sizes == sizes
    assert (
        search.best_score_ > 0.9
    )  # chance is 1/3; a logistic regression on the scaled columns 0.96


@pytest.mark.parametrize("estimator", BOTH)
def test_unsupervised_grid_search_on_the_default_score(estimator):
    # Three factors in ten columns: too few or too many components fit held-out rows worse.
    rng = np.random.default_rng(1)
    X = rng.normal(size=(150, 3)) @ rng.normal(size=(3, 10)) + 0.5 * rng.normal(size=(150, 10))
    vi = estimator(FactorAnalysis(), random_state=0)
    search = GridSearchCV(vi, {"model__n_components": [1, 3]}, cv=3, n_jobs=2).fit(X)
    assert search.best_params_ == {"model__n_components": 3}
    assert search.score(X) == search.best_estimator_.score(X)


def test_search_is_the_same_with_workers():
    search = GridSearchCV(
        FactorizedVI(FactorAnalysis(), random_state=0), {"model__n_components": [1, 2]}, cv=2
    )
    alone, together = (clone(search).set_params(n_jobs=n).fit(IRIS) for n in (1, 2))
    np.testing.assert_array_equal(
        alone.cv_results_["mean_test_score"], together.cv_results_["mean_test_score"]
    )


def test_pandas_output_and_column_transformer(fitted):
    frame = pd.DataFrame(IRIS, columns=list("abcd"))
    split = ColumnTransformer(
        [("left", clone(fitted), ["a", "b", "c"]), ("right", StandardScaler(), ["d"])]
    )
    table = split.set_output(transform="pandas").fit_transform(frame)
    assert list(table.columns) == ["left__factor0", "left__factor1", "right__d"]
    alone = clone(fitted).fit(frame[["a", "b", "c"]]).transform(frame[["a", "b", "c"]])
    np.testing.assert_array_equal(table.iloc[:, :2], alone)


def test_set_output_gives_frames(fitted):
    frame = fitted.set_output(transform="pandas").transform(IRIS)
    assert list(frame.columns) == list(fitted.get_feature_names_out())
    np.testing.assert_array_equal(frame, fitted.set_output(transform="default").transform(IRIS))


def test_feature_union(fitted):
    union = FeatureUnion([("mean", clone(fitted)), ("scaled", StandardScaler())]).fit(IRIS)
    np.testing.assert_array_equal(union.transform(IRIS)[:, :2], fitted.transform(IRIS))
    assert len(union.get_feature_names_out()) == 6


# --- files and copies ---------------------------------------------------------------------------


def _through_joblib(estimator, tmp_path):
    joblib.dump(estimator, tmp_path / "vi.joblib")
    return joblib.load(tmp_path / "vi.joblib")


COPIES = {
    "joblib": _through_joblib,
    "pickle": lambda estimator, _: pickle.loads(pickle.dumps(estimator)),
    "deepcopy": lambda estimator, _: copy.deepcopy(estimator),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_are_bit_equal(fitted, copied, tmp_path):
    other = copied(fitted, tmp_path)
    np.testing.assert_array_equal(other.transform(IRIS), fitted.transform(IRIS))
    np.testing.assert_array_equal(other.score_samples(IRIS), fitted.score_samples(IRIS))
    assert other.elbo_ == fitted.elbo_


def test_fitted_state_holds_no_tensors(fitted):
    assert b"torch" not in pickle.dumps(vars(fitted))


def test_clone_of_a_fit_is_unfitted_and_refits_alike(fitted):
    again = clone(fitted)
    assert not hasattr(again, "elbo_")
    assert again.model is not fitted.model
    np.testing.assert_array_equal(again.fit(IRIS).transform(IRIS), fitted.transform(IRIS))


def test_fit_leaves_the_components_as_they_were():
    model, function = FactorAnalysis(), MLP((8,))
    before = [{**vars(model)}, {**vars(function)}]
    AmortizedVI(model, function, random_state=0).fit(IRIS)
    assert [vars(model), vars(function)] == before


# --- a user's own model -------------------------------------------------------------------------


def _wave(estimator, **options):
    function = {"inference_function": Polynomial(3)} if estimator is AmortizedVI else {}
    return estimator(Wave(), random_state=0, **function, **options)


@pytest.mark.parametrize("estimator", BOTH)
def test_custom_model_fits_and_survives_copies(estimator):
    vi = _wave(estimator).fit(WAVE)
    assert vi.converged_
    assert abs(vi.global_posterior_.mean["theta"] - 2) < 4 * vi.global_posterior_.sd["theta"] + 0.5
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(vi)).transform(WAVE), vi.transform(WAVE)
    )
    assert clone(vi).fit(WAVE).elbo_ == vi.elbo_


def test_custom_model_amortized_is_below_factorized():
    amortized, factorized = (
        _wave(estimator).fit(WAVE) for estimator in (AmortizedVI, FactorizedVI)
    )
    # Both are converged to 1e-8 nats a row; 1e-4 is for a noise rule refined to another depth.
    assert amortized.elbo_ <= factorized.elbo_ + 1e-4


@pytest.mark.parametrize("estimator", BOTH)
def test_custom_model_in_grid_search(estimator):
    search = GridSearchCV(_wave(estimator), {"model__scale": [0.1, 1.0]}, cv=2).fit(WAVE)
    scores = search.cv_results_["mean_test_score"]
    assert search.best_estimator_.model_.scale == search.best_params_["model__scale"]
    assert abs(scores[0] - scores[1]) > 1e-3  # the option reaches the model


# --- starting from another fit ------------------------------------------------------------------


def test_factorized_starts_at_the_amortized_output():
    x = IRIS[:, :1]
    amortized = AmortizedVI(LinearModel(), Constant(), random_state=0).fit(x)
    factorized = FactorizedVI(LinearModel(), init=amortized, random_state=0).fit(x)
    rounding = 1e-12 * abs(amortized.elbo_)
    assert factorized.elbo_curve_[0] >= amortized.elbo_ - rounding
    assert factorized.elbo_ > amortized.elbo_ + 1  # a constant cannot follow the rows


@pytest.mark.parametrize("function", [Polynomial(1), MLP((8,))], ids=["polynomial", "mlp"])
def test_factorized_start_is_not_below_the_amortized_end(function):
    model = FactorAnalysis(noise="diagonal")
    amortized = AmortizedVI(model, function, random_state=0).fit(IRIS)
    factorized = FactorizedVI(model, init=amortized, random_state=0).fit(IRIS)
    rounding = 1e-12 * abs(amortized.elbo_)
    assert factorized.elbo_curve_[0] >= amortized.elbo_ - rounding


def test_amortized_starts_from_the_factorized_factors():
    factorized = FactorizedVI(FactorAnalysis(), random_state=0).fit(IRIS)
    amortized = AmortizedVI(FactorAnalysis(), Polynomial(1), init=factorized, random_state=0).fit(
        IRIS
    )
    # The optimal factors are linear in the row, so the start is the optimum: there is no gap.
    assert amortized.elbo_curve_[0] == pytest.approx(factorized.elbo_, rel=1e-9)


@pytest.mark.parametrize("estimator", BOTH)
def test_warm_start_goes_on_where_the_last_fit_ended(estimator):
    vi = estimator(FactorAnalysis(noise="diagonal"), warm_start=True, random_state=0).fit(IRIS)
    cold = vi.elbo_
    vi.fit(IRIS)
    assert vi.n_iter_ <= 5
    assert vi.elbo_ == pytest.approx(cold, rel=1e-9)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (FactorizedVI(), "init must be a fitted estimator"),
        (FactorizedVI().fit(IRIS[:, :2]), "a fit on 2 features, but X has 4"),
        (FactorizedVI(FactorAnalysis(1)).fit(IRIS), "other latents or globals"),
    ],
)
def test_init_that_does_not_fit_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        FactorizedVI(FactorAnalysis(2), init=source).fit(IRIS)


# --- what a fit gives ---------------------------------------------------------------------------


def test_mean_sd_output_is_the_posterior(fitted):
    posterior = fitted.posterior(IRIS)
    both = clone(fitted).set_params(output="mean_sd").fit(IRIS)
    np.testing.assert_array_equal(both.transform(IRIS), np.hstack([posterior.mean, posterior.sd]))
    assert both.get_feature_names_out().shape == (4,)


def test_fit_transform_is_fit_then_transform(fitted):
    # Both solve the rows with q(theta) frozen: the same numbers, not merely close ones.
    np.testing.assert_array_equal(clone(fitted).fit_transform(IRIS), fitted.transform(IRIS))


def test_score_is_the_mean_of_score_samples(fitted):
    # rtol: two orders of summing 150 terms.
    assert fitted.score(IRIS) == pytest.approx(fitted.score_samples(IRIS).mean(), rel=1e-13)


def test_inverse_transform_is_the_expected_row(fitted):
    Z = np.random.default_rng(0).normal(size=(7, 2))
    theta = fitted.global_posterior_.mean
    # Linear in the globals: E[x | z] holds their means. 1e-12: rounding of the antithetic draws.
    expected = Z @ theta["loadings"].T + theta["mean"]
    np.testing.assert_allclose(fitted.inverse_transform(Z), expected, rtol=1e-12, atol=1e-12)
    with_sd = np.hstack([Z, np.ones_like(Z)])
    np.testing.assert_array_equal(fitted.inverse_transform(with_sd), fitted.inverse_transform(Z))
    assert fitted.inverse_transform(Z.astype(np.float32)).dtype == np.float32


def test_sample_has_the_fitted_moments(fitted):
    n = 40_000
    X, Z = fitted.sample(n, random_state=0)
    theta = fitted.global_posterior_
    loadings, noise = theta.mean["loadings"], theta.mean["noise_variance"]
    covariance = loadings @ loadings.T + noise * np.eye(4)
    # Five standard errors of n rows, and of the one draw of theta that all rows share.
    sd = np.sqrt(np.diag(covariance))
    of_theta = 5 * np.abs(loadings) @ theta.sd["loadings"].T
    slack = 5 * np.outer(sd, sd) * np.sqrt(2 / n) + of_theta + of_theta.T
    slack += 5 * theta.sd["noise_variance"]
    assert (np.abs(np.cov(X.T) - covariance) < slack).all()
    assert (np.abs(X.mean(0) - theta.mean["mean"]) < 5 * (theta.sd["mean"] + sd / n**0.5)).all()
    np.testing.assert_allclose(np.cov(Z.T), np.eye(2), atol=5 * np.sqrt(2 / n))
    again, _ = fitted.sample(5, random_state=3)
    np.testing.assert_array_equal(again, fitted.sample(5, random_state=3)[0])
