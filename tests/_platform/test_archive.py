"""Archives hold what was put in, or are refused; a write that fails leaves what was there."""

import errno
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from skavi._platform.archive import (
    DamagedFileError,
    _digest,
    check_writable,
    read_archive,
    remove,
    replacing,
    write_archive,
)

HEADER = {"kind": "test", "numbers": [1, 0.1, float("inf")], "nested": {"none": None}}
ARRAYS = {
    "table": np.arange(6.0).reshape(2, 3),
    "solver/flags": np.array([True, False]),
    "empty": np.empty((0, 4)),
    "scalar": np.array(2.5, dtype=np.float32),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "archive.skavi"
    write_archive(path, HEADER, ARRAYS)
    return path


def assert_holds(path, header, arrays):
    found_header, found = read_archive(path)
    assert found_header == header and list(found_header) == list(header)  # in the same order
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_what_is_written_is_read(path):
    assert_holds(path, HEADER, ARRAYS)
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_same_content_is_the_same_bytes(path, tmp_path):
    write_archive(tmp_path / "again", HEADER, ARRAYS)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_layouts_and_byte_orders_are_read_as_values(tmp_path):
    values = np.arange(6.0).reshape(2, 3)
    arrays = {
        "fortran": np.asfortranarray(values),
        "strided": values[:, ::-2],
        "big": values.astype(">f8"),
    }
    write_archive(tmp_path / "a", {}, arrays)
    _, found = read_archive(tmp_path / "a")
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        found[name][...] = 0.0  # writable


def test_any_tool_opens_an_archive(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        np.testing.assert_array_equal(np.load(archive.open("table.npy")), ARRAYS["table"])


@pytest.mark.parametrize("bit", [0, pytest.param(range(8), marks=pytest.mark.nightly)], ids=str)
def test_every_flipped_bit_is_refused(path, tmp_path, bit):
    good, torn = path.read_bytes(), tmp_path / "torn"
    for position in range(len(good)):
        for one in bit if isinstance(bit, range) else [(bit + position) % 8]:
            bad = bytearray(good)
            bad[position] ^= 1 << one
            torn.write_bytes(bad)
            with pytest.raises(DamagedFileError, match="torn is damaged"):
                read_archive(torn)


def test_every_truncation_and_extension_is_refused(path, tmp_path):
    good, torn = path.read_bytes(), tmp_path / "torn"
    for length in range(len(good)):
        torn.write_bytes(good[:length])
        with pytest.raises(DamagedFileError):
            read_archive(torn)
    torn.write_bytes(good + b"0")
    with pytest.raises(DamagedFileError):
        read_archive(torn)


class Bomb:
    """A pickle that would run code."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


def forged(members, compression=zipfile.ZIP_STORED):
    """Return the bytes of an archive with these members and a checksum that matches."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
        archive.comment = b"0" * 64
    digest = _digest(file)
    return file.getvalue()[:-64] + digest


def npy(array, allow_pickle=False):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, (1, 0), allow_pickle)
    return file.getvalue()


def header(**arrays):
    return "header.json", json.dumps({"header": {}, "arrays": arrays})


ONE = {"dtype": "<f8", "shape": [1]}
HUGE = {"dtype": "<f8", "shape": [10**12]}
_SHORT, _LONG = b"(1,), }            ", b"(1000000000000,), }"
assert _SHORT in npy(np.ones(1))
FORGED = {
    "no header": [("a.npy", npy(np.ones(1)))],
    "a header that is no object": [("header.json", "[1]")],
    "deep nesting": [("header.json", "[" * 100_000)],
    "an array missing": [header(a=ONE)],
    "an array too many": [header(), ("a.npy", npy(np.ones(1)))],
    "a member twice": [header(a=ONE), ("a.npy", npy(np.ones(1))), ("a.npy", npy(np.ones(1)))],
    "another shape": [header(a=ONE), ("a.npy", npy(np.ones(2)))],
    "another dtype": [header(a=ONE), ("a.npy", npy(np.ones(1, np.int64)))],
    "more than there is": [header(a=HUGE), ("a.npy", npy(np.ones(1)))],
    "a huge shape in both": [
        header(a=HUGE),
        ("a.npy", npy(np.ones(1)).replace(_SHORT, _LONG)),
    ],
    "a negative shape": [header(a={"dtype": "<f8", "shape": [-1]}), ("a.npy", npy(np.ones(1)))],
    "objects": [
        header(a={"dtype": "|O", "shape": [1]}),
        ("a.npy", npy(np.array([Bomb()], dtype=object), True)),
    ],
    "objects under another name": [
        header(a=ONE),
        ("a.npy", npy(np.array([Bomb()], dtype=object), True)),
    ],
    "a bare pickle": [header(a=ONE), ("a.npy", pickle.dumps(Bomb()))],
    "bytes after an array": [header(a=ONE), ("a.npy", npy(np.ones(1)) + b"0")],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", FORGED)
def test_forgeries_with_a_right_checksum_are_refused_and_run_nothing(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "forged").write_bytes(forged(FORGED[name]))
    with pytest.raises(DamagedFileError):
        read_archive("forged")
    assert os.listdir() == ["forged"]


def test_compressed_members_are_refused(tmp_path):
    zeros = {"dtype": "<f8", "shape": [10_000]}
    members = [header(a=zeros), ("a.npy", npy(np.zeros(10_000)))]
    (tmp_path / "good").write_bytes(forged(members))
    read_archive(tmp_path / "good")  # so the forgeries above fail for their own reason alone
    (tmp_path / "bomb").write_bytes(forged(members, zipfile.ZIP_DEFLATED))
    with pytest.raises(DamagedFileError, match="declares more than it holds"):
        read_archive(tmp_path / "bomb")


def test_a_file_over_the_limit_is_not_read(path):
    with pytest.raises(DamagedFileError, match="more than the 100 allowed"):
        read_archive(path, max_bytes=100)


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": np.array([None])},
        {"a": np.array(["text"])},
        {"a": np.array([1j])},
        {"../a": np.ones(1)},
        {"a b": np.ones(1)},
    ],
)
def test_what_the_format_does_not_hold_is_named_and_nothing_written(path, arrays):
    with pytest.raises(TypeError, match=next(iter(arrays))):
        write_archive(path, {}, arrays)
    assert_holds(path, HEADER, ARRAYS)


