"""Public docstrings follow numpydoc, and the reference pages name every public object."""

import importlib
import inspect
import pydoc
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpydoc.validate import validate
from sklearn.exceptions import ConvergenceWarning

from skavi import FactorizedVI, models

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
MODULES = [
    "skavi",
    "skavi.callbacks",
    "skavi.diagnostics",
    "skavi.displays",
    "skavi.distributed",
    "skavi.distributions",
    "skavi.families",
    "skavi.inference_functions",
    "skavi.models",
    "skavi.noise",
    "skavi.persistence",
    "skavi.posterior",
    "skavi.solvers",
]
#: What numpydoc must not find. Left out are rules of layout (GL01-03, GL07), references (SA),
#: capitals where a formula comes first (SS02, RT04), the names of returned values (RT02: fit has
#: "self : object", as scikit-learn does), and PR01 and PR02 where a base class documents them.
CHECKS = {
    "GL06": "an unknown section",
    "GL08": "no docstring",
    "GL10": "a bad directive",
    "SS01": "no summary",
    "SS03": "a summary without a full stop",
    "SS04": "leading spaces",
    "SS06": "a summary of several lines",
    "PR04": "a parameter without a type",
    "PR05": "a type with a full stop",
    "PR06": "a type with a wrong name",
    "PR08": "a description that does not start with a capital letter",
    "PR10": "no space before the colon",
    "YD01": "no yields section",
}


def public(module):
    """Return the public classes and functions of a module by full name."""
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None) or [
        name
        for name, value in vars(loaded).items()
        if inspect.isclass(value)
        and value.__module__ == module
        and not name.startswith("_")
        and value.__doc__
    ]
    return {f"{module}.{name}" for name in names if not name.startswith("_")}


def callables():
    """Return every public class and function, and the public methods they define themselves."""
    found = []
    for name in sorted(set().union(*map(public, MODULES))):
        module, _, attribute = name.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
        if not inspect.isclass(value) and not inspect.isfunction(value):
            continue
        found.append(name)
        if inspect.isclass(value):
            own = {n: v for n, v in vars(value).items() if inspect.isfunction(v) and v.__doc__}
            found += [f"{name}.{n}" for n in own if not n.startswith("_")]
    return found


@pytest.mark.parametrize("name", callables())
def test_docstring_is_numpydoc(name):
    faults = [f"{code}: {text}" for code, text in validate(name)["errors"] if code in CHECKS]
    assert not faults


def test_every_public_name_has_an_example():
    """The examples run as doctests: setup.cfg collects those of every module."""
    names = [name for name in callables() if name.rpartition(".")[0] in MODULES]
    assert len(names) > 50
    assert not [name for name in names if ">>>" not in pydoc.locate(name).__doc__]


def test_estimators_methods_are_numpydoc():
    for kind in ("FactorizedVI", "AmortizedVI"):
        for method in ("fit", "transform", "posterior", "score", "impute", "sample", "to_arviz"):
            found = validate(f"skavi.{kind}.{method}")["errors"]
            assert not [fault for fault in found if fault[0] in {*CHECKS, "PR01", "PR02"}]


TABLE = np.random.default_rng(0).poisson(3.0, size=(12, 3)).astype(float)
GROUPED = np.column_stack([TABLE, np.repeat([0.0, 1.0, 2.0], 4)])
#: Each model that can be fitted as it is, and rows of its kind.
FITTED = [
    (models.FactorAnalysis(1), TABLE),
    (models.FactorAnalysis(1, likelihood="student_t", covariates=[2]), TABLE),
    (models.FactorAnalysis(1, likelihood="negative_binomial"), TABLE),
    (models.BayesianDecoder(1, (2,)), TABLE),
    (models.TopicModel(2), TABLE),
    (models.MixtureModel(2), TABLE),
    (models.MixtureModel(2, covariance="tied"), TABLE),
    (models.HiddenMarkovModel(2), TABLE),
    (models.MixedEffects(0, 3, fixed=[1], random=[2], centred=True), GROUPED),
    (models.RandomEffects(covariates=[2]), 1.0 + TABLE),
    (models.LocalLevel(), TABLE[:, :1]),
    (models.GaussianProcess(), GROUPED[:, [3, 0]] + np.linspace(0.0, 1.0, 12)[:, None]),
    (models.LinearModel(), TABLE[:, :1]),
    (models.NonlinearModel(), TABLE[:, :1]),
    (models.SawTimeSeries(), TABLE[:, :1]),
]


@pytest.mark.parametrize(("model", "X"), FITTED, ids=lambda value: type(value).__name__)
def test_a_models_docstring_names_what_is_read_from_a_fit(model, X):
    """Every global by its name in quotes (of a decoder's layers the first), and `transform`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit = FactorizedVI(model, max_iter=2, random_state=0).fit(X)
    names = {re.sub(r"_\d+$", "_0", name) for name in fit.global_posterior_.mean}
    text = type(model).__doc__.partition("Examples\n")[0]
    assert not [name for name in sorted(names) if f'"{name}"' not in text]
    assert "`transform`" in text


def test_every_model_that_can_be_fitted_is_among_them():
    kinds = {getattr(models, name) for name in models.__all__}
    shipped = {kind for kind in kinds if issubclass(kind, models.LatentVariableModel)}
    assert {kind for kind in shipped if not inspect.isabstract(kind)} == {
        type(model) for model, _ in FITTED
    }


def badly_documented(x):
    """does something with x"""
    return x


def test_the_validator_finds_faults():
    found = {code for code, _ in validate("test_docstrings.badly_documented")["errors"]}
    assert "SS03" in found & set(CHECKS)


def test_reference_names_every_public_object():
    text = "\n".join(path.read_text() for path in sorted(REFERENCE.glob("*.rst")))
    listed = set(re.findall(r"^   (\w+)$", text, re.MULTILINE))
    for module in (
        "skavi",
        "skavi.callbacks",
        "skavi.diagnostics",
        "skavi.displays",
        "skavi.distributed",
        "skavi.models",
        "skavi.persistence",
    ):
        missing = {name.rpartition(".")[2] for name in public(module)} - listed
        assert not missing, f"{module}: {missing} are in no page of docs/reference"
