"""Public docstrings follow numpydoc, and the reference pages name every public object."""

import importlib
import inspect
import pydoc
import re
from pathlib import Path

import pytest
from numpydoc.validate import validate

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
