"""Columns of X that a model is given, not asked to explain: found by name or place, and encoded.

A user's table holds them anywhere. Inside, a row is what is explained, then what is given, role by
role, so that batches, weights, copies and files carry it along.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.preprocessing import OneHotEncoder

from skavi._data.column_kinds import Kind, explained_columns
from skavi._data.column_values import (
    NUMBERS,
    declared_levels,
    dtype_kind,
    labels_of_everyone,
    listed,
    read_labels,
    read_numbers,
    read_texts,
)
from skavi._numerics.whole_numbers import is_whole
from skavi._platform.private_names import feature_names, safe_indexing

#: The role of a column whose entries are labels: each has a number, and new ones may come.
LABELS = "groups"
#: The role of the columns to explain, where a model names them: it then leaves out those that it
#: does not name.
RESPONSE = "response"
#: The role of a column that no coefficient goes with, so that it may well be constant.
TRIALS = "trials"

Named = Mapping[str, tuple[str | int, ...]]


@dataclass(frozen=True)
class GivenColumn:
    """A column of the user's table, and how it is read.

    Attributes
    ----------
    place : int
        In the user's table.
    name : str
    levels : tuple of str
        Of a column of categories; the first one is the reference, without a column of its own.
        Empty for numbers. Of a column of labels: those that the fit knew, all of them.
    of_labels : bool
        Whether the column holds labels, which are read as their numbers.
    """

    place: int
    name: str
    levels: tuple[str, ...] = ()
    of_labels: bool = False

    @property
    def labels(self) -> list[str]:
        """Names of the columns that it becomes."""
        levels = () if self.of_labels else self.levels[1:]
        return [f"{self.name}_{level}" for level in levels] or [self.name]

    def encoded(self, values: Any, asked_by: str) -> np.ndarray:
        """Return a column as numbers, shape (n_rows, number of labels)."""
        if self.of_labels:
            return self._codes(*read_labels(values, self.name, asked_by))[:, None]
        if not self.levels:
            return read_numbers(values, f"column {self.name!r}", asked_by)[:, None]
        texts = read_texts(values, self.name, asked_by)
        known = np.array(self.levels, dtype=object)
        unknown = sorted(set(texts) - set(self.levels))
        if unknown:
            raise ValueError(
                f"{asked_by}: column {self.name!r} holds {listed(unknown)}, but the fit knows "
                f"only {listed(self.levels)}."
            )
        encoder = OneHotEncoder(categories=[known], drop="first", sparse_output=False)
        return encoder.fit_transform(texts[:, None])

    def _codes(self, distinct, index):
        """Return the number of each row's label: its place among those known, or a new one."""
        known = {level: code for code, level in enumerate(self.levels)}
        codes = [known.setdefault(label, len(known)) for label in distinct.tolist()]
        return np.array(codes, dtype=float)[index]


