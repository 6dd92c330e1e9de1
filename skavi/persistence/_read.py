"""Estimators from plain data: only skavi's own classes are created, the user hands in all others.

Nothing is imported by a name in a tree, and no attribute can hide a method of a class.
"""

import inspect
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone

from skavi._component import Component
from skavi.inference_functions import TorchFunction
from skavi.persistence._write import (
    COMPONENTS,
    ESTIMATORS,
    HANDED_IN,
    ROLES,
    Node,
    Writer,
    class_name,
)
from skavi.posterior import GlobalPosterior
from skavi.posterior._correction import Correction

_OLD_FILE = "The fit is of an earlier version of skavi, which kept no linear response."


class HandedInError(ValueError):
    """An object that was handed in to `load` differs from the saved one."""


def rebuild(node: Node, arrays: dict[str, np.ndarray], given: dict[str, Any]) -> BaseEstimator:
    """Return the estimator of a tree; `given` has the objects that were handed in, by role."""
    reader = _Reader(arrays, given)
    estimator = reader.estimator(node)
    unused = [role for role in given if role not in reader.used]
    if unused:
        raise HandedInError(f"holds no {unused[0]} of yours: leave {unused[0]}= out.")
    return estimator


class _Reader:
    def __init__(self, arrays, given):
        self.arrays, self.given = arrays, given
        self.used: set[str] = set()
        self.role: str | None = None
        self.strict, self.depth = False, 0

    def value(self, node: Node):
        """Return the value of a node."""
        if isinstance(node, dict):
            return _look_up(_READERS, node["kind"])(self, node)
        if isinstance(node, list):
            raise ValueError("a bare list")
        return node

    def number(self, node):
        return float(_look_up({name: name for name in ("nan", "inf", "-inf")}, node["value"]))

    def array(self, node):
        stored = self.arrays[node["name"]]  # copied below: native byte order, writable
        return stored.astype(stored.dtype.newbyteorder("="), copy=True)

    def scalar(self, node):
        return self.array(node)[()]

    def tensor(self, node):
        return torch.from_numpy(self.array(node))

    def strings(self, node):
        if not all(type(value) is str for value in node["values"]):
            raise ValueError("strings that are none")
        return np.array(node["values"], dtype=object)

    def list_(self, node):
        return [self.value(item) for item in node["items"]]

    def tuple_(self, node):
        return tuple(self.list_(node))

    def dict_(self, node):
        return {self.value(key): self.value(item) for key, item in node["items"]}

    def device(self, node):
        return torch.device(node["value"])

    def random_state(self, node):
        state = np.random.RandomState(0)
        state.set_state(self.value(node["state"]))
        return state

    def estimator(self, node):
        cls = _look_up(ESTIMATORS, node["class"])
        outer = self.role, self.strict
        self.depth += 1
        # In `init`, and in fitted attributes, arguments may differ from those of the object that
        # was handed in: those of the file are used.
        parts: dict[str, dict[str, Any]] = {}
        for where in ("params", "attributes"):
            self.strict = where == "params" and self.depth == 1
            parts[where] = {}
            for name, value in node[where].items():
                self.role = name.removesuffix("_")
                parts[where][name] = self.value(value)
        self.depth -= 1
        self.role, self.strict = outer
        return _make_fitted(cls, **parts)

    def component(self, node):
        cls = _look_up(COMPONENTS, node["class"])
        params = {name: self.value(value) for name, value in node["params"].items()}
        given = self.given.get(self.role)
        if self.strict and given is not None and cls is not TorchFunction:
            self._check_handed(self._require_handed(self.role, node["class"], given), params)
        return _set_attributes(cls(**params), self._attributes(node))

    def given_component(self, node):
        """Return a copy of the object that was handed in, with the file's arguments and numbers."""
        role = node["role"]
        handed = self._require_handed(role, node["class"], self.given.get(role))
        stored = {n: value for n, value in node["params"].items() if value != HANDED_IN}
        params = {name: self.value(value) for name, value in stored.items()}
        if self.strict:
            self._check_handed(handed, params)
        return _set_attributes(clone(handed).set_params(**params), self._attributes(node))

    def _attributes(self, node):
        return {name: self.value(value) for name, value in node["attributes"].items()}

    def _require_handed(self, role, name, handed):
        if handed is None or type(handed).__name__ != name.rpartition(".")[2]:
            got = "none was" if handed is None else f"a {class_name(type(handed))} was"
            short = name.rpartition(".")[2]
            raise HandedInError(
                f"was saved with {role} = a {name}, but {got} handed in: nothing is imported from "
                f"a name inside a file, so call load(path, {role}={short}(...))."
            )
        self.used.add(role)
        return handed

    def _check_handed(self, handed, params):
        """Raise a HandedInError if an object has other arguments than the saved one."""
        for name, saved in params.items():
            value = getattr(handed, name)
            if not _are_same(saved, value):
                raise HandedInError(
                    f"was saved with {type(handed).__name__}({name}={saved!r}), but {name}="
                    f"{value!r} was handed in: {self.role} must have the same arguments."
                )

    def module(self, node):
        """Return a copy of the module that was handed in, with the file's weights."""
        handed = self.given.get("inference_function")
        handed = handed.module if type(handed) is TorchFunction else handed
        handed = self._require_handed("inference_function", node["class"], handed)
        module = clone(handed, safe=False)
        names = [[name, type(part).__name__] for name, part in module.named_modules()]
        state = {name: self.value(value) for name, value in node["state"].items()}
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        if names != [part[:2] for part in node["parts"]] or shapes != own:
            raise HandedInError(
                f"was saved with another {type(handed).__name__} than the inference_function that "
                f"was handed in: its layers are {node['parts']}, its weights {shapes}."
            )
        module.load_state_dict(state)
        for part, (_, _, training) in zip(module.modules(), node["parts"], strict=True):
            part.training = bool(training)
        return module


