"""Warnings point at the line that the user wrote, whatever lies between it and their cause."""

import inspect
import pickle
from functools import partial

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from skavi import AmortizedVI, FactorizedVI, amortization_gap
from skavi._estimators import base
from skavi._fit import fitted_model
from skavi.diagnostics import linear_response
from skavi.models import LinearModel
from skavi.persistence import SavedVersionWarning
from skavi.solvers import LBFGS

X = np.random.default_rng(0).normal(3.0, 1.5, size=(40, 1))
SHORT = FactorizedVI(LinearModel(), solver=LBFGS(), max_iter=1, random_state=0)


def assert_points_here(category, call):
    """Call, and compare where every warning points with the line of the call; no frame between."""
    with pytest.warns(category) as caught:
        line = inspect.currentframe().f_lineno + 1
        call()
    assert {(w.filename, w.lineno, w.category) for w in caught} == {(__file__, line, category)}


@pytest.mark.parametrize(
    "call",
    [
        partial(clone(SHORT).fit, X),
        partial(clone(SHORT).fit_transform, X),
        partial(clone(SHORT).set_output(transform="pandas").fit_transform, X),
        partial(clone(SHORT).partial_fit, X),
        partial(make_pipeline(clone(SHORT)).fit, X),
        partial(GridSearchCV(clone(SHORT), {"model__tau": [1.0]}, cv=2).fit, X),
    ],
)
def test_a_fit_that_does_not_converge(call):
    assert_points_here(ConvergenceWarning, call)


def test_a_later_partial_fit_that_does_not_converge():
    vi = FactorizedVI(LinearModel(), solver=LBFGS(), random_state=0).partial_fit(X)
    vi.max_iter = 1
    assert_points_here(ConvergenceWarning, partial(vi.partial_fit, X + 50.0))


@pytest.mark.parametrize("method", ["transform", "posterior", "score", "score_samples", "pandas"])
def test_rows_whose_local_problems_do_not_converge(method, monkeypatch):
    vi = FactorizedVI(LinearModel(), random_state=0).fit(X)
    solve_rows = fitted_model.solve_rows
    monkeypatch.setattr(fitted_model, "solve_rows", lambda *a: (solve_rows(*a)[0], False))
    if method == "pandas":
        method = "transform"
        vi.set_output(transform="pandas")
    assert_points_here(ConvergenceWarning, partial(getattr(vi, method), X))


@pytest.mark.filterwarnings("ignore:FactorizedVI did not converge")
def test_diagnostics_of_a_fit_that_did_not_converge():
    vi = clone(SHORT).fit(X)
    assert_points_here(ConvergenceWarning, partial(linear_response, vi, X))
    amortized = AmortizedVI(LinearModel(), solver=LBFGS(), random_state=0).fit(X)
    amortized.max_iter = 1
    assert_points_here(ConvergenceWarning, partial(amortization_gap, amortized, X))


def test_a_pickle_of_another_version(tmp_path, monkeypatch):
    vi = FactorizedVI(LinearModel(), random_state=0).fit(X)
    monkeypatch.setattr(base, "__version__", "0.0.1")
    joblib.dump(vi, tmp_path / "vi")
    dumped = pickle.dumps(vi)
    monkeypatch.undo()
    assert_points_here(SavedVersionWarning, partial(pickle.loads, dumped))
    assert_points_here(SavedVersionWarning, partial(joblib.load, tmp_path / "vi"))
