"""scikit-learn's own checks: all of them pass, with no expected failures."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import estimator_checks_generator, parametrize_with_checks

from seeds import seeds
from skavi import AmortizedVI, FactorizedVI
from skavi.models import FactorAnalysis, MixtureModel

# A column's noise vanishes on these checks' data, which has no factors: a thousand sweeps a fit at
# the default tolerance, which they do not look at.
ESTIMATORS = [
    estimator(*model, **tol)
    for estimator in (FactorizedVI, AmortizedVI)
    for model, tol in (
        ((), {}),
        ((FactorAnalysis(),), {}),
        ((FactorAnalysis(noise="diagonal"),), {"tol": 1e-2}),
    )
]
ESTIMATORS += [FactorizedVI(MixtureModel(2), n_init=1, tol=1e-2)]

# What scikit-learn does not yield to estimators outside it (of its own test suite).
NOT_YIELDED = [
    estimator_checks.check_dataframe_column_names_consistency,
    estimator_checks.check_get_feature_names_out_error,
    estimator_checks.check_global_output_transform_pandas,
    estimator_checks.check_global_set_output_transform_polars,
    estimator_checks.check_inplace_ensure_writeable,
    estimator_checks.check_param_validation,
    estimator_checks.check_set_output_transform,
    estimator_checks.check_set_output_transform_pandas,
    estimator_checks.check_set_output_transform_polars,
    estimator_checks.check_transformer_get_feature_names_out,
    estimator_checks.check_transformer_get_feature_names_out_pandas,
]
INVARIANCES = [
    estimator_checks.check_fit_idempotent,
    estimator_checks.check_methods_sample_order_invariance,
    estimator_checks.check_methods_subset_invariance,
    estimator_checks.check_sample_weight_equivalence_on_dense_data,
    estimator_checks.check_transformer_general,
]


def _needs_array_api(check):
    return "array_api" in getattr(check, "func", check).__name__


@pytest.mark.changes_globals
@parametrize_with_checks(ESTIMATORS)
def test_check(estimator, check):
    if _needs_array_api(check):
        return  # it would skip: test_array_api_checks runs it where it can run
    check(estimator)


_ARRAY_API = """
import test_sklearn_checks as here
ran = [
    check(estimator) is None
    for estimator in here.ESTIMATORS
    for estimator, check in here.estimator_checks_generator(estimator)
    if here._needs_array_api(check)
]
assert len(ran) >= len(here.ESTIMATORS), ran
"""


def test_array_api_checks():
    # The variable counts only if it is there before scipy is imported.
    paths = [os.path.dirname(__file__), *sys.path]
    environment = os.environ | {"SCIPY_ARRAY_API": "1", "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", _ARRAY_API], env=environment, check=True)


def _name(value):
    return repr(value).replace("\n", "") if hasattr(value, "fit") else value.__name__


NIGHTLY = [  # what wraps their output is common to all
    pytest.param(clone(estimator), marks=pytest.mark.nightly)
    for estimator in ESTIMATORS
    if "FactorAnalysis" in repr(estimator)
]
QUICK = [e for e in ESTIMATORS if "FactorAnalysis" not in repr(e)]


@pytest.mark.changes_globals
@pytest.mark.filterwarnings("ignore:X .* feature names")  # the checks' own doing
@pytest.mark.parametrize("check", NOT_YIELDED, ids=_name)
@pytest.mark.parametrize("estimator", QUICK + NIGHTLY, ids=_name)
def test_check_that_is_not_yielded(estimator, check):
    check(type(estimator).__name__, clone(estimator))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=_name)
def test_partial_fit_is_absent_or_checked(estimator):
    if hasattr(estimator, "partial_fit"):
        estimator_checks.check_estimators_partial_fit_n_features(
            type(estimator).__name__, clone(estimator)
        )


class _Reseeded:
    """Stand in for an estimator's class so that `set_random_state` gives another seed."""

    def __init__(self, seed):
        self.seed = seed

    def __call__(self, estimator, random_state=0):
        estimator.set_params(random_state=self.seed)


@pytest.mark.slow
@pytest.mark.changes_globals
@pytest.mark.parametrize("seed", seeds(2, 1, 3))
@pytest.mark.parametrize("check", INVARIANCES, ids=_name)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=_name)
def test_invariance_at_other_seeds(estimator, check, seed, monkeypatch):
    monkeypatch.setattr(estimator_checks, "set_random_state", _Reseeded(seed))
    check(type(estimator).__name__, clone(estimator))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=_name)
def test_nothing_is_excused_by_a_tag(estimator):
    tags = estimator.__sklearn_tags__()
    assert not tags.non_deterministic
    assert not tags.no_validation
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32"]
    checks = [check for _, check in estimator_checks_generator(estimator)]
    assert len(checks) >= 53  # as scikit-learn 1.9 has for a weighted transformer that takes NaN


def _process_state():
    return [
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),  # noqa: NPY002
        torch.get_rng_state().tolist(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    ]


X = np.random.default_rng(0).normal(size=(20, 3)) @ np.ones((3, 4))
CALLS = {
    "fit": lambda vi: clone(vi).fit(X),
    "transform": lambda vi: vi.transform(X),
    "posterior": lambda vi: vi.posterior(X).sample(3, random_state=0),
    "global_posterior_": lambda vi: vi.global_posterior_.sample(3, random_state=0),
    "score": lambda vi: vi.score(X),
    "score_samples": lambda vi: vi.score_samples(X),
    "sample": lambda vi: vi.sample(3, random_state=0),
    "inverse_transform": lambda vi: vi.inverse_transform(vi.transform(X)),
}
FAILING_CALLS = {
    "fit": lambda vi: clone(vi).fit(X, sample_weight=np.zeros(len(X))),
    "transform": lambda vi: vi.transform(X[:, :2]),
    "posterior": lambda vi: vi.posterior(X * np.inf),
    "score": lambda vi: vi.score([["a"] * 4]),
    "score_samples": lambda vi: vi.score_samples(X[:, :2]),
    "sample": lambda vi: vi.sample(0),
    "inverse_transform": lambda vi: vi.inverse_transform(np.ones((2, 7))),
}


@pytest.fixture(params=ESTIMATORS, ids=_name)
def fitted(request):
    return clone(request.param).set_params(random_state=0).fit(X)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_calls_leave_the_process_as_it_was(fitted, two_threads, grad):
    with torch.set_grad_enabled(grad):
        for name, call in CALLS.items():
            before = _process_state()
            call(fitted)
            assert _process_state() == before, name


def test_failing_calls_leave_the_process_as_it_was(fitted, two_threads):
    for name, call in FAILING_CALLS.items():
        before = _process_state()
        with pytest.raises(ValueError):
            call(fitted)
        assert _process_state() == before, name
