"""One column of a user's table, as numbers, as text or as labels."""

import itertools
from typing import Any

import numpy as np
import scipy.sparse

from skavi._data.process_ranks import stacked_texts

#: Kinds of numpy's that are numbers.
NUMBERS = "biuf"
#: Names that an error lists, at most.
_NAMED = 8


def declared_levels(values):
    """Return the levels of a column of a categorical dtype as text, in their order; else None.

    A Categorical column of polars declares none: its levels are those that appear, as of text.
    """
    dtype = getattr(values, "dtype", None)
    if str(dtype) == "category":
        return tuple(map(str, values.cat.categories))
    if str(dtype).startswith("Enum"):
        return tuple(map(str, dtype.categories.to_list()))  # type: ignore[union-attr]  # polars's
    return None


def dtype_kind(values) -> str:
    """Return the kind of a column's numpy dtype; of objects, whether all are numbers."""
    array = _dense(values)
    if array.dtype.kind != "O":
        return array.dtype.kind
    missing = (type(None), float, int, bool, np.number, np.bool_)
    return "f" if all(isinstance(each, missing) for each in array) else "O"


def _dense(values) -> np.ndarray:
    values = values.toarray() if scipy.sparse.issparse(values) else values
    return np.asarray(values).reshape(-1)


def read_numbers(values, what, asked_by) -> np.ndarray:
    """Return a column as finite floats."""
    array = _dense(values)
    if dtype_kind(values) not in NUMBERS:
        raise TypeError(
            f"{asked_by}: {what} is not numeric (dtype {array.dtype}): give numbers, or at the fit "
            "text or categories."
        )
    numbers = array.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise ValueError(
            f"{asked_by}: {what} has {len(bad)} cells that are missing or infinite (first at row "
            f"{bad[0]}), but what is given must be known: fill them, or leave these rows out."
        )
    return numbers


def require_explained(values, name, asked_by) -> None:
    """Raise a ValueError if a column that the model is to explain holds text."""
    if dtype_kind(values) in NUMBERS:
        return
    array = _dense(values)
    for row, cell in enumerate(array):
        try:
            float(cell)
        except (TypeError, ValueError):
            if is_missing(cell):
                continue
            raise ValueError(
                f"{asked_by}: column {name!r} holds {str(cell)!r} in row {row}, but what a model "
                "explains must be numbers: make yes and no 1 and 0, name the column among those "
                "that are given, or leave it out of X."
            ) from None


def read_texts(values, name, asked_by) -> np.ndarray:
    """Return a column of categories as text."""
    array = _dense(values)
    if array.dtype.kind in "mM":
        raise TypeError(
            f"{asked_by}: column {name!r} is not numeric ({array.dtype}): turn dates into numbers, "
            "such as days since the first."
        )
    if array.dtype.kind != "O":
        return array.astype(str).astype(object)
    missing = [n for n, each in enumerate(array) if is_missing(each)]
    if missing:
        raise ValueError(
            f"{asked_by}: column {name!r} has {len(missing)} missing cells (first at row "
            f"{missing[0]}), but what is given must be known: fill them, or leave these rows out."
        )
    return np.array([str(each) for each in array], dtype=object)


def is_missing(cell) -> bool:
    """Say whether a cell is None, NaN or pandas' NA."""
    return cell is None or str(cell) == "<NA>" or cell != cell


def listed(names) -> str:
    some = [repr(str(name)) for name in list(names)[:_NAMED]]
    return ", ".join(some) + (", ..." if len(names) > _NAMED else "")


def read_labels(values: Any, name: str, asked_by: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct labels of a column of any kind as text, and which of them each row has.

    A whole number is the same as a float.
    """
    array = _dense(values)
    if array.dtype.kind == "O" and dtype_kind(values) == "f":
        array = np.array([np.nan if is_missing(each) else each for each in array], dtype=float)
    if array.dtype.kind == "f":
        _require_labels(~np.isfinite(array), name, asked_by)
        whole = array == np.round(array)
        array = array.astype(np.int64) if whole.all() else array
    if array.dtype.kind == "O":
        _require_labels(np.array([is_missing(each) for each in array]), name, asked_by)
        places: dict[str, int] = {}
        index = np.array([places.setdefault(str(each), len(places)) for each in array], dtype=int)
        return np.array(list(places)), index
    distinct, index = np.unique(array, return_inverse=True)
    return distinct.astype(str), index


def labels_of_everyone(values: Any, name: str, asked_by: str) -> tuple[str, ...]:
    """Return the distinct labels of a column over all process ranks, in order of their texts."""
    distinct, _ = read_labels(values, name, asked_by)
    everyone = sorted(stacked_texts(distinct.tolist()))
    apart = [one for one, other in itertools.pairwise(everyone) if one == other]
    if apart:
        raise ValueError(
            f"{asked_by}: {listed(apart)} of column {name!r} are on several ranks, but rows of a "
            "group must be on one: give skavi.distributed's shard or fit these labels as groups."
        )
    return tuple(everyone)


def _require_labels(missing, name, asked_by):
    if missing.any():
        raise ValueError(
            f"{asked_by}: column {name!r} has {missing.sum()} missing labels (first at row "
            f"{missing.argmax()}), but every row belongs to a group: name theirs, or leave these "
            "rows out."
        )
