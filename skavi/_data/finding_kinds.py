"""Which likelihood explains each column of a training table, as a model's argument says."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from skavi._data.column_kinds import KINDS, LEVELLED, MOST_LEVELS, Kind
from skavi._data.column_roles import ALL_EXPLAINED, ColumnRoles, named_columns, place_of
from skavi._data.column_values import (
    NUMBERS,
    declared_levels,
    dtype_kind,
    is_missing,
    listed,
)
from skavi._platform.private_names import feature_names, safe_indexing


def with_kinds(
    X: Any, roles: ColumnRoles, named: Mapping | str | None, asked_by: str, alone: bool = True
) -> ColumnRoles:
    """Return the roles of columns, with the kind of each explained one.

    Parameters
    ----------
    X : array or frame of shape (n_rows, n_columns)
        The training table.
    roles : ColumnRoles
        Which columns are given.
    named : dict of str to columns, or str, or None
        Names or places of columns by the likelihood that explains them; the one likelihood of all;
        or None, where columns have no kinds.
    asked_by : str
        Of the model, for errors.
    alone : bool
        Whether X is the whole table, so that it shows all levels.

    Raises
    ------
    ValueError, TypeError
        Naming the column that is missing, named twice or not at all, or not of its kind.
    """
    if named is None:
        return roles
    if roles is ALL_EXPLAINED:
        roles = ColumnRoles({}, X.shape[1])
    names = feature_names(X)
    if isinstance(named, str):
        found = dict.fromkeys(roles.explained, named)
    else:
        found = _named_kinds(named, roles, names, X.shape[1], asked_by)
    kinds = []
    for place in roles.explained:
        name = f"x{place}" if names is None else str(names[place])
        if place not in found:
            raise ValueError(
                f"{asked_by}(likelihood=...): column {name!r} is named under no likelihood: name "
                f"it under one of {listed(KINDS)}, or leave it out of X."
            )
        values = safe_indexing(X, place, axis=1)
        kinds.append(_kind_of(values, found[place], name, asked_by, alone))
    return replace(roles, kinds=tuple(kinds))


def _named_kinds(named, roles, names, n_columns, asked_by):
    """Return the likelihood of each place that a dict names."""
    found: dict[int, str] = {}
    for likelihood, columns in named.items():
        for column in named_columns(columns):
            place = place_of(column, "likelihood", names, n_columns, asked_by)
            if place in found or place not in roles.explained:
                other = found.get(place, "what the model is given")
                raise ValueError(
                    f"{asked_by}: column {column!r} is in {other} and in {likelihood}: a column "
                    "has one role."
                )
            found[place] = likelihood
    return found


def _kind_of(values, likelihood, name, asked_by, alone):
    """Return the kind of a column of a training table."""
    if likelihood not in LEVELLED:
        return Kind(likelihood)
    levels = declared_levels(values)
    said = f"{asked_by}: column {name!r}"
    if levels is None and not alone:
        raise ValueError(
            f"{said} is {likelihood}, and a part of the table does not tell its levels: make it a "
            "categorical column with all of them."
        )
    if levels is None and dtype_kind(values) in NUMBERS:
        return Kind(likelihood, _count_levels(values, likelihood, said))
    if levels is None:
        if likelihood == "ordinal":
            raise ValueError(
                f"{said} holds texts, whose order is not known: make it an ordered category, or "
                "whole numbers from 0."
            )
        cells = np.asarray(values, dtype=object).reshape(-1)
        levels = tuple(sorted({str(cell) for cell in cells if not is_missing(cell)}))
    if not 2 <= len(levels) <= MOST_LEVELS:
        raise ValueError(
            f"{said} has {len(levels)} levels ({listed(levels)}): it needs from 2 to {MOST_LEVELS}."
        )
    return Kind(likelihood, len(levels), levels)


def _count_levels(values, likelihood, said):
    """Return one more than the largest level of a column of numbers."""
    cells = np.asarray(values, dtype=object).reshape(-1)
    numbers = np.array([float(cell) for cell in cells if not is_missing(cell)])
    wrong = numbers[(numbers < 0) | (numbers != np.round(numbers)) | np.isinf(numbers)]
    if len(wrong):
        raise ValueError(
            f"{said} is {likelihood}, but holds {wrong[0]:g}: its levels are whole numbers from 0."
        )
    n_levels = int(numbers.max()) + 1 if len(numbers) else 0
    if not 2 <= n_levels <= MOST_LEVELS:
        raise ValueError(
            f"{said} is {likelihood}, and its largest cell makes {n_levels} levels: it needs from "
            f"2 to {MOST_LEVELS}, numbered from 0."
        )
    return n_levels
