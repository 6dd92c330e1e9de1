"""Kinds of explained columns: the likelihood of each, and how its cells become numbers and back."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from skavi._data.column_values import NUMBERS, is_missing, listed, require_explained
from skavi._platform.private_names import safe_indexing

#: Names of likelihoods that the columns of one table may have.
KINDS = (
    "normal",
    "student_t",
    "bernoulli",
    "poisson",
    "negative_binomial",
    "ordinal",
    "categorical",
    "binomial",
)
#: Those whose cells are one of a few levels, numbered from 0.
LEVELLED = ("ordinal", "categorical")
#: Those whose cells need not be whole numbers.
MEASURED = ("normal", "student_t")
#: Levels of a column, at most: more are measurements, counts or names. Not measured.
MOST_LEVELS = 100


@dataclass(frozen=True)
class Kind:
    """The likelihood of a column, and its levels.

    Attributes
    ----------
    likelihood : str
        One of `KINDS`.
    n_levels : int
        How many levels an ordinal or categorical column has; 0 for others.
    levels : tuple of str
        Their texts, where the column holds no numbers.
    """

    likelihood: str
    n_levels: int = 0
    levels: tuple[str, ...] = ()

    @property
    def n_predictors(self) -> int:
        """How many predictors a cell reads: of a category, one for each level but the last."""
        return self.n_levels - 1 if self.likelihood == "categorical" else 1

    def encoded(self, values: Any, name: str, asked_by: str) -> np.ndarray:
        """Return a column as numbers, NaN where a cell is missing."""
        cells = np.asarray(values, dtype=object).reshape(-1)
        missing = np.array([is_missing(cell) for cell in cells], dtype=bool)
        numbers = np.full(len(cells), np.nan)
        if not self.levels:
            numbers[~missing] = cells[~missing].astype(np.float64)
            return numbers
        places = {level: place for place, level in enumerate(self.levels)}
        unknown = sorted({str(cell) for cell in cells[~missing]} - places.keys())
        if unknown:
            raise ValueError(
                f"{asked_by}: column {name!r} holds {listed(unknown)}, but the fit knows "
                f"only {listed(self.levels)}."
            )
        numbers[~missing] = [places[str(cell)] for cell in cells[~missing]]
        return numbers

    def decoded(self, numbers: np.ndarray, values: Any = None) -> np.ndarray:
        """Return numbers of levels as texts, or as the cells of a column `values` that holds them.

        Where the column has no texts, numbers stay numbers, whole ones where it holds such.
        """
        if not self.levels:
            counted = self.likelihood not in MEASURED and bool((numbers == np.round(numbers)).all())
            return numbers.astype(np.int64) if counted else numbers
        texts: dict[str, Any] = {level: level for level in self.levels}
        cells = () if values is None else np.asarray(values, dtype=object).reshape(-1)
        texts |= {str(cell): cell for cell in cells if not is_missing(cell)}
        found = [None if np.isnan(n) else texts[self.levels[int(n)]] for n in numbers]
        return np.array(found, dtype=object)

    def to_plain(self) -> list:
        """Return names and numbers that say the same."""
        return [self.likelihood, self.n_levels, list(self.levels)]

    @classmethod
    def from_plain(cls, plain: Any) -> "Kind":
        """Return what `to_plain` has written; refuse anything else."""
        likelihood, n_levels, levels = plain
        fewest = 2 if likelihood in LEVELLED else 0
        fine = likelihood in KINDS and type(n_levels) is int and fewest <= n_levels <= MOST_LEVELS
        fine = fine and all(type(level) is str for level in levels)
        fine = fine and len(set(levels)) == len(levels) and len(levels) in (0, n_levels)
        if not fine or (n_levels and likelihood not in LEVELLED):
            raise ValueError("columns_ has kinds of columns that no fit leaves")
        return cls(likelihood, n_levels, tuple(levels))


def explained_columns(X: Any, places: list[int], kinds: tuple[Kind, ...], asked_by: str) -> Any:
    """Return the explained columns of a user's table, those with texts as the levels' numbers."""
    names = list(getattr(X, "columns", range(X.shape[1])))
    pairs = list(zip(places, kinds or (Kind(""),) * len(places), strict=True))
    if getattr(X, "dtype", np.dtype(object)).kind not in NUMBERS:
        for place, kind in pairs:
            if not kind.levels:
                require_explained(safe_indexing(X, place, axis=1), names[place], asked_by)
    if not any(kind.levels for _, kind in pairs):
        return safe_indexing(X, places, axis=1)
    columns = [
        kind.encoded(safe_indexing(X, place, axis=1), str(names[place]), asked_by)
        for place, kind in pairs
    ]
    return np.stack(columns, 1)
