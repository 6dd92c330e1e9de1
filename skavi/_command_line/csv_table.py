"""Numeric tables from CSV files, with errors that name what is wrong."""

import csv
import math
from pathlib import Path

import numpy as np

_MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
_DELIMITERS = ",;\t"


class TableError(ValueError):
    """A file is not a numeric table; the message says why and where."""


def read_table(path):
    """Read a CSV file of numbers, with a header or without.

    Parameters
    ----------
    path : str or Path
        Cells are separated by commas, semicolons or tabs. A first line with any text in it is
        taken as the header.

    Returns
    -------
    X : ndarray of shape (n_rows, n_columns)
    columns : list of str
        From the header, or "1", "2", ...

    Raises
    ------
    TableError
        If the file cannot be read, or holds text, missing values or lines of unequal length.
    """
    lines = _read_lines(Path(path))
    first_number, first = lines[0]
    header = any(_kind(cell) == "text" for cell in first)
    columns = (
        [cell.strip() for cell in first] if header else [str(i + 1) for i in range(len(first))]
    )
    rows = lines[1:] if header else lines
    if not rows:
        raise TableError(f"{path} has a header but no rows.")
    for number, cells in rows:
        if len(cells) != len(columns):
            raise TableError(
                f"{path}, line {number} has {len(cells)} cells, but line {first_number} has "
                f"{len(columns)}: give every line the same number of cells."
            )
    _refuse_text(path, rows, columns)
    _refuse_gaps(path, rows, columns)
    return np.array([[float(cell) for cell in cells] for _, cells in rows]), columns


def _read_lines(path):
    """Return (line number, cells) of every line that is not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TableError(f"{path} does not exist (looked in {path.absolute().parent}).") from None
    except UnicodeDecodeError:
        raise TableError(f"{path} is not a text file in UTF-8: save it as CSV (UTF-8).") from None
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}.") from None
    head = text.partition("\n")[0]
    reader = csv.reader(text.splitlines(), delimiter=max(_DELIMITERS, key=head.count))
    lines = [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    if not lines:
        raise TableError(f"{path} is empty.")
    return lines


def _kind(cell):
    if cell.strip().lower() in _MISSING:
        return "missing"
    try:
        return "number" if math.isfinite(float(cell)) else "infinite"
    except ValueError:
        return "text"


def _refuse_text(path, rows, columns):
    first: dict[str, str] = {}
    for number, cells in rows:
        for column, cell in zip(columns, cells, strict=True):
            if _kind(cell) == "text":
                first.setdefault(column, f"line {number}: {cell.strip()!r}")
    if first:
        found = "; ".join(f"{column!r} ({where})" for column, where in list(first.items())[:5])
        raise TableError(
            f"{path} has text in {len(first)} of {len(columns)} columns: {found}. "
            "Every column must be numeric: drop these, or encode them as numbers."
        )


def _refuse_gaps(path, rows, columns):
    found = [
        (number, column, _kind(cell))
        for number, cells in rows
        for column, cell in zip(columns, cells, strict=True)
        if _kind(cell) != "number"
    ]
    if found:
        number, column, kind = found[0]
        raise TableError(
            f"{path} has {len(found)} missing or infinite values, the first ({kind}) on line "
            f"{number} in column {column!r}: fill them in, or drop those rows or columns."
        )
