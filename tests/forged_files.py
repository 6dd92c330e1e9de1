"""Forged save files: every field of a file times every wrong value, with a right checksum.

`forgeries` yields altered copies of an honest file's header and arrays; `outcome` loads one and, if
it opens, uses all that the estimator offers. A forgery must be refused by one ValueError that names
the path, or work afterwards in all that works with the honest file.
"""

import copy
import hashlib
import io
import json
import pickle
import signal
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from sklearn.base import clone

import skavi
from skavi.persistence._write import COMPONENTS

SCRIPT = '"><script>evil()</script>'
FORMAT = "{estimator_name:>3000000000}"
_NAN = {"kind": "float", "value": "nan"}
_INF = {"kind": "float", "value": "inf"}
#: What stands in for any plain value: other types, sizes, signs, NaN, names.
VALUES: dict[str, Any] = {
    "type": [None, True, False, "x", "", [], {}, {"kind": "list", "items": []}],
    "type of many": [
        {"kind": "tuple", "items": [1, 2]},
        {"kind": "dict", "items": []},
        {"kind": "strings", "values": ["a"]},
        {"kind": "device", "value": "meta"},
        {"kind": "array", "name": "a0"},
        {"kind": "tensor", "name": "a0"},
    ],
    "size": [0, 1, 3, 200, 400, 700, 10**5, 10**7, 2**27, 2**31, 2**62, 10**30, 0.5, 1e300, 5e-324],
    "sign": [-1, -0.5, -(2**62)],
    "NaN": [_NAN, _INF, {"kind": "float", "value": "-inf"}],
    "name": [SCRIPT, FORMAT, "meta", "\ud800", "os.system", "zzz"],
}
#: What a name of a class, or of an attribute, may be forged to.
_ATTRIBUTES = {
    "_doc_link_template": SCRIPT,
    "_doc_link_module": FORMAT,
    "_repr_html_": SCRIPT,
    "_skl_callbacks": {"kind": "list", "items": [1]},
    "_metadata_request": 1,
    "_sklearn_auto_wrap_output_keys": {"kind": "list", "items": ["transform"]},
    "__class__": 1,
    "fit": 1,
    "check": 1,
    "coupling": 1,
    "learned": {"kind": "tuple", "items": []},
    "extra_": 1,
    "<b>": 1,
}
Header, Arrays = dict[str, Any], dict[str, np.ndarray]


def write(path, header: Header, arrays: Arrays):
    """Write an archive as `skavi.save` does, but for what it checks and flushes."""
    declared = {n: {"dtype": a.dtype.str, "shape": a.shape} for n, a in arrays.items()}
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("header.json", json.dumps({"header": header, "arrays": declared}))
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
            archive.writestr(f"{name}.npy", content.getvalue())
        archive.comment = b"0" * 64
    body = memory.getvalue()[:-64]
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    return path


# --- what can be forged -------------------------------------------------------------------------


def forgeries(header: Header, arrays: Arrays) -> Iterator[tuple[str, str, Callable]]:
    """Yield (category, what is done where, function of nothing to the forged header and arrays)."""
    for path in _paths(header, ()):
        where = "/".join(map(str, path))
        node = _at(header, path)
        for category, values in VALUES.items():
            for value in values:
                if value != node or type(value) is not type(node):
                    yield (
                        category,
                        f"{where} = {value!r}"[:200],
                        partial(_replaced, header, arrays, path, value),
                    )
        if path and isinstance(_at(header, path[:-1]), dict):
            yield "absent", f"no {where}", partial(_without, header, arrays, path)
            yield "unknown name", f"{where} renamed", partial(_renamed, header, arrays, path)
        if isinstance(node, list):
            for name, change in _LISTS.items():
                yield (
                    "size",
                    f"{where}: {name}",
                    partial(_replaced, header, arrays, path, change(node)),
                )
        if path and path[-1] == "class":
            for name in COMPONENTS:
                if name != node:
                    yield (
                        "kind",
                        f"{where} = {name}",
                        partial(_replaced, header, arrays, path, name),
                    )
        if path and path[-1] == "attributes":
            for name, value in _ATTRIBUTES.items():
                change = partial(_replaced, header, arrays, (*path, name), value)
                yield "unknown name", f"{where}/{name} = {value!r}"[:200], change
    for name in arrays:
        for (category, how), change in _ARRAYS.items():
            yield (
                category,
                f"array {_owner(header, name)}: {how}",
                partial(_changed, header, arrays, name, change),
            )
    many = {f"extra{n}_": 0 for n in range(20_000)}
    yield "size", "20,000 attributes", partial(_extended, header, arrays, many)