@dataclass(frozen=True)
class ColumnRoles:
    """Which columns of a user's table are given, by role; all others are explained.

    Attributes
    ----------
    given : dict of str to tuple of GivenColumn
    n_columns : int
        Of the user's table; 0 where nothing is given.
    response : tuple of int
        Places of the explained columns, where the model names them: all others are left out.
    kinds : tuple of Kind
        Of the explained columns, in their order, where each has a likelihood of its own.
    """

    given: Mapping[str, tuple[GivenColumn, ...]]
    n_columns: int = 0
    response: tuple[int, ...] = ()
    kinds: tuple[Kind, ...] = ()

    @property
    def told(self) -> bool:
        """Whether anything is said of any column."""
        return bool(self.places or self.kinds)

    @cached_property
    def places(self) -> list[int]:
        """Return the places of given columns in the user's table."""
        return [column.place for columns in self.given.values() for column in columns]

    @cached_property
    def explained(self) -> list[int]:
        """Return the places of explained columns in the user's table."""
        given = set(self.places)
        if self.response:
            return list(self.response)
        return [place for place in range(self.n_columns) if place not in given]

    @cached_property
    def widths(self) -> dict[str, int]:
        """How many columns of a row each role has."""
        return {role: len(self.labels(role)) for role in self.given}

    @cached_property
    def width(self) -> int:
        """How many given columns a row has."""
        return sum(self.widths.values())

    def labels(self, role: str) -> list[str]:
        """Return the names of a role's columns of a row."""
        return [label for column in self.given.get(role, ()) for label in column.labels]

    def n_explained(self, n_columns: int) -> int:
        """Return how many columns of a user's table are explained."""
        return len(self.response) or n_columns - len(set(self.places))

    def row_width(self, n_columns: int) -> int:
        """Return the number of columns of a row, for a user's table of `n_columns`."""
        return self.n_explained(n_columns) + self.width

    def slice(self, role: str, width: int) -> slice:
        """Return where a role's columns are in a row of `width` numbers."""
        first = width - self.width
        for name, size in self.widths.items():
            if name == role:
                return slice(first, first + size)
            first += size
        return slice(width, width)

    def encoded(self, X: Any, role: str, asked_by: str) -> np.ndarray:
        """Return a role's columns of a user's table as numbers, shape (n_rows, width)."""
        parts = [
            column.encoded(safe_indexing(X, column.place, axis=1), asked_by)
            for column in self.given[role]
        ]
        return np.hstack(parts) if parts else np.empty((X.shape[0], 0))

    def rows(self, X: Any, asked_by: str) -> tuple[Any, np.ndarray]:
        """Return the explained columns of a user's table, and the given ones as numbers."""
        parts = [np.empty((X.shape[0], 0))]
        parts += [self.encoded(X, role, asked_by) for role in self.given]
        return explained_columns(X, self.explained, self.kinds, asked_by), np.hstack(parts)

    def apart(self, C: Any, role: str, asked_by: str) -> np.ndarray:
        """Return the columns of a role as numbers, from a table that holds no others.

        By name from a frame, else in the order in which the model names them.
        """
        columns, C = self.given[role], as_table(C)
        names, shape = feature_names(C), tuple(getattr(C, "shape", ()))
        if names is None and len(shape) == len(columns) == 1:
            C = np.asarray(C)[:, None]
        if names is None and tuple(C.shape[1:]) != (len(columns),):
            raise ValueError(
                f"{asked_by}: {role} has shape {shape}, but needs {len(columns)} columns: "
                f"{listed([column.name for column in columns])}."
            )
        places = [
            i if names is None else place_of(column.name, role, names, C.shape[1], asked_by)
            for i, column in enumerate(columns)
        ]
        pairs = zip(columns, places, strict=True)
        parts = [column.encoded(safe_indexing(C, at, axis=1), asked_by) for column, at in pairs]
        return np.hstack(parts)

    def beside(self, C: Any, roles: list[str], argument: str, asked_by: str) -> np.ndarray:
        """Return the columns of several roles as numbers, from a table of these, each once."""
        columns = dict.fromkeys(column for role in roles for column in self.given[role])
        together = ColumnRoles({argument: tuple(columns)}, self.n_columns)
        values, at, place = together.apart(C, argument, asked_by), {}, 0
        for column in columns:
            at[column] = slice(place, place + len(column.labels))
            place += len(column.labels)
        return np.hstack([values[:, at[c]] for role in roles for c in self.given[role]])

    # --- as plain data --------------------------------------------------------------------------

    def to_plain(self) -> dict:
        """Return names, numbers and lists that say the same."""
        given = {
            role: [_plain(column) for column in columns] for role, columns in self.given.items()
        }
        plain = {"n_columns": self.n_columns, "given": given}
        plain |= {"response": list(self.response)} if self.response else {}
        return plain | {"kinds": [kind.to_plain() for kind in self.kinds]} if self.kinds else plain

    @classmethod
    def from_plain(cls, plain: Any) -> "ColumnRoles":
        """Return what `to_plain` has written; refuse anything else."""
        try:
            given = {
                role: tuple(GivenColumn(p, n, tuple(ls), *rest) for p, n, ls, *rest in columns)
                for role, columns in plain["given"].items()
            }
            kinds = tuple(map(Kind.from_plain, plain.get("kinds", ())))
            roles = cls(given, plain["n_columns"], tuple(plain.get("response", ())), kinds)
            known = plain.keys() - {"response", "kinds"} == {"given", "n_columns"}
            columns = [column for each in given.values() for column in each]
            fine = known and is_whole(roles.n_columns, 1) and all(map(_is_column, columns))
            fine = fine and all(c.place < roles.n_columns for c in columns)
            fine = fine and len(kinds) in (0, roles.n_explained(roles.n_columns))
            fine = fine and not any(column.levels for column in given.get(TRIALS, ()))
            fine = fine and all(is_whole(p, 0) and p < roles.n_columns for p in roles.response)
        except (TypeError, ValueError, KeyError, AttributeError):
            fine = False
        if not fine:
            raise ValueError("columns_ names no columns as a fit does")
        return roles


def _plain(column):
    plain = [column.place, column.name, list(column.levels)]
    return [*plain, True] if column.of_labels else plain


def _is_column(column: GivenColumn) -> bool:
    texts = [column.name, *column.levels]
    fine = is_whole(column.place, 0) and all(type(text) is str for text in texts)
    fine = fine and type(column.of_labels) is bool and len(set(texts[1:])) == len(texts[1:])
    return fine and (column.of_labels or len(column.levels) != 1)


#: Every column is explained.
ALL_EXPLAINED = ColumnRoles({})


# --- what a user names ----------------------------------------------------------------------------


def named_columns(value: Any) -> tuple[str | int, ...]:
    """Return the columns that an argument names, as a tuple; none for None."""
    if value is None:
        return ()
    if isinstance(value, str) or _is_place(value):
        return (value,)
    return tuple(value)


