"""The page about a fit says what the fit says, in a terminal and in a notebook."""

import re

import numpy as np
import pandas as pd
import pytest

import skavi
from skavi import AmortizedVI, FactorizedVI
from skavi.models import FactorAnalysis, LinearModel, LocalLevel, RandomEffects

X = np.random.default_rng(0).normal(size=(60, 1)) @ [[1.0, 2.0, -1.0]]
X += 0.3 * np.random.default_rng(1).normal(size=X.shape)
FRAME = pd.DataFrame(X, columns=["age", "height", "weight"])


@pytest.fixture(scope="module")
def fitted():
    return FactorizedVI(FactorAnalysis(1), random_state=0).fit(FRAME)


def test_the_page_has_the_fits_own_numbers(fitted):
    page = fitted.summary()
    assert page.title == "FactorizedVI: FactorAnalysis(n_components=1)"
    facts = dict(page.facts)
    assert facts["rows"] == "60" and facts["columns"] == "3" and facts["latents"] == "1 a row"
    assert float(facts["ELBO"].split()[0]) == pytest.approx(fitted.elbo_, abs=1e-4)
    assert f"({fitted.elbo_ / 60:.4g} a row)" in facts["ELBO"]
    assert facts["converged"].startswith(f"yes, {fitted.suboptimality_:.2g} nats below")
    assert facts["iterations"] == str(fitted.n_iter_)
    assert facts["solver chosen"] == repr(fitted.solver_)
    names = [name for name, *_ in page.numbers]
    assert "loadings[height, factor0]" in names and "mean[weight]" in names
    at = names.index("loadings[height, factor0]")
    expected = [fitted.global_posterior_.mean["loadings"][1, 0]]
    expected += [fitted.global_posterior_.sd["loadings"][1, 0]]
    expected += [fitted.global_posterior_.corrected_sd["loadings"][1, 0]]
    expected += [q["loadings"][1, 0] for q in [_quantiles(fitted, p) for p in (0.05, 0.5, 0.95)]]
    assert page.numbers[at][1:] == pytest.approx(expected, rel=1e-12)
    for text in (str(page), page._repr_html_()):
        assert "loadings[height, factor0]" in text and f"{expected[0]:.4g}" in text
    assert fitted.global_posterior_.note in page.notes
    assert "The quantiles and corrected_sd are by linear response; sd is that of q." in page.notes


def _quantiles(fitted, q):
    return fitted.global_posterior_.quantile(q, corrected=True)


def test_long_tables_are_cut_and_said_so(fitted):
    page = fitted.summary(n_numbers=2)
    assert len(page.numbers) == 2 and page.n_numbers == 7
    said = "2 of 7 numbers: summary(n_numbers=None) has all."
    assert said in str(page) and said in page._repr_html_()
    assert len(fitted.summary(n_numbers=None).numbers) == 7
    with pytest.raises(ValueError, match=r"n_numbers=0 must be None or an integer >= 1"):
        fitted.summary(n_numbers=0)


def test_a_page_too_short_for_all_has_numbers_of_every_global(fitted):
    """Of 1 noise variance, 3 loadings and 3 means, five leave two for each of the larger ones."""
    labels = [name for name, *_ in fitted.summary(n_numbers=5).numbers]
    assert [label.partition("[")[0] for label in labels] == [
        "noise_variance",
        *2 * ["loadings"],
        *2 * ["mean"],
    ]
    whole = [name for name, *_ in fitted.summary(n_numbers=None).numbers]
    assert labels == [*whole[:3], *whole[4:6]]


def test_what_was_given_is_not_called_chosen():
    given = FactorizedVI(FactorAnalysis(1), solver=skavi.solvers.CoordinateAscent()).fit(X)
    facts = dict(given.summary().facts)
    assert "solver chosen" not in facts and "model chosen" not in facts
    facts = dict(AmortizedVI(random_state=0).fit(X).summary().facts)
    assert facts["model chosen"] == "FactorAnalysis(n_components=1)"
    assert facts["inference_function chosen"].startswith("MLP(")


@pytest.mark.filterwarnings("ignore:.*did not converge")
def test_a_fit_that_has_not_converged_says_so():
    short = FactorizedVI(FactorAnalysis(1), max_iter=1).fit(X)
    state = dict(short.summary().facts)["converged"]
    assert re.match(r"no, (\S+ nats|an unknown distance) below the optimum", state)
    assert state in short._repr_html_()
    assert "No corrected sds, and quantiles of q itself: The fit did not" in str(short.summary())
    short.suboptimality_ = np.inf
    assert "inf" not in dict(short.summary().facts)["converged"]


