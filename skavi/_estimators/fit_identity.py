"""A description of a fit, its parameters and data, as text by which two fits are compared."""

import functools
import hashlib
import re
from typing import Any

import numpy as np
import torch

_BY_REFERENCE = ("init", "verbose", "random_state", "warm_start")


def describe_fit(estimator, X, weights, source=None) -> dict[str, str]:
    """Return a text for everything that determines a fit's result, except the random state.

    Parameters
    ----------
    estimator : BaseEstimator
    X : ndarray or sparse matrix
    weights : ndarray of shape (n_samples,) or None
    source : estimator or None
        The fitted estimator that the fit starts from.
    """
    parameters = estimator.get_params(deep=True)
    described = {
        name: describe_value(value)
        for name, value in parameters.items()
        if name.partition("__")[0] not in _BY_REFERENCE
    }
    described["estimator"] = type(estimator).__qualname__
    described["X"] = describe_value(X)
    described["sample_weight"] = describe_value(weights)
    start = {} if source is None else {"globals": source._raw_globals, **source._parameters}
    described["start"] = "None"
    if source is not None:
        texts = (f"{name}: {describe_value(value)}" for name, value in sorted(start.items()))
        described["start"] = f"{type(source).__qualname__} with {', '.join(texts)}"
    return described


def describe_value(value: Any) -> str:
    """Return a text that is equal, in every process, for equal values."""
    if isinstance(value, torch.nn.Module):
        content = {name: describe_value(t) for name, t in value.state_dict().items()}
        return f"{_name(type(value))} of {value} with {_hash(repr(content).encode())}"
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if hasattr(value, "indptr"):
        parts = [describe_value(getattr(value, name)) for name in ("data", "indices", "indptr")]
        return f"sparse of shape {value.shape}: {'; '.join(parts)}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}, sha256 {_hash(value.tobytes())}"
    if isinstance(value, list | tuple):
        return f"({', '.join(describe_value(item) for item in value)})"
    if isinstance(value, dict):
        items = (f"{key!r}: {describe_value(item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    if hasattr(value, "get_params"):
        return _name(type(value))  # its parameters are described separately
    if callable(value):
        return f"{_name(value)} {_behaviour(value)}".rstrip()
    return _repr_without_addresses(value)


def _behaviour(function) -> str:
    """Return a text that differs where a function's code, names or enclosed values do."""
    if isinstance(function, functools.partial):
        return describe_value([function.func, function.args, function.keywords])
    code = getattr(function, "__code__", None)
    if code is None:
        state = getattr(function, "__dict__", None)  # an object that can be called
        return describe_value(dict(state)) if state and not isinstance(function, type) else ""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    values = [cells, function.__defaults__ or (), function.__kwdefaults__ or {}]
    texts = [_repr_without_addresses(code.co_consts), repr(code.co_names), describe_value(values)]
    return _hash(code.co_code + "".join(texts).encode())


def _repr_without_addresses(value):
    """Return the repr of a value, without memory addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _name(thing):
    return f"{thing.__module__}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def _hash(content):
    return hashlib.sha256(content).hexdigest()[:16]