_LISTS: dict[str, Callable[[list], list]] = {
    "empty": lambda items: [],
    "one less": lambda items: items[:-1],
    "one twice": lambda items: [*items, *items[-1:]],
    "a thousandfold": lambda items: items * 1000,
    "backwards": lambda items: items[::-1],
}
_ARRAYS: dict[tuple[str, str], Callable[[np.ndarray], np.ndarray]] = {
    ("type", "integers"): lambda a: a.astype("<i8", casting="unsafe"),
    ("type", "booleans"): lambda a: a.astype("|b1"),
    ("type", "single"): lambda a: a.astype("<f4"),
    ("type", "half"): lambda a: a.astype("<f2"),
    ("size", "empty"): lambda a: np.zeros((0,) * max(1, a.ndim), a.dtype),
    ("size", "one less"): lambda a: a[:-1] if a.ndim else a.reshape(1),
    ("size", "one more"): lambda a: np.concatenate([np.atleast_1d(a), np.atleast_1d(a)[:1]]),
    ("size", "a hundredfold"): lambda a: np.concatenate([np.atleast_1d(a)] * 100),
    ("size", "two-dimensional"): lambda a: a[..., None],
    ("size", "of no dimension"): lambda a: a.reshape(-1)[0] if a.size else a,
    ("size", "flat"): lambda a: a.reshape(-1),
    ("size", "turned"): lambda a: a.T.copy(),
    ("size", "huge"): lambda a: _filled(a, 1e300),
    ("size", "tiny"): lambda a: _filled(a, 1e-320),
    ("size", "zero"): np.zeros_like,
    ("sign", "negated"): lambda a: a if a.dtype.kind in "bu" else -a,
    ("NaN", "NaN first"): lambda a: _first(a, np.nan),
    ("NaN", "all NaN"): lambda a: _filled(a, np.nan),
    ("NaN", "infinite first"): lambda a: _first(a, np.inf),
}


def _filled(array, value):
    return np.full_like(array, value) if array.dtype.kind == "f" else np.full_like(array, 77)


def _first(array, value):
    array = array.copy()
    if array.dtype.kind == "f" and array.size:
        array.reshape(-1)[0] = value
    return array


def _paths(node, path) -> Iterator[tuple]:
    yield path
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _paths(value, (*path, name))
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from _paths(value, (*path, place))


def _at(node, path):
    for step in path:
        node = node[step]
    return node


def _owner(header, name):
    """Return the first place of a header that names an array."""
    for path in _paths(header, ()):
        node = _at(header, path)
        if isinstance(node, dict) and node.get("name") == name:
            return "/".join(map(str, path))
    return name


def _replaced(header, arrays, path, value):
    if not path:
        return value, arrays
    header = copy.deepcopy(header)
    _at(header, path[:-1])[path[-1]] = value
    return header, arrays


def _without(header, arrays, path):
    header = copy.deepcopy(header)
    del _at(header, path[:-1])[path[-1]]
    return header, arrays


def _renamed(header, arrays, path):
    header = copy.deepcopy(header)
    inner = _at(header, path[:-1])
    inner[f"{path[-1]}x"] = inner.pop(path[-1])
    return header, arrays


def _changed(header, arrays, name, change):
    with np.errstate(all="ignore"):
        return header, arrays | {name: np.asarray(change(arrays[name]))}


def _extended(header, arrays, attributes):
    header = copy.deepcopy(header)
    header["estimator"]["attributes"] |= attributes
    return header, arrays


