"""A table of numbers as it was read from a file, and how its names are shown."""

from dataclasses import dataclass, field

import numpy as np

#: Characters of a cell or a name that a message quotes, and columns that it lists.
_QUOTED, _LISTED = 40, 20


class TableError(ValueError):
    """A file is not a numeric table; the message says why and where."""


@dataclass(frozen=True)
class WholeColumn:
    """A column as it stands in the file.

    Attributes
    ----------
    name : str
    header : str or None
        What the first line says of it; None without a header.
    cells : list of str
    place : int or None
        Of its numbers in `Table.X`; None if it was left out.
    """

    name: str
    header: str | None
    cells: list[str]
    place: int | None


@dataclass(frozen=True)
class Table:
    """The numbers of a file.

    Attributes
    ----------
    X : ndarray of shape (n_rows, n_columns)
        Missing cells are NaN.
    columns : list of str
        Names of the columns of X, from the header, or "1", "2", ...
    left_out : list of (str, str)
        Columns that are not in X, each with the reason.
    header : bool
        Whether the first line was read as names.
    named : dict of str to list of str
        Cells of the columns that were asked for by name.
    whole : list of WholeColumn
        All columns, where they were asked for; else none.
    delimiter : str
        Between cells.
    decimal_commas : bool
        Whether numbers have decimal commas.
    """

    X: np.ndarray
    columns: list[str]
    left_out: list[tuple[str, str]]
    header: bool
    named: dict[str, list[str]] = field(default_factory=dict)
    whole: list[WholeColumn] = field(default_factory=list)
    delimiter: str = ","
    decimal_commas: bool = False

    @property
    def summary(self) -> str:
        """What was read as names, left out, and found missing: a line each."""
        lines = ["Names of columns: from the first line." if self.header else "No header."]
        if self.left_out:
            lines.append(f"Left out: {listing(self.left_out)}.")
        n_missing = int(np.isnan(self.X).sum())
        if n_missing:
            share = 100 * n_missing / self.X.size
            lines.append(f"Missing and marginalised: {n_missing} cells ({share:.2g} %).")
        return "\n".join([*lines, ""])


def printable(path):
    """Return a path or a name as text that shows on one line of any terminal."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shorten(text):
    """Return the start of a cell or a name, in quotes and on one line."""
    text = text.strip()
    return repr(text if len(text) <= _QUOTED else text[: _QUOTED - 3] + "...")


def listing(named_reasons):
    named = [f"{shorten(name)} ({reason})" for name, reason in named_reasons]
    more = len(named) - _LISTED
    return "; ".join(named[:_LISTED]) + (f"; and {more} more" if more > 0 else "")
