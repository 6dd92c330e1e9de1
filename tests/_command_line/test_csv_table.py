"""Tables as spreadsheets, pandas, R and people write them, and how each is read."""

import os

import numpy as np
import pytest

from skavi._command_line import csv_table
from skavi._command_line.csv_table import TableError, printable, read_table


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_table(path)

    return read


NAN = float("nan")
# Content, then the numbers, names and what is left out.
READ = {
    "commas": ("1,2\n3,4\n", [[1, 2], [3, 4]], "1 2", ""),
    "semicolons": ("1;2\n3;4\n", [[1, 2], [3, 4]], "1 2", ""),
    "tabs": ("x\ty\n1\t2\n3\t4\n", [[1, 2], [3, 4]], "x y", ""),
    "blank lines": ("\n1,2\n\n3,4", [[1, 2], [3, 4]], "1 2", ""),
    "decimal commas": ("x;y\n1,5;2\n-,5;4e1\n", [[1.5, 2], [-0.5, 40]], "x y", ""),
    "decimal commas without a header": (
        "1,5;2,5;3,5\n4,5;5,5;7,5\n",
        [[1.5, 2.5, 3.5], [4.5, 5.5, 7.5]],
        "1 2 3",
        "",
    ),
    "tabs and decimal commas": ("1,5\t2,5\n3,5\t4,5\n", [[1.5, 2.5], [3.5, 4.5]], "1 2", ""),
    "holes": ("a,b\n1,\nNA,2\n?,nan\n3,4\n", [[1, NAN], [NAN, 2], [NAN, NAN], [3, 4]], "a b", ""),
    "byte order mark": (b"\xef\xbb\xbfa,b\n1,2\n3,4\n", [[1, 2], [3, 4]], "a b", ""),
    "quotes": ('"a,1","b ""c"""\n"1","2"\n"3", "4"\n', [[1, 2], [3, 4]], None, ""),
    "a line break in a name": ('"a\nb",c\n1,2\n3,4\n', [[1, 2], [3, 4]], None, ""),
    "windows": ("a,b\r\n1,2\r\n3,4\r\n", [[1, 2], [3, 4]], "a b", ""),
    "old macintosh": ("a,b\r1,2\r3,4\r", [[1, 2], [3, 4]], "a b", ""),
    "spaces": ("a, b\n 1 , 2\xa0\n3,4\n", [[1, 2], [3, 4]], "a b", ""),
    "rows without values": ("a,b\n1,2\n,\n3,4\n,\n,\n", [[1, 2], [NAN, NAN], [3, 4]], "a b", ""),
    "an index of pandas": (",a\n0,5\n1,6\n2,8\n", [[5], [6], [8]], "a", "column 1: an index"),
    "an index with gaps": (",a\n3,5\n9,6\n", [[5], [6]], "a", "column 1: an index"),
    "two indices": (",Unnamed: 0,a\n4,0,5\n2,1,6\n", [[5], [6]], "a", "an index; Unnamed: 0"),
    "a named index from 1": ("id,a\n1,5\n2,6\n3,8\n", [[5], [6], [8]], "a", "id: an index"),
    "an index without a header": ("0,5\n1,6\n2,8\n", [[5], [6], [8]], "2", "1: an index"),
    "a count that is not in front": ("a,id\n5,1\n6,2\n", [[5, 1], [6, 2]], "a id", ""),
    "nothing but a count": ("id\n1\n2\n3\n", [[1], [2], [3]], "id", ""),
    "numbered names of pandas": (",0,1\n0,5,7\n1,6,9\n", [[5, 7], [6, 9]], "0 1", "an index"),
    "numbered names": ("0,1,2\n5,7,8\n6,9,9\n", [[5, 7, 8], [6, 9, 9]], "0 1 2", ""),
    "labels": ("a,city\n1,Rome\n2,Oslo\n", [[1], [2]], "a", "city: text: 'Rome'"),
    "dates": ("day,a\n2020-01-31,1\n2020-02-01,2\n", [[1], [2]], "a", "day: text: '2020-01-31'"),
    "labels without a header": ("5.1,setosa\n4.9,setosa\n", [[5.1], [4.9]], "1", "2: text"),
    "years as names": ("land,2019,2020\nA,1,2\nB,3,5\n", [[1, 2], [3, 5]], "2019 2020", "land"),
    "a constant": ("a,b\n1,7\n2,7\n", [[1], [2]], "a", "b: constant: 7"),
    "a column without a value": ("a,b\n1,\n2,NA\n", [[1], [2]], "a", "b: no value"),
    "equal names": ("a,a,b\n4,x,3\n2,y,4\n", [[4, 3], [2, 4]], "a b", "a: text: 'x'"),
    "separators of other lines": ("a,b\n1,x\x0by\n2,x\x85\u2028\x1c\n", [[1], [2]], "a", "b: text"),
}


@pytest.mark.parametrize("name", READ)
def test_a_table_is_read(read, name):
    content, X, columns, left_out = READ[name]
    table = read(content)
    np.testing.assert_array_equal(table.X, X)
    if columns is not None:
        assert table.columns == columns.split()
    found = "; ".join(f"{column}: {reason}" for column, reason in table.left_out)
    assert left_out in found and bool(left_out) == bool(found)


