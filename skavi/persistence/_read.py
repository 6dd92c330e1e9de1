"""Estimators from plain data: only skavi's own classes are created, the user hands in all others.

Nothing is imported by a name in a tree, and no attribute can hide a method of a class.
"""

import math
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone

from skavi._component import Component
from skavi._data.column_roles import ColumnRoles
from skavi._numerics.whole_numbers import is_whole
from skavi.inference_functions import TorchFunction
from skavi.persistence._contents import check_contents, check_name
from skavi.persistence._write import (
    COMPONENTS,
    ESTIMATORS,
    HANDED_IN,
    SCHEDULES,
    Node,
    Writer,
    class_name,
    is_own,
)
from skavi.posterior import GlobalPosterior
from skavi.posterior._correction import Correction

#: Words of a Mersenne twister; integers of a file fit into 64 bits, as numpy's and torch's do.
_WORDS, _INTEGERS = 624, 1 << 63
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
            keys, read = _look_up(_READERS, node.get("kind"))
            if set(node) != {"kind", *keys}:
                raise ValueError(f"a {node['kind']} with {sorted(node)}")
            return read(self, node)
        if isinstance(node, list):
            raise ValueError("a bare list")
        if isinstance(node, str):
            node.encode()  # half a character could not be printed
        if isinstance(node, int) and not -_INTEGERS <= node < _INTEGERS:
            raise ValueError("an integer of more than 64 bits")
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
        if not all(type(value) is str for value in _items(node["values"])):
            raise ValueError("strings that are none")
        return np.array([self.value(value) for value in node["values"]], dtype=object)

    def list_(self, node):
        return [self.value(item) for item in _items(node["items"])]

    def tuple_(self, node):
        return tuple(self.list_(node))

    def dict_(self, node):
        items = {self.value(key): self.value(item) for key, item in _items(node["items"])}
        if len(items) < len(node["items"]):
            raise ValueError("one key twice")
        return items

    def columns(self, node):
        return ColumnRoles.from_plain(self.value(node["value"]))

    def schedule(self, node):
        return _look_up(SCHEDULES, node["name"])

    def device(self, node):
        return torch.device(node["value"])

    def random_state(self, node):
        stored = self.value(node["state"])
        _check_state(**stored)
        state = np.random.RandomState(0)
        state.set_state(stored)
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
        return _make_fitted(cls, **parts, handed=set(self.given))

    def component(self, node):
        cls = _look_up(COMPONENTS, node["class"])
        params = {name: self.value(value) for name, value in node["params"].items()}
        given = self.given.get(self.role)
        if self.strict and given is not None and cls is not TorchFunction:
            self._check_handed(self._require_handed(self.role, node["class"], given), params)
        return _set_attributes(_called(cls, params), self._attributes(node))

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


def _items(value):
    """Return what must be a list: a dict or a text would be read as its names or letters."""
    if not isinstance(value, list):
        raise ValueError(f"items that are a {type(value).__name__}, not a list")
    return value


#: The keys of each kind of node beside its kind, and what reads it.
_READERS = {
    "float": (("value",), _Reader.number),
    "array": (("name",), _Reader.array),
    "scalar": (("name",), _Reader.scalar),
    "tensor": (("name",), _Reader.tensor),
    "strings": (("values",), _Reader.strings),
    "list": (("items",), _Reader.list_),
    "tuple": (("items",), _Reader.tuple_),
    "dict": (("items",), _Reader.dict_),
    "columns": (("value",), _Reader.columns),
    "device": (("value",), _Reader.device),
    "schedule": (("name",), _Reader.schedule),
    "random_state": (("state",), _Reader.random_state),
    "estimator": (("class", "params", "attributes"), _Reader.estimator),
    "component": (("class", "params", "attributes"), _Reader.component),
    "given": (("class", "params", "attributes", "role"), _Reader.given_component),
    "module": (("class", "parts", "state"), _Reader.module),
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


def _called(cls, params):
    """Return an object of a class; refuse what are none of its arguments."""
    unknown = params.keys() - cls._get_param_names()
    if unknown:
        raise ValueError(f"a {cls.__name__} has no {min(unknown)!r}")
    return cls(**params)


def _set_attributes(owner, attributes):
    """Set what a fit leaves on an object, and nothing else."""
    own = not isinstance(owner, Component) or is_own(owner)
    for name in attributes:
        check_name(owner, name, own)
    vars(owner).update(attributes)
    return owner


def _check_state(bit_generator, state, has_gauss, gauss):
    """Refuse a state that no Mersenne twister is ever in: numpy would read beyond its words."""
    key, pos = state["key"], state["pos"]
    fine = (
        bit_generator == "MT19937"
        and state.keys() == {"key", "pos"}
        and isinstance(key, np.ndarray)
        and (key.dtype, key.shape) == (np.uint32, (_WORDS,))
        # Of the first word only the highest bit counts; zeros would follow zeros for ever.
        and bool(key[1:].any() or key[0] >> 31)
        and is_whole(pos, 0)
        and pos <= _WORDS
        and is_whole(has_gauss, 0)
        and has_gauss <= 1
        and isinstance(gauss, float)
        and math.isfinite(gauss)
    )
    if not fine:
        raise ValueError("the state of a generator that numpy never is in")


def _make_fitted(cls, params, attributes, handed):
    """Return an estimator with its fitted attributes, after all of them were checked."""
    estimator = _set_attributes(_called(cls, params), attributes)
    fitted = vars(estimator)
    fitted.setdefault("starts_", np.empty(0))
    fitted.setdefault("tol_", estimator.tol)  # files of older versions hold none
    with np.errstate(all="ignore"):
        check_contents(estimator, is_own, handed)
    raw, n_features = estimator._raw_globals, estimator._row_width
    names = fitted.get("feature_names_in_")
    estimator.global_posterior_ = GlobalPosterior(
        estimator.model_, estimator.global_family_, raw, n_features, _correction(fitted), names
    )
    return estimator


def _correction(fitted):
    """Return what linear response gave, which files of older versions do not hold."""
    covariance = fitted.setdefault("_global_covariance", None)
    reason = fitted.setdefault("_corrected_reason", _OLD_FILE if covariance is None else None)
    if covariance is None and reason is None:
        raise ValueError("neither a covariance of the globals nor why there is none")
    return Correction(covariance, reason)
