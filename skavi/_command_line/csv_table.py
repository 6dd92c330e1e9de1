"""Numeric tables from CSV files, with errors that name what is wrong."""

import csv
import itertools
import math
import re
import stat
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from skavi._command_line.table import (
    Table,
    TableError,
    WholeColumn,
    listing,
    printable,
    shorten,
)

_MISSING = {"", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none", "?"}
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
#: Python's float reads more: 1_000, digits of other scripts, control characters around a number.
_NUMBER = re.compile(r"[+-]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)([eE][+-]?[0-9]+)?")
#: What may stand around a number: spaces, those that do not break included.
_SPACES = " \xa0"
#: In the order of preference where several read a table equally well.
_DELIMITERS = "\t;,"
#: Characters of the file that the delimiter is chosen by. Not measured: order of magnitude.
_HEAD = 1 << 16
#: Size of cells at most, and its inverse the width of columns at least: beyond, squares and their
#: sums and products would not all be numbers (1.8e308 is the largest).
_LARGEST = 1e100
#: Share of numbers in a column from which on a text in it is a mistake, not one of its labels.
_MOSTLY = 0.5
#: Columns that a message lists.
_LISTED = 20
#: Columns from which on a first line of 0, 1, 2, ... is names: fewer may be data by chance.
_FEWEST_NUMBERED = 3


def read_table(path, named=(), whole=False):
    """Read the columns of numbers of a CSV file, with a header or without.

    Parameters
    ----------
    path : str or Path
        Cells are separated by commas, semicolons or tabs; with the latter two a decimal comma is
        read, too. Empty cells, NA, N/A, NaN, null, None and ? are missing. The first line is the
        header if it holds text, or if it numbers the columns from 0.
    named : sequence of str
        Columns that are never left out: their cells are kept as text, too.
    whole : bool
        Whether to keep all cells as text.

    Returns
    -------
    Table
        Left out are columns of labels or dates, of one value, or of none, and in front those
        without a name and those that count the rows from 0 or 1.

    Raises
    ------
    TableError
        If the file cannot be read, has lines of unequal length, holds text among numbers, a number
        that is infinite or too large to square, or no numbers that differ.
    """
    name = printable(path)
    try:
        path = Path(path)
        mode = path.stat().st_mode
        # A pipe would be waited for, and a device has no end; a folder is refused below.
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise TableError(f"{name} is not a regular file: save the table in one.")
        with path.open(encoding="utf-8-sig") as file:
            return _parse(name, file, named, whole)
    except TableError:
        raise
    except FileNotFoundError:
        where = printable(path.absolute().parent)
        raise TableError(f"{name} does not exist (looked in {where}).") from None
    except UnicodeDecodeError:
        raise TableError(f"{name} is not a text file in UTF-8: save it as CSV (UTF-8).") from None
    except OSError as error:
        raise TableError(f"{name} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # of names that no file can have
        raise TableError(f"{name} cannot be read: {error}.") from None


# --- lines of cells -----------------------------------------------------------------------------


def _parse(name, file, named, whole):
    head = file.read(_HEAD)
    file.seek(0)
    delimiter = _delimiter(head)
    return table_of_lines(name, _lines(name, file, delimiter), delimiter, named, whole)


def table_of_lines(name, lines, delimiter, named=(), whole=False, header=None):
    """Return the table of some lines of cells, as `read_table` does.

    Parameters
    ----------
    name : str
        Of the file.
    lines : iterator of (int, list of str)
        Each with its number.
    delimiter : str
    named, whole
        As in `read_table`.
    header : bool, default=None
        Whether the first line holds names; None: as it looks.
    """
    first_number, first = next(lines, (0, []))
    if not first:
        raise TableError(f"{name} is empty.")
    commas = delimiter != ","
    columns = [
        _Column(first_number, cell, i + 1, commas, whole or {cell.strip(), str(i + 1)} & {*named})
        for i, cell in enumerate(first)
    ]
    for number, cells in lines:
        if len(cells) != len(columns):
            raise TableError(
                f"{name}, line {number} has {len(cells)} cells, but line {first_number} has "
                f"{len(columns)}: give every line the same number of cells."
            )
        for column, cell in zip(columns, cells, strict=True):
            column.append(number, cell)
    header = _is_header(columns) if header is None else header
    for column in columns:
        column.take_name() if header else column.take_first_cell()
    if not columns[0].values:
        raise TableError(f"{name} has a header but no rows.")
    return _table(name, columns, header, _columns_named(name, columns, named), delimiter, whole)


def _lines(name, file: IO[str], delimiter) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every line with a cell that is not empty, and between them."""
    # A text file ends lines at line feeds and carriage returns alone; str.splitlines has more.
    reader = _reader(_without_nulls(name, file), delimiter, strict=True)
    empty: list[tuple[int, list[str]]] = []  # a row without values, but none at the end
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                yield from empty
                yield reader.line_num, cells
                empty = []
            elif len(cells) > 1:
                empty.append((reader.line_num, cells))
    except csv.Error as error:
        raise TableError(f"{name}, line {reader.line_num} cannot be read: {error}.") from None


def _without_nulls(name, file):
    for line in file:
        if "\0" in line:
            raise TableError(f"{name} holds null bytes: it is not a text file.")
        yield line


def _reader(lines, delimiter, strict):
    return csv.reader(lines, delimiter=delimiter, strict=strict, skipinitialspace=True)


def _delimiter(head):
    """Choose the separator under which lines are even and most of their cells are numbers."""
    lines = head.split("\n")
    lines = lines[:-1] if len(head) == _HEAD and len(lines) > 1 else lines
    scores = {}
    for delimiter in _DELIMITERS:
        try:
            rows = [row for row in _reader(lines, delimiter, strict=False) if row]
        except csv.Error:
            continue  # the reading that follows says where
        cells = [cell for row in rows for cell in row]
        if rows and len(rows[0]) > 1:
            numbers = sum(_kind(cell, delimiter != ",") in _NUMBERS for cell in cells)
            even = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
            scores[delimiter] = even * numbers / len(cells)
    return max(scores, key=scores.__getitem__, default=",")


# --- columns ------------------------------------------------------------------------------------

_NUMBERS = {"whole", "point", "comma"}


def _kind(cell, commas):
    """Say what a cell is: a kind of number ("comma": with a decimal comma), or something else."""
    cell = cell.strip(_SPACES)
    if _NUMBER.fullmatch(cell) and (commas or "," not in cell):
        return "comma" if "," in cell else "point" if "." in cell else "whole"
    if cell.strip().lower() in _MISSING:
        return "missing"
    return "large" if _INFINITE.fullmatch(cell) else "text"


class _Column:
    """One column: its numbers, and the first cell of each kind with its line."""

    def __init__(self, first_number, first, position, commas, kept=False):
        self.first_number, self.first, self.commas = first_number, first, commas
        self.name, self.unnamed = str(position), False
        self.values = array("d")
        self.cells: list[str] | None = [] if kept else None
        self.found: dict[str, tuple[int, str]] = {}
        self.n_text = self.n_missing = 0
        self.recurs = False  # the text of the first line

    def append(self, number, cell):
        """Take the cell of a line."""
        kind, value = _kind(cell, self.commas), math.nan
        if kind in _NUMBERS:
            value = float(cell.strip(_SPACES).replace(",", "."))
            kind = kind if abs(value) <= _LARGEST else "large"
        elif kind == "missing":
            self.n_missing += 1
        elif kind == "text":
            self.n_text += 1
            self.recurs = self.recurs or cell == self.first
        self.values.append(value)
        if self.cells is not None:
            self.cells.append(cell)
        if kind not in self.found:
            self.found[kind] = number, cell

    def take_name(self):
        """Read the first line as a name."""
        name = self.first.strip()
        self.unnamed = re.fullmatch(r"(Unnamed: [0-9]+)?", name) is not None  # the latter: pandas
        self.name = name or f"column {self.name}"

    def take_first_cell(self):
        """Read the first line as the first row."""
        self.append(self.first_number, self.first)
        self.values.insert(0, self.values.pop())
        if self.cells is not None:
            self.cells.insert(0, self.cells.pop())

    @property
    def known(self):
        values = np.asarray(self.values)
        return values[~np.isnan(values)]

    @property
    def counts_rows(self):
        """Whether the column is 0, 1, 2, ... or 1, 2, 3, ..."""
        values = np.asarray(self.values)
        return values[0] in (0, 1) and np.array_equal(values, values[0] + np.arange(len(values)))

    @property
    def fault(self):
        """Why the column has no numbers to explain; None if it has."""
        n_numbers = len(self.values) - self.n_text - self.n_missing
        if self.n_text and n_numbers < _MOSTLY * (self.n_text + n_numbers):
            return f"text: {shorten(self.found['text'][1])}"
        if not n_numbers:
            return "no value"
        known = self.known
        if not {"text", "large"} & self.found.keys() and known.min() == known.max():
            return f"constant: {known[0]:g}"
        return None


def _is_header(columns):
    """Say whether the first line names the columns: it holds text, or 0, 1, 2, ...

    Where numbers stand beside the text, one with decimals is no name, and a text that stands in
    its column again is a label.
    """
    kinds = {_kind(column.first, column.commas) for column in columns}
    if "text" in kinds:
        recurs = any(column.recurs for column in columns)
        return not kinds & _NUMBERS or not (recurs or kinds & {"point", "comma"})
    index = not columns[0].first.strip()
    names = [column.first.strip() for column in columns[index:]]
    fewest = 1 if index else _FEWEST_NUMBERED
    return len(names) >= fewest and names == [str(i) for i in range(len(names))]


def _columns_named(name, columns, named):
    """Return the columns of some names."""
    found = []
    for each in named:
        those = [column for column in columns if column.name == each]
        if len(those) != 1:
            how = "no column" if not those else f"{len(those)} columns"
            listed = ", ".join(shorten(column.name) for column in columns[:_LISTED])
            more = ", ..." if len(columns) > _LISTED else ""
            raise TableError(f"{name} has {how} {shorten(each)}; it has {listed}{more}.")
        found += those
    for column in found:
        if column.n_text and column.n_missing:
            number, _ = column.found["missing"]
            raise TableError(
                f"{name}, column {shorten(column.name)} has no label in line {number}: name it, or "
                "leave the line out."
            )
    return found


def _table(name, columns, header, named, delimiter, whole):
    texts = {column: "text" for column in named if column.n_text}
    others = [column for column in columns if column not in named]
    faults = texts | {column: fault for column in others if (fault := column.fault)}
    _require_readable(name, [column for column in columns if column not in faults])
    index = list(itertools.takewhile(lambda c: c.unnamed or c.counts_rows, others))
    if any(column not in faults and column not in index for column in columns):
        faults |= {column: "an index" for column in index if column not in faults}
    left_out = [(c.name, faults[c]) for c in columns if c in faults and c not in named]
    kept = [column for column in columns if column not in faults]
    if not kept:
        raise TableError(
            f"{name} has no column of numbers that differ: {listing(left_out)}. Cells are to be "
            "separated by commas, semicolons or tabs."
        )
    return Table(
        X=np.column_stack([np.asarray(column.values) for column in kept]),
        columns=[column.name for column in kept],
        left_out=left_out,
        header=header,
        named={column.name: column.cells for column in named},
        whole=[_whole(column, kept, header) for column in columns] if whole else [],
        delimiter=delimiter,
        decimal_commas=any("comma" in column.found for column in kept),
    )


def _whole(column, kept, header):
    place = kept.index(column) if column in kept else None
    return WholeColumn(column.name, column.first if header else None, column.cells, place)


def _require_readable(name, columns):
    """Refuse cells that are no numbers, or could be read as several."""
    first: dict[str, str] = {}
    for column in columns:
        for kind, (number, cell) in column.found.items():
            first.setdefault(
                kind, f"{shorten(cell)} in column {shorten(column.name)}, line {number}"
            )
    if "text" in first:
        raise TableError(
            f"{name} has text among numbers: {first['text']}. Write a number, or leave it empty."
        )
    if "large" in first:
        raise TableError(f"{name} has {first['large']}: numbers may be up to {_LARGEST:g} in size.")
    if "comma" in first and "point" in first:
        raise TableError(
            f"{name} has decimal commas ({first['comma']}) and decimal points ({first['point']}): "
            "write one of them."
        )
    for column in columns:
        width = np.ptp(column.known) if len(column.known) else 0.0
        if 0 < width < 1 / _LARGEST:
            raise TableError(
                f"{name}, column {shorten(column.name)} has numbers that differ by {width:g} at "
                f"most: give it in other units, so that they differ by {1 / _LARGEST:g} or more."
            )