# --- what comes of a forgery --------------------------------------------------------------------


class TooLongError(Exception):
    """More processor time than a call may take."""


@contextmanager
def limited(seconds: float):
    """Raise a TooLongError in the body after so much processor time."""

    def stop(*_):
        raise TooLongError(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _refit(vi, X):
    alone = vi.init is None and not vi.warm_start
    again = clone(vi).set_params(
        max_iter=2, n_init=1 if alone else None, random_state=vi.random_state
    )
    return again.fit(X).elbo_


def _sampled(vi, X):
    return vi.posterior(X).sample(3, random_state=0)


def _globals(vi, X):
    q = vi.global_posterior_
    corrected = [] if q.corrected_sd is None else [q.corrected_sd, q.sample(2, 0, corrected=True)]
    return [q.mean, q.sd, q.sample(3, 0), q.quantile(0.5), *corrected]


def _shown(vi, X):
    shown = [vi, vi.global_posterior_, vi.posterior(X), *vars(vi).values()]
    texts = [repr(each) for each in shown]
    return texts + [each._repr_html_() for each in shown if hasattr(each, "_repr_html_")]


USES: dict[str, Callable] = {
    "transform": lambda vi, X: np.asarray(vi.transform(X)),
    "score": lambda vi, X: vi.score(X),
    "score_samples": lambda vi, X: vi.score_samples(X, n_draws=4),
    "posterior": lambda vi, X: [vi.posterior(X).mean, vi.posterior(X).sd],
    "posterior sample": _sampled,
    "inverse_transform": lambda vi, X: vi.inverse_transform(np.asarray(vi.transform(X))),
    "impute": lambda vi, X: vi.impute(X),
    "sample": lambda vi, X: list(vi.sample(3, random_state=0)),
    "globals": _globals,
    "names": lambda vi, X: list(vi.get_feature_names_out()),
    "shown": _shown,
    "attributes": lambda vi, X: [vi.elbo_, vi.elbo_curve_.shape, vi.n_iter_, vi.starts_.shape],
    "pickled": lambda vi, X: len(pickle.dumps(vi)) > 0,
    "random state": lambda vi, X: (vi.random_state is None) or _drawn(vi.random_state),
    "fit": _refit,
}


def _drawn(state):
    return True if isinstance(state, int) else float(state.standard_normal(700).sum())


def use(vi, X) -> dict[str, Any]:
    """Return what each use of an estimator gives: "finite", "numbers", "text", or an error."""
    said: dict[str, Any] = {}
    for name, call in USES.items():
        try:
            with warnings.catch_warnings(), limited(5.0):
                warnings.simplefilter("ignore")
                said[name] = _kind(call(copy.deepcopy(vi) if name == "random state" else vi, X))
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def _kind(value):
    text = (
        json.dumps(value) if isinstance(value, list) and value and isinstance(value[0], str) else ""
    )
    if text:
        return "script" if "<script>evil" in text or len(text) > 10**7 else "text"
    parts = value if isinstance(value, list) else [value]
    arrays = [a for p in parts for a in (p.values() if isinstance(p, dict) else [p])]
    return "finite" if all(np.isfinite(np.asarray(a, float)).all() for a in arrays) else "numbers"


def outcome(path, X, given: dict, honest: dict[str, Any]) -> str:
    """Return "refused" or "works", or what went wrong with a forged file."""
    try:
        with warnings.catch_warnings(), limited(5.0):
            warnings.simplefilter("ignore", skavi.persistence.SavedVersionWarning)
            warnings.simplefilter("error", RuntimeWarning)
            vi = skavi.load(path, **given)
    except ValueError as error:
        return "refused" if str(path) in str(error) and len(str(error)) < 3000 else f"load: {error}"
    except Exception as error:
        return f"load: {type(error).__name__}: {error}"
    said = use(vi, X)
    wrong = {n: said[n] for n, kind in honest.items() if said[n] != kind}
    wrong = {
        n: s for n, s in wrong.items() if "Error" not in str(honest[n]) or "Error" not in str(s)
    }
    return f"after load: {wrong}" if wrong else "works"
