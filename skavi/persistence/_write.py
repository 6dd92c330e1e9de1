"""Estimators as plain data: a JSON tree of known kinds of nodes, and arrays.

skavi's own classes are stored by their public names. Other classes (a user's model, a torch module)
are named, too, so that a reader can ask for an object; their code is never written.
"""

import inspect
import math
from functools import singledispatchmethod
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

from skavi import families, inference_functions, models, noise, solvers
from skavi._component import Component
from skavi._data.column_roles import ColumnRoles
from skavi._estimators.amortized import AmortizedVI
from skavi._estimators.factorized import FactorizedVI
from skavi._fit.defaults import falling
from skavi.inference_functions import TorchFunction
from skavi.persistence._contents import ROLES, check_contents, check_name

Node = Any
"""A JSON value: None, a bool, a number or a string, or a dict with a "kind" for other values."""

ESTIMATORS = {cls.__name__: cls for cls in (FactorizedVI, AmortizedVI)}
# Callbacks belong to the session; the posterior of the globals is rebuilt from raw parameters.
_NOT_SAVED = {"_skl_callbacks", "_parent_callback_ctx", "global_posterior_"}
_NUMBERS = "biuf"
HANDED_IN = {"kind": "handed in"}


def _components_of(module: ModuleType) -> dict[str, type[Component]]:
    return {
        f"{module.__name__}.{name}": cls
        for name, cls in vars(module).items()
        if inspect.isclass(cls)
        and issubclass(cls, Component)
        and cls.__module__.startswith(module.__name__)
        and not name.startswith("_")
        and not _is_abstract(cls)
    }


def _is_abstract(cls: type) -> bool:
    return any(
        getattr(inspect.getattr_static(cls, name), "__isabstractmethod__", False)
        for name in dir(cls)
    )


COMPONENTS = {
    name: cls
    for module in (models, families, inference_functions, noise, solvers)
    for name, cls in _components_of(module).items()
}
"""The only component classes that `load` creates, by public name."""

SCHEDULES = {"falling": falling}
"""Functions of skavi's that its own solvers carry, by name."""

_NAMES = {cls: name for name, cls in COMPONENTS.items()}


def describe(estimator: BaseEstimator) -> tuple[Node, dict[str, np.ndarray], dict[str, str]]:
    """Return an estimator as a tree, its arrays, and the classes to hand in, by role."""
    each = estimator
    while each is not None:
        check_contents(each, is_own, set(ROLES))  # what the user has chosen, the user vouches for
        each = each.init
    writer = Writer()
    return writer.node(estimator, type(estimator).__name__), writer.arrays, writer.needs


def is_own(component: Component) -> bool:
    """Say whether a component is of one of skavi's classes, which `load` creates."""
    return type(component) in _NAMES


def class_name(cls: type) -> str:
    """Return the import path of a class; skavi's own by their public names."""
    return _NAMES.get(cls, f"{cls.__module__}.{cls.__qualname__}")


