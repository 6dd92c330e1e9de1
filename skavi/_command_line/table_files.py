"""Tables in files of two formats: CSV, and Parquet where pandas or polars is installed."""

import csv
import importlib.util
import io
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skavi._command_line.csv_table import read_table, table_of_lines
from skavi._command_line.output_files import OutputError
from skavi._command_line.table import Table, TableError, printable

_PARQUET = ".parquet"
#: Endings whose programs would find no file of theirs in a CSV.
_OTHER_FORMATS = (".xlsx", ".xls", ".ods", ".json", ".feather", ".dta", ".sav", ".rds", ".pkl")
_INSTALL = 'pip install "skavi[parquet]"'


def is_parquet(path) -> bool:
    """Say whether a file's name is that of a Parquet file."""
    return os.path.splitext(path)[1].lower() == _PARQUET


def _frames():
    """Return the library that reads and writes Parquet, or None."""
    if importlib.util.find_spec("pandas") and importlib.util.find_spec("pyarrow"):
        return "pandas"
    return "polars" if importlib.util.find_spec("polars") else None


def check_formats(outputs: Mapping[str, str]) -> None:
    """Refuse files of other formats than CSV and Parquet, and Parquet that nothing here can write.

    Raises
    ------
    OutputError
    """
    for option, path in outputs.items():
        if os.path.splitext(path)[1].lower() in _OTHER_FORMATS:
            raise OutputError(
                f"{option} {printable(path)}: tables are written as CSV, or as .parquet. Choose "
                "such a name."
            )
        if is_parquet(path) and _frames() is None:
            raise OutputError(
                f"{option} {printable(path)} needs pandas with pyarrow, or polars: {_INSTALL}."
            )


def read(path, named=(), whole=False) -> Table:
    """Read a table by the ending of its file: `read_table` documents how.

    Raises
    ------
    TableError
        If the file cannot be read, or is no table of numbers.
    """
    if not is_parquet(path) or not os.path.isfile(path) or not stat.S_ISREG(os.stat(path).st_mode):
        return read_table(path, named, whole)
    library, name = _frames(), printable(path)
    if library is None:
        raise TableError(f"{name} needs pandas with pyarrow, or polars: {_INSTALL}.")
    try:
        frame = importlib.import_module(library).read_parquet(path)
    except Exception as error:  # each library has its own, and one for each fault of a file
        raise TableError(f"{name} cannot be read: {' '.join(str(error).split())[:200]}.") from None
    if library == "pandas" and frame.index.nlevels == 1 and frame.index.name is not None:
        frame = frame.reset_index()
    columns = [frame[each].to_list() for each in frame.columns]
    lines = [[str(each) for each in frame.columns]]
    lines += [list(map(_as_cell, row)) for row in zip(*columns, strict=True)]
    return table_of_lines(name, iter(enumerate(lines, 1)), ",", named, whole, header=True)


def _as_cell(value: Any) -> str:
    """Return a value as a CSV file has it."""
    if value is None or value is not value or str(value) in ("NaT", "<NA>"):
        return ""
    return str(int(value)) if isinstance(value, bool | np.bool_) else str(value)


def columns_as_bytes(path, columns: Sequence[tuple[str, Any]]) -> bytes:
    """Return named columns as the content of a file, in the format of its ending.

    Parameters
    ----------
    path : str
    columns : sequence of (str, array-like)
        Numbers, or text.
    """
    if is_parquet(path):
        return _as_parquet([name for name, _ in columns], [values for _, values in columns])
    texts = [
        [f"{value:.10g}" for value in values]
        if np.asarray(values).dtype.kind == "f"
        else list(map(str, values))
        for _, values in columns
    ]
    return _as_csv([[name for name, _ in columns], *zip(*texts, strict=True)], ",")


def filled_as_bytes(path, table: Table, filled: np.ndarray) -> bytes:
    """Return a whole table, with values in the place of its missing cells, as a file's content.

    Parameters
    ----------
    path : str
        Its ending says the format.
    table : Table
        With all of its cells.
    filled : ndarray of the shape of table.X
    """
    missing, columns = np.isnan(table.X), []
    for column in table.whole:
        cells = list(column.cells)
        for row in np.flatnonzero(missing[:, column.place]) if column.place is not None else ():
            cells[row] = _number(filled[row, column.place], table.decimal_commas)
        columns.append(cells)
    if is_parquet(path):
        names = [column.name for column in table.whole]
        return _as_parquet(names, list(map(_typed, table.whole, columns, [filled] * len(names))))
    header = [[column.header for column in table.whole]] if table.header else []
    return _as_csv([*header, *zip(*columns, strict=True)], table.delimiter)


def _number(value, decimal_comma):
    text = f"{value:.10g}"
    return text.replace(".", ",") if decimal_comma else text


def _typed(column, cells, filled):
    """Return a column's numbers; whole ones where all cells are; else its text."""
    if column.place is not None:
        return filled[:, column.place]
    try:
        return np.array([int(cell) for cell in cells])
    except ValueError:
        return cells


def _as_csv(lines, delimiter) -> bytes:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(lines)
    return file.getvalue().encode()


def _as_parquet(names, columns) -> bytes:
    file, library = io.BytesIO(), _frames()
    unique = [n if names.index(n) == i else f"{n}_{i + 1}" for i, n in enumerate(names)]
    data = dict(zip(unique, columns, strict=True))
    if library == "pandas":
        importlib.import_module("pandas").DataFrame(data).to_parquet(file, index=False)
    else:
        importlib.import_module("polars").DataFrame(data).write_parquet(file)
    return file.getvalue()