REFUSED = {
    "empty": ("", "is empty"),
    "blank": (" \n\n", "is empty"),
    "a byte order mark alone": (b"\xef\xbb\xbf", "is empty"),
    "a header alone": ("a,b\n", "has a header but no rows"),
    "a short line": ("a,b\n1,2\n3\n", "line 3 has 1 cells, but line 1 has 2"),
    "a long line": ("a,b\n1,2\n3,4,5\n", "line 3 has 3 cells"),
    "text among numbers": ("a,b\n1,2\n3,4\n5,six\n", "text among numbers: 'six' in column 'b'"),
    "an underscore": ("a\n1\n1_000\n3\n", "text among numbers: '1_000' in column 'a', line 3"),
    "digits of another script": ("a\n1\n2\n\u0663\n", "text among numbers"),
    "a control character": ("a\n1\n2\n3\x0b\n", "text among numbers: '3'"),
    "hexadecimal": ("a\n1\n2\n0x1F\n", "text among numbers"),
    "thousands": ('a,b\n1,2\n3,"4,000"\n5,6', "text among numbers: '4,000'"),
    "a decimal comma between commas": ('a,b\n1,2\n3,"4,5"\n5,6', "text among numbers: '4,5'"),
    "both decimal marks": ("a;b\n1,5;2\n2.5;3\n", "decimal commas ('1,5' in column 'a', line 2)"),
    "infinity": ("a,b\n1,inf\n2,3\n", "'inf' in column 'b', line 2: numbers may be up to 1e+100"),
    "1e200": ("a\n1\n1e200\n", "'1e200' in column 'a', line 3"),
    "1e999": ("a\n1\n-1e999\n", "'-1e999' in column 'a', line 3"),
    "1e-200": ("a\n1e-200\n2e-200\n", "differ by 1e-200 at most: give it in other units"),
    "a cell of 1,000 digits": ("a\n1\n" + "9" * 1000, "'9999999999999999999999999999999999999...'"),
    "a cell of 200,000 digits": ("a\n1\n" + "9" * 200_000, "line 3 cannot be read: field larger"),
    "an open quote": ('a,b\n"1,2\n3,4\n', "cannot be read: unexpected end of data"),
    "a quote within": ('a,b\n"1"2,3\n', "line 2 cannot be read: ',' expected after '\"'"),
    "constant": ("a,b\n1,2\n1,2\n", "no column of numbers that differ: 'a' (constant: 1); 'b' ("),
    "one row": ("a,b\n1,2\n", "no column of numbers that differ"),
    "holes alone": ("a,b\n,\nNA,?\n", "no column of numbers that differ: 'a' (no value)"),
    "words": ("x y\n1 2\n3 4\n", "text: '1 2'). Cells are to be separated by commas"),
    "many columns of words": ("a" + ",b" * 25 + "\nx" + ",x" * 25, "6 more"),
    "utf-16": ("a\n1\n".encode("utf-16"), "is not a text file in UTF-8"),
    "latin-1": ("ä\n1\n2\n".encode("latin-1"), "is not a text file in UTF-8"),
    "binary": (bytes(range(256)) * 40, "is not a text file in UTF-8"),
    "null bytes": (b"a,b\n1,2\n\0\0,3\n", "holds null bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_is_refused_in_one_sentence(read, name):
    content, message = REFUSED[name]
    with pytest.raises(TableError) as error:
        read(content)
    assert message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 2000


def test_files_that_are_no_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    for path, message in {
        "pipe": "pipe is not a regular file",
        "/dev/zero": "/dev/zero is not a regular file",
        ".": ". cannot be read: Is a directory",
        "none.csv": f"none.csv does not exist \\(looked in {tmp_path}\\)",
        "loop": "loop cannot be read: Too many levels",
        "x" * 300: "cannot be read: File name too long",
        "a\0b": "a\\\\x00b cannot be read: embedded null",
        "a\udcffb": "does not exist",
    }.items():
        with pytest.raises(TableError, match=message):
            read_table(path)


def test_a_table_longer_than_its_head_is_read_to_its_end(read, monkeypatch):
    monkeypatch.setattr(csv_table, "_HEAD", 10)
    X = np.arange(300.0).reshape(100, 3) + 0.5
    content = "\n".join(";".join(str(cell).replace(".", ",") for cell in row) for row in X)
    np.testing.assert_array_equal(read(content).X, X)


def test_the_summary_says_all(read):
    table = read("id,a,b,city\n1,2,,Rome\n2,4,5,Oslo\n3,5,6,Rome\n")
    assert table.summary.splitlines() == [
        "Names of columns: from the first line.",
        "Left out: 'id' (an index); 'city' (text: 'Rome').",
        "Missing and marginalised: 1 cells (17 %).",
    ]
    assert read("5,2\n3,4\n").summary == "No header.\n"


def test_paths_are_shown_on_one_line():
    assert printable("gr\u00fc\u00dfe.csv") == "gr\u00fc\u00dfe.csv"
    assert printable("a\nb\udcff\x1b[31m") == "a\\nb\\udcff\\x1b[31m"