def test_rows_count_those_of_all_calls_and_survive_saving(tmp_path):
    vi = FactorizedVI(LinearModel())
    for part in np.array_split(np.arange(9.0)[:, None], 3):
        vi.partial_fit(part)
    assert dict(vi.summary().facts)["rows"] == "9"
    path = tmp_path / "fit.skavi"
    skavi.save(vi, path)
    assert str(skavi.load(path).summary()) == str(vi.summary())
    del vi.n_samples_fit_  # as in files of earlier versions
    assert dict(vi.summary().facts)["rows"] == "not kept"


def test_equal_rows_are_counted_each():
    assert FactorizedVI(LinearModel()).fit(np.ones((30, 1))).n_samples_fit_ == 30


def test_a_fitted_repr_in_a_notebook_shows_the_state(fitted):
    html = fitted._repr_html_()
    assert dict(fitted.summary().facts)["converged"] in html
    assert "skavi-result" not in FactorizedVI()._repr_html_()


def test_a_model_without_globals_has_a_page():
    flat = LocalLevel(level_sd=1.0, noise_sd=1.0)
    assert "The model has no globals." in str(FactorizedVI(flat).fit(X[:9, :1]).summary())


# --- globals under the names of columns -----------------------------------------------------------


def test_globals_are_labelled_by_columns_and_latents(fitted):
    posterior = fitted.global_posterior_
    assert list(posterior.to_frame("mean").index) == ["age", "height", "weight"]
    loadings = posterior.to_frame("loadings")
    assert list(loadings.index.names) == ["feature", "latent"]
    np.testing.assert_array_equal(loadings["mean"].unstack(), posterior.mean["loadings"])
    assert list(posterior.to_frame("noise_variance").index) == ["noise_variance"]
    whole = posterior.to_frame()
    summary = posterior.summary()
    np.testing.assert_array_equal(whole.to_numpy(), summary.iloc[:, 2:].to_numpy())
    assert ("height", "factor0") in list(summary["index"])
    with pytest.raises(ValueError, match=r"name='load': the globals are noise_variance, loadings"):
        posterior.to_frame("load")


def test_columns_that_are_given_have_no_row():
    model = FactorAnalysis(1, covariates="age")
    posterior = FactorizedVI(model, random_state=0).fit(FRAME).global_posterior_
    assert list(posterior.to_frame("mean").index) == ["height", "weight"]
    assert list(posterior.to_frame("coefficients").index) == [("height", "age"), ("weight", "age")]


def test_names_survive_saving_and_arrays_are_counted(fitted, tmp_path):
    skavi.save(fitted, tmp_path / "fit.skavi")
    loaded = skavi.load(tmp_path / "fit.skavi").global_posterior_.to_frame()
    pd.testing.assert_frame_equal(loaded, fitted.global_posterior_.to_frame())
    bare = FactorizedVI(FactorAnalysis(1), random_state=0).fit(X).global_posterior_
    assert list(bare.to_frame("mean").index) == [0, 1, 2]


def test_globals_to_arviz_have_names_and_the_same_draws(fitted):
    tree = fitted.global_posterior_.to_arviz(n_draws=7, random_state=3)["posterior"]
    draws = fitted.global_posterior_.sample(7, random_state=3)
    assert set(tree.data_vars) == set(draws)
    assert list(tree["loadings"].coords["feature"].values) == ["age", "height", "weight"]
    height = tree["loadings"].sel(feature="height", latent="factor0").values[0]
    np.testing.assert_array_equal(height, draws["loadings"][:, 1, 0])
    corrected = fitted.global_posterior_.to_arviz(7, 3, corrected=True)["posterior"]
    expected = fitted.global_posterior_.sample(7, 3, corrected=True)["mean"]
    np.testing.assert_array_equal(corrected["mean"].values[0], expected)


def test_models_have_words_for_their_latents():
    assert list(FactorizedVI(FactorAnalysis(2)).fit(X).get_feature_names_out()) == [
        "factor0",
        "factor1",
    ]
    both = FactorizedVI(FactorAnalysis(1), output="mean_sd").fit(X)
    assert list(both.get_feature_names_out()) == ["factor0", "factor0_sd"]
    schools = FactorizedVI(RandomEffects()).fit([[1.0, 1.0], [2.0, 1.0], [3.0, 2.0]])
    assert list(schools.get_feature_names_out()) == ["effect"]