FAULTS = {
    "no space": ("fsync", errno.ENOSPC),
    "no permission": ("open", errno.EACCES),
    "read-only": ("replace", errno.EROFS),
    "I/O error": ("fdopen", errno.EIO),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_old_file_survives_a_write_that_fails(path, monkeypatch, fault):
    name, code = FAULTS[fault]

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, name, fail)
        with pytest.raises(OSError) as raised:
            write_archive(path, {}, {"a": np.zeros(1000)})
        if name != "replace":
            with pytest.raises(OSError):
                check_writable(path)
    assert raised.value.errno == code
    assert os.listdir(path.parent) == [path.name]
    assert_holds(path, HEADER, ARRAYS)


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX's")
def test_the_old_file_survives_a_short_write(path):
    """The kernel itself writes 2000 bytes and then no more, as a disk that fills up does."""
    script = f"""
import resource, numpy as np
from skavi._platform.archive import write_archive
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    write_archive({str(path)!r}, {{}}, {{"a": np.zeros(10_000)}})
except OSError as error:
    print("refused", error.errno)
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.stdout == f"refused {errno.EFBIG}\n", process.stderr
    assert os.listdir(path.parent) == [path.name]
    assert_holds(path, HEADER, ARRAYS)


def test_files_of_killed_writers_are_cleared_and_those_of_live_ones_are_not(path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = path.with_name(f".{path.name}.{ended.pid}-0.tmp")
    alive = path.with_name(f".{path.name}.{os.getppid()}-0.tmp")
    others = path.with_name(f".other.{ended.pid}-0.tmp")
    for file in (dead, alive, others):
        file.write_bytes(b"torn")
    write_archive(path, HEADER, ARRAYS)
    assert sorted(os.listdir(path.parent)) == sorted([path.name, alive.name, others.name])
    os.utime(alive, (0, 0))  # a process of that number may be another one by now
    remove(path)
    assert os.listdir(path.parent) == [others.name]
    remove(path)


def test_writers_in_the_same_process_leave_each_other_alone(path):
    with replacing(path) as file:
        file.write(b"first")
        write_archive(path, HEADER, ARRAYS)
        assert_holds(path, HEADER, ARRAYS)
    assert path.read_bytes() == b"first"


def test_a_link_is_written_through(path, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(path)
    write_archive(link, {"kind": "new"}, {})
    assert link.is_symlink()
    assert_holds(path, {"kind": "new"}, {})


def test_a_path_that_cannot_be_written_is_said_to_be(path, tmp_path):
    check_writable(path)
    assert_holds(path, HEADER, ARRAYS)
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_writable(tmp_path / "missing" / "file")
    with pytest.raises(NotADirectoryError):
        check_writable(path / "file")


# --- what is not a regular file -----------------------------------------------------------------


@pytest.fixture(params=["fifo", "socket", "folder", "device"])
def irregular(request, tmp_path):
    """Return a path that leads to something else than a file."""
    path = tmp_path / "thing"
    if request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    elif request.param == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    return path


@pytest.mark.skipif(os.name != "posix", reason="the platform has no such files")
def test_what_is_not_a_regular_file_is_neither_replaced_nor_read(irregular):
    mode = os.stat(irregular).st_mode
    for call in (check_writable, read_archive, lambda path: write_archive(path, {}, {})):
        with pytest.raises(OSError) as caught:
            call(irregular)
        assert caught.value.filename == str(irregular)
    assert os.stat(irregular).st_mode == mode
    assert list(irregular.parent.iterdir()) == [irregular]


def test_errors_name_the_users_path(tmp_path):
    path = tmp_path / "missing" / "fit.skavi"
    for call in (check_writable, lambda path: write_archive(path, {}, {})):
        with pytest.raises(FileNotFoundError) as caught:
            call(path)
        assert caught.value.filename == str(path)
