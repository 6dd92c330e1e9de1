"""Parameters set after a fit are checked at the next call; errors speak public names."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from skavi import AmortizedVI, FactorizedVI
from skavi.families import DiagonalNormal, FullNormal
from skavi.inference_functions import MLP, Polynomial
from skavi.models import FactorAnalysis, LinearModel
from skavi.noise import MonteCarlo
from skavi.solvers import Adam

X = np.random.default_rng(0).normal(size=(40, 1)) @ np.ones((1, 3))
X += 0.3 * np.random.default_rng(1).normal(size=X.shape)
FIT = FactorizedVI(FactorAnalysis(1)).fit(X)


def refitted():
    return clone(FIT).fit(X)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"solver": "adam"}, r"Adam\(\), .*LBFGS\(\), .*Write solver=skavi.solvers.Adam\(\)"),
        ({"solver": "coordinate_ascent"}, r"Write solver=skavi.solvers.CoordinateAscent\(\)"),
        ({"solver": Adam}, r"Got the class Adam instead. Write solver=skavi.solvers.Adam\(\)"),
        ({"noise": MonteCarlo}, r"an object of skavi.noise .*Write noise=skavi.noise.MonteCarlo"),
        ({"model": FactorAnalysis}, r"an object of skavi.models .*FactorAnalysis\(\)"),
        ({"family": "full"}, r"\(.*FullNormal\(\).*\), or None. Got 'full' instead.$"),
        ({"output": "zzz"}, r'must be a str, "mean" or "mean_sd". Got \'zzz\' instead.'),
        ({"max_iter": 0}, r"must be an integer >= 1. Got 0 instead.$"),
    ],
)  # fmt: skip
def test_an_error_says_what_to_write(parameters, message):
    with pytest.raises(ValueError, match=message) as error:
        FactorizedVI().set_params(**parameters).fit(X)
    assert "._" not in str(error.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda vi: vi.transform(X),
        lambda vi: vi.score(X),
        lambda vi: vi.posterior(X),
        lambda vi: vi.impute(X),
        lambda vi: vi.get_feature_names_out(),
    ],
    ids=["transform", "score", "posterior", "impute", "names"],
)
@pytest.mark.parametrize("parameters", [{"output": "zzz"}, {"tol": -1.0}, {"solver": Adam}])
def test_a_parameter_set_after_the_fit_is_checked_at_the_next_call(call, parameters):
    with pytest.raises(ValueError, match=f"The '{next(iter(parameters))}' parameter"):
        call(refitted().set_params(**parameters))


def test_an_output_set_after_the_fit_is_given():
    vi = refitted().set_params(output="mean_sd")
    assert vi.transform(X).shape == (40, 2) and len(vi.get_feature_names_out()) == 2


@pytest.mark.parametrize(
    ("vi", "parameters", "message"),
    [
        (FIT, {"model__n_components": 2}, "model__n_components is 2, but was 1 in the fit that"),
        (FIT, {"model__noise": "diagonal"}, "model__noise is 'diagonal', but was 'isotropic'"),
        (FIT, {"model": LinearModel()}, "model is 'LinearModel', but was 'FactorAnalysis'"),
        (FIT, {"family": FullNormal()}, "family is 'FullNormal', but was 'DiagonalNormal'"),
        (FIT, {"global_family": FullNormal()}, "global_family is 'FullNormal', but was"),
        (
            AmortizedVI(FactorAnalysis(1), Polynomial(1)).fit(X),
            {"inference_function__degree": 2},
            "inference_function__degree is 2, but was 1",
        ),
        (
            AmortizedVI(FactorAnalysis(1), Polynomial(1)).fit(X),
            {"inference_function": MLP()},
            "inference_function is 'MLP', but was 'Polynomial'",
        ),
    ],
)
def test_partial_fit_refuses_components_that_are_not_the_fits(vi, parameters, message):
    vi = clone(vi).fit(X)
    before = vi.transform(X)
    function = vi.set_params(**parameters)
    with pytest.raises(ValueError, match=message):
        function.partial_fit(X)
    np.testing.assert_array_equal(vi.transform(X), before)


def test_partial_fit_goes_on_with_equal_components():
    vi = refitted().set_params(model=FactorAnalysis(1), family=DiagonalNormal())
    assert vi.partial_fit(X).elbo_ < FIT.elbo_


@pytest.mark.parametrize("columns", [2, 4])
def test_warm_start_with_other_columns_is_the_error_of_init(columns):
    other = np.tile(X[:, :1], (1, columns))
    vi = refitted().set_params(warm_start=True)
    before = vi.transform(X)
    with pytest.raises(
        ValueError, match=f"warm_start starts from a fit on 3 features, but X has {columns}"
    ):
        vi.fit(other)
    np.testing.assert_array_equal(vi.transform(X), before)  # nothing fitted is lost
    with pytest.raises(
        ValueError, match=f"init starts from a fit on 3 features, but X has {columns}"
    ):
        FactorizedVI(FactorAnalysis(1), init=FIT).fit(other)


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_impute_returns_the_frame_that_is_asked_for(container):
    holes = pd.DataFrame(X, columns=["a", "b", "c"], index=[f"row {i}" for i in range(40)])
    holes.iloc[3, 1] = np.nan
    vi = FactorizedVI(FactorAnalysis(1)).fit(holes)
    plain, plain_sd = vi.impute(holes, return_sd=True)
    assert isinstance(plain, np.ndarray)
    vi.set_output(transform=container)
    filled, sd = vi.impute(holes, return_sd=True)
    assert type(filled).__module__.partition(".")[0] == container
    assert list(filled.columns) == list(sd.columns) == ["a", "b", "c"]
    np.testing.assert_array_equal(filled.to_numpy(), plain)
    np.testing.assert_array_equal(sd.to_numpy(), plain_sd)
    if container == "pandas":
        assert filled.index.equals(holes.index)
    nameless = FactorizedVI(FactorAnalysis(1)).fit(X).set_output(transform=container)
    assert list(nameless.impute(X).columns) == ["x0", "x1", "x2"]