_READERS = {
    "float": _Reader.number,
    "array": _Reader.array,
    "scalar": _Reader.scalar,
    "tensor": _Reader.tensor,
    "strings": _Reader.strings,
    "list": _Reader.list_,
    "tuple": _Reader.tuple_,
    "dict": _Reader.dict_,
    "device": _Reader.device,
    "random_state": _Reader.random_state,
    "estimator": _Reader.estimator,
    "component": _Reader.component,
    "given": _Reader.given_component,
    "module": _Reader.module,
}


def _look_up(table, name):
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{name!r} is none of {sorted(table)}")
    return table[name]


def _are_same(one, other):
    """Say whether two arguments would be stored alike, to the last bit."""
    first, second = Writer(), Writer()
    try:
        nodes = first.node(one, ""), second.node(other, "")
    except TypeError:
        return False
    pairs = zip(first.arrays.values(), second.arrays.values(), strict=False)
    return nodes[0] == nodes[1] and all(
        a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
        for a, b in pairs
    )


def _set_attributes(owner, attributes):
    """Set plain attributes on an object; refuse names that would hide a method of its class."""
    for name in attributes:
        defined = inspect.getattr_static(type(owner), name, None)
        is_code = callable(defined) or hasattr(defined, "__get__")
        if not name.isidentifier() or name.startswith("__") or is_code:
            raise ValueError(f"{name!r} is no attribute of a {type(owner).__name__}")
    vars(owner).update(attributes)
    return owner


def _make_fitted(cls, params, attributes):
    """Return an estimator with its fitted attributes, whose types are checked."""
    estimator = _set_attributes(cls(**params), attributes)
    fitted = vars(estimator)
    for role in ROLES:
        if not isinstance(fitted[f"{role}_"], Component):
            raise ValueError(f"{role}_ is no component")
        fitted[f"{role}_"].check()
    n_features, raw = fitted["n_features_in_"], fitted["_raw_globals"]
    if type(n_features) is not int or not isinstance(raw, np.ndarray):
        raise ValueError("n_features_in_ or the globals are of another kind")
    estimator.global_posterior_ = GlobalPosterior(
        estimator.model_, estimator.global_family_, raw, n_features, _correction(fitted, raw)
    )
    return estimator


def _correction(fitted, raw):
    """Return what linear response gave, which files of older versions do not hold."""
    covariance = fitted.setdefault("_global_covariance", None)
    reason = fitted.setdefault("_corrected_reason", _OLD_FILE if covariance is None else None)
    if covariance is None and isinstance(reason, str):
        return Correction.without(reason)
    fine = isinstance(covariance, np.ndarray) and covariance.shape == (raw.size, raw.size)
    if not fine or reason is not None or not np.isfinite(covariance).all():
        raise ValueError("the covariance of the globals is of another kind")
    return Correction(covariance)
