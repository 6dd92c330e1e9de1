"""The imputer fills what `impute` fills, as a transformer of scikit-learn's."""

import numpy as np
import pandas as pd
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

import skavi
from skavi import AmortizedVI, FactorizedVI, Imputer
from skavi.inference_functions import Polynomial
from skavi.models import FactorAnalysis, MixedEffects, MixtureModel, TopicModel

RNG = np.random.default_rng(0)
WHOLE = RNG.normal(size=(80, 2)) @ RNG.normal(size=(2, 5)) * [1, 10, 100, 0.1, 1]
WHOLE += 0.05 * RNG.normal(size=WHOLE.shape) * [1, 10, 100, 0.1, 1]
HOLES = np.where(RNG.random(WHOLE.shape) < 0.15, np.nan, WHOLE)
FRAME = pd.DataFrame(HOLES, columns=list("abcde"))

# Every check that scikit-learn has for a transformer that takes NaN.
CHECKED = [Imputer(), Imputer(FactorizedVI(FactorAnalysis(1), tol=1e-2))]
NOT_YIELDED = [
    estimator_checks.check_dataframe_column_names_consistency,
    estimator_checks.check_get_feature_names_out_error,
    estimator_checks.check_global_output_transform_pandas,
    estimator_checks.check_global_set_output_transform_polars,
    estimator_checks.check_set_output_transform,
    estimator_checks.check_set_output_transform_pandas,
    estimator_checks.check_set_output_transform_polars,
    estimator_checks.check_transformer_get_feature_names_out,
    estimator_checks.check_transformer_get_feature_names_out_pandas,
]


@pytest.mark.changes_globals
@parametrize_with_checks(CHECKED)
def test_check(estimator, check):
    if "array_api" not in getattr(check, "func", check).__name__:  # which would skip
        check(estimator)


@pytest.mark.changes_globals
@pytest.mark.filterwarnings("ignore:X .* feature names")  # the checks' own doing
@pytest.mark.parametrize("check", NOT_YIELDED, ids=lambda check: check.__name__)
def test_check_that_is_not_yielded(check):
    check("Imputer", Imputer())


@pytest.mark.parametrize(
    "given",
    [
        FactorAnalysis(2, "diagonal"),
        FactorizedVI(FactorAnalysis(2, "diagonal"), random_state=0),
        AmortizedVI(FactorAnalysis(2, "diagonal"), Polynomial(1), tol=1e-2, random_state=0),
        MixtureModel(2),
    ],
    ids=["model", "factorized", "amortized", "mixture"],
)
def test_it_fills_as_impute_does(given):
    imputer = Imputer(given, random_state=0)
    filled = imputer.fit_transform(HOLES)
    np.testing.assert_array_equal(filled, imputer.estimator_.impute(HOLES))
    seen = ~np.isnan(HOLES)
    np.testing.assert_array_equal(filled[seen], HOLES[seen])
    again = type(imputer.estimator_)(**imputer.estimator_.get_params(deep=False)).fit(HOLES)
    np.testing.assert_array_equal(filled, again.impute(HOLES))
    assert not hasattr(given, "elbo_")  # a clone was fitted


def test_the_default_knows_the_factors_whatever_the_units():
    gone, imputer = np.isnan(HOLES), Imputer(random_state=0).fit(HOLES)
    assert imputer.estimator_.model_.n_components == 2
    assert imputer.estimator_.model_.noise == "diagonal"
    error = np.abs(imputer.transform(HOLES) - WHOLE)
    by_means = np.abs(SimpleImputer().fit_transform(HOLES) - WHOLE)
    for column in range(5):  # two factors explain 99.7 % or so of each
        assert error[gone[:, column], column].mean() < by_means[gone[:, column], column].mean() / 3
    millimetres = Imputer(random_state=0).fit_transform(HOLES * 1000)
    # Both fits stop within 1e-4 nats a row of the optimum: 1 % of a predictive sd.
    np.testing.assert_allclose(millimetres / 1000, imputer.transform(HOLES), rtol=1e-2, atol=1e-2)


def test_new_rows_do_not_change_each_other():
    imputer = Imputer(FactorAnalysis(2), random_state=0).fit(HOLES[:60])
    together = imputer.transform(HOLES[60:])
    apart = np.vstack([imputer.transform(row[None]) for row in HOLES[60:]])
    np.testing.assert_allclose(together, apart, rtol=1e-9)


def test_frames_keep_names_and_index():
    imputer = Imputer(FactorAnalysis(2)).set_output(transform="pandas")
    frame = FRAME.set_index(np.arange(80) + 100)
    filled = imputer.fit_transform(frame)
    assert list(filled) == list("abcde") == list(imputer.get_feature_names_out())
    assert list(filled.index) == list(frame.index) and not filled.isna().any().any()


def test_columns_that_are_given_stay_in_their_places():
    table = FRAME.assign(school=[f"s{i % 8}" for i in range(80)], x=np.arange(80.0))
    model = MixedEffects("a", "school", fixed=["x"])
    filled = (
        Imputer(model).set_output(transform="pandas").fit_transform(table[["school", "x", "a"]])
    )
    assert list(filled) == ["school", "x", "a"]
    assert list(filled["school"]) == list(table["school"])
    assert not filled["a"].isna().any()


def test_it_serves_pipelines_and_searches():
    pipeline = make_pipeline(Imputer(FactorAnalysis()), LinearRegression())
    grid = {"imputer__estimator__n_components": [1, 2]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(HOLES, WHOLE[:, 0])
    assert search.best_params_ == {"imputer__estimator__n_components": 2}
    assert search.best_score_ > 0.95


def test_what_it_cannot_take_is_said():
    with pytest.raises(TypeError, match=r"estimator=the class FactorAnalysis: Imputer needs"):
        Imputer(FactorAnalysis).fit(HOLES)
    with pytest.raises(TypeError, match=r"estimator='mean': Imputer needs FactorizedVI\(...\)"):
        Imputer("mean").fit(HOLES)
    with pytest.raises(ValueError, match=r"TopicModel takes no missing cells\. Use FactorAnalysis"):
        Imputer(TopicModel(2)).fit(np.abs(HOLES))
    with pytest.raises(ValueError, match=r"X has 1 columns without"):
        Imputer(FactorAnalysis(1)).fit([[np.nan, 1.0], [np.nan, 2.0], [np.nan, 4.0]])


def test_its_fit_is_saved_alone(tmp_path):
    imputer = Imputer(FactorAnalysis(1), random_state=0).fit(HOLES)
    with pytest.raises(TypeError, match="of an Imputer its estimator_"):
        skavi.save(imputer, tmp_path / "fit.skavi")
    skavi.save(imputer.estimator_, tmp_path / "fit.skavi")
    loaded = skavi.load(tmp_path / "fit.skavi")
    np.testing.assert_array_equal(loaded.impute(HOLES), imputer.transform(HOLES))