def _is_place(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def are_columns(value: Any) -> bool:
    """Say whether an argument may name columns: names and places, each once."""
    try:
        columns = named_columns(value)
    except TypeError:
        return False
    fine = all(isinstance(each, str) or _is_place(each) for each in columns)
    return fine and len(set(columns)) == len(columns)


def find_columns(
    X: Any, named: Named, asked_by: str, alone: bool = True, together: tuple[str, ...] = ()
) -> ColumnRoles:
    """Return the roles of the columns of a training table.

    Parameters
    ----------
    X : array, frame or sparse matrix of shape (n_rows, n_columns)
    named : dict of str to tuple of (str or int)
        Names or places of columns, by role.
    asked_by : str
        Of the model, for errors.
    alone : bool
        Whether X is the whole table; else a part may well be constant, or lack a level.
    together : tuple of str
        Roles that one column may have together.

    Raises
    ------
    ValueError, TypeError
        Naming the column that is missing, named twice, constant, or not to be read.
    """
    names, found = feature_names(X), {}
    taken: dict[int, str] = {}
    for role, columns in named.items():
        own = []
        for column in columns:
            place = place_of(column, role, names, X.shape[1], asked_by)
            here = {taken.get(place), role}
            if place in taken and not (len(here) == 2 and here <= {*together}):
                raise ValueError(
                    f"{asked_by}: column {column!r} is in {taken[place]} and in {role}: a column "
                    "has one role."
                )
            taken[place] = role
            name = f"x{place}" if names is None else str(names[place])
            if role == RESPONSE:
                own.append(GivenColumn(place, name))
                continue
            values = safe_indexing(X, place, axis=1)
            read = {LABELS: _read_label_column, TRIALS: _read_trials}.get(role, _read)
            own.append(read(values, place, name, asked_by, alone))
        found[role] = tuple(own)
    response = tuple(column.place for column in found.pop(RESPONSE, ()))
    if len(taken) == X.shape[1] and not response:
        raise ValueError(f"{asked_by}: every column of X is given, and none is left to explain.")
    return ColumnRoles(found, X.shape[1], response)


def as_table(X: Any) -> Any:
    """Return X as something whose columns can be taken one by one."""
    if hasattr(X, "shape") or scipy.sparse.issparse(X):
        return X
    plain = np.asarray(X)
    return np.array(X, dtype=object) if plain.dtype.kind in "US" else plain


def place_of(column, role, names, n_columns, asked_by):
    """Return where a named column is."""
    said = f"{asked_by}({role}=...)"
    if isinstance(column, str):
        if names is None:
            raise ValueError(
                f"{said} names the column {column!r}, but X has no column names: give places, or "
                "X as a data frame."
            )
        if column not in names:
            raise ValueError(f"{said}: X has no column {column!r}; it has {listed(names)}.")
        return list(names).index(column)
    if not -n_columns <= column < n_columns:
        raise ValueError(f"{said}: X has no column {column}; it has {n_columns} of them.")
    return int(column) % n_columns


def _read(values, place, name, asked_by, alone):
    """Return how a column of the training table is read: as numbers, or by its levels."""
    levels = declared_levels(values)
    if levels is None and dtype_kind(values) not in NUMBERS:
        if not alone:
            raise TypeError(
                f"{asked_by}: column {name!r} holds text, whose levels a part of the table does "
                "not tell: make it a categorical column with all of its levels, or numbers."
            )
        levels = tuple(sorted(set(read_texts(values, name, asked_by))))
    if levels is not None:
        present = set(read_texts(values, name, asked_by)) if alone else set(levels)
        levels = tuple(level for level in levels if level in present)
        if len(levels) < 2:
            _refuse_constant(name, levels[0], asked_by)
        return GivenColumn(place, name, levels)
    numbers = read_numbers(values, f"column {name!r}", asked_by)
    if alone and len(numbers) > 1 and numbers.min() == numbers.max():
        _refuse_constant(name, f"{numbers[0]:g}", asked_by)
    return GivenColumn(place, name)


def _read_label_column(values, place, name, asked_by, alone):
    """Return a column of labels with those of the training table, in order of their texts."""
    return GivenColumn(place, name, labels_of_everyone(values, name, asked_by), True)


def _read_trials(values, place, name, asked_by, alone):
    """Return a column of trials: numbers, which may well be all equal."""
    if declared_levels(values) is not None:
        raise TypeError(f"{asked_by}: column {name!r} holds categories: trials are whole numbers.")
    read_numbers(values, f"column {name!r}", asked_by)
    return GivenColumn(place, name)


def _refuse_constant(name, value, asked_by):
    raise ValueError(
        f"{asked_by}: column {name!r} is constant ({value}), and tells nothing beside the mean: "
        "leave it out."
    )