class Writer:
    def __init__(self):
        self.arrays: dict[str, np.ndarray] = {}
        self.needs: dict[str, str] = {}
        self.role: str | None = None

    @singledispatchmethod
    def node(self, value, where: str) -> Node:
        """Return the node for `value`; `where` names it in errors."""
        _refuse(value, where)

    @node.register(type(None))
    @node.register(bool)
    @node.register(int)
    @node.register(str)
    def _(self, value, where):
        return value

    @node.register
    def _(self, value: float, where):
        return value if math.isfinite(value) else {"kind": "float", "value": str(value)}

    @node.register
    def _(self, value: np.generic, where):
        return self._array("scalar", np.asarray(value), where)

    @node.register
    def _(self, value: np.ndarray, where):
        if value.dtype.kind == "O" and value.ndim == 1 and all(type(v) is str for v in value):
            return {"kind": "strings", "values": value.tolist()}
        return self._array("array", value, where)

    @node.register
    def _(self, value: torch.Tensor, where):
        if value.layout != torch.strided or value.dtype == torch.bfloat16:
            raise TypeError(
                f"{where} is a {value.layout} {value.dtype} tensor: save dense numbers."
            )
        return self._array("tensor", value.detach().cpu().numpy(), where)

    def _array(self, kind, value, where):
        if value.dtype.kind not in _NUMBERS or value.dtype.itemsize > 8:
            raise TypeError(f"{where} has dtype {value.dtype}: arrays must hold numbers.")
        name = f"a{len(self.arrays)}"
        self.arrays[name] = np.array(value, dtype=value.dtype.newbyteorder("<"), order="C")
        return {"kind": kind, "name": name}

    @node.register(list)
    @node.register(tuple)
    def _(self, value, where):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {"kind": kind, "items": [self.node(v, f"{where}[{i}]") for i, v in enumerate(value)]}

    @node.register
    def _(self, value: dict, where):
        items = [[self.node(k, where), self.node(v, f"{where}[{k!r}]")] for k, v in value.items()]
        return {"kind": "dict", "items": items}

    @node.register
    def _(self, value: ColumnRoles, where):
        return {"kind": "columns", "value": self.node(value.to_plain(), where)}

    @node.register
    def _(self, value: FunctionType, where):
        name = next((name for name, known in SCHEDULES.items() if known is value), None)
        return {"kind": "schedule", "name": name} if name else _refuse(value, where)

    @node.register
    def _(self, value: torch.device, where):
        return {"kind": "device", "value": str(value)}

    @node.register
    def _(self, value: np.random.RandomState, where):
        state = value.get_state(legacy=False)
        if state["bit_generator"] != "MT19937":
            raise TypeError(
                f"{where} runs {state['bit_generator']}: save needs a RandomState of MT19937."
            )
        return {"kind": "random_state", "state": self.node(state, where)}

    @node.register
    def _(self, value: BaseEstimator, where):
        if type(value) not in ESTIMATORS.values():
            _refuse(value, where)
        params = value.get_params(deep=False)
        kept = {k: v for k, v in vars(value).items() if k not in params and k not in _NOT_SAVED}
        for name in kept:
            check_name(value, name, own=True)
        return {
            "kind": "estimator",
            "class": type(value).__name__,
            "params": {n: self._of_role(v, n, where) for n, v in params.items()},
            "attributes": {n: self._of_role(v, n, where) for n, v in kept.items()},
        }

    def _of_role(self, value, name, where):
        before = self.role
        self.role = name.removesuffix("_")
        node = self.node(value, f"{where}.{name}")
        self.role = before
        return node

    @node.register
    def _(self, value: Component, where):
        role, own = self.role, type(value) in _NAMES
        if not own:
            self._need(type(value), where)
        # Only the object of a role, or the module of a TorchFunction, can be handed in.
        self.role = role if type(value) is TorchFunction else None
        arguments = value.get_params(deep=False)
        params = {n: self._argument(v, f"{where}.{n}") for n, v in arguments.items()}
        kept = {n: v for n, v in vars(value).items() if n not in arguments}
        for name in kept:
            check_name(value, name, own)
        attributes = {n: self.node(v, f"{where}.{n}") for n, v in kept.items()}
        self.role = role
        if own and HANDED_IN in params.values():
            self._need(type(value), where)
            own = False
        parts = {"class": class_name(type(value)), "params": params, "attributes": attributes}
        return {"kind": "component"} | parts if own else {"kind": "given", "role": role} | parts

    def _argument(self, value, where):
        """Return an argument's node; one that cannot be stored comes with the object handed in."""
        try:
            return self.node(value, where)
        except TypeError:
            return HANDED_IN

    @node.register
    def _(self, value: torch.nn.Module, where):
        if self.role != "inference_function":
            raise TypeError(f"{where} is a torch module.")
        self._need(type(value), where)
        return {
            "kind": "module",
            "class": class_name(type(value)),
            "parts": [[n, type(m).__name__, m.training] for n, m in value.named_modules()],
            "state": {n: self.node(v, f"{where}.{n}") for n, v in value.state_dict().items()},
        }

    def _need(self, cls, where):
        name = class_name(cls)
        if self.role not in ROLES or self.needs.setdefault(self.role, name) != name:
            raise TypeError(
                f"{where} is a {name}, which load could not be handed: save takes classes of your "
                f"own as {', '.join(ROLES)}, one of each."
            )


def _refuse(value, where):
    raise TypeError(
        f"{where} is a {class_name(type(value))}: a saved file holds numbers, strings, arrays "
        "and skavi's components, never code. Use joblib.dump for files that only you will load."
    )
