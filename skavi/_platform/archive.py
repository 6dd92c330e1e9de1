"""Files that cannot run code: a zip of one JSON header and plain arrays, replaced atomically.

Nothing is unpickled and nothing is compressed. The archive's comment is the SHA-256 of all bytes
before it, which detects damage. A forged file can still have a right checksum, so declared sizes,
types and names of arrays are checked against the file before memory is allocated.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import re
import stat
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

_HEADER = "header.json"
_DIGEST = len(hashlib.sha256().hexdigest())
_NAME = re.compile(r"[A-Za-z0-9_]+([./-][A-Za-z0-9_]+)*")
_KINDS = {"|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"}
#: Bytes (64 GiB): a file that claims more is refused before memory is allocated.
_LARGEST = 1 << 36
#: Bytes (1 MiB) read at once for the checksum. Not measured: order of magnitude.
_CHUNK = 1 << 20
#: Seconds (an hour): no write takes so long, so the process that left the temporary file has
#: ended.
_OLD = 3600.0
#: The earliest date that a zip can hold, so that equal contents give equal bytes.
_EPOCH = (1980, 1, 1, 0, 0, 0)
#: Flags of os.open: create a file, fail if it exists, and translate no line ends on Windows.
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)

_NOT_REGULAR = "Not a regular file: a device, pipe or socket is neither read nor replaced"

# Temporary files that this process is writing, and a counter for their names.
_under_way: set[str] = set()
_numbers = itertools.count()


class DamagedFileError(ValueError):
    """A file is not an archive of skavi, or is incomplete or altered."""


# --- writing ----------------------------------------------------------------------------------


def write_archive(path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a header and arrays to `path`; after any failure the previous file is intact.

    Parameters
    ----------
    path : str or PathLike
        Its folder must exist. The file can be read by its owner alone (mode 0600).
    header : dict
        JSON values; floats that are not finite are allowed.
    arrays : dict of str to ndarray
        Booleans, integers and floats of 2 to 8 bytes, in any layout.

    Raises
    ------
    OSError
        If the file cannot be written: no space, no permission, no folder, not a regular file.
    TypeError
        If the header or an array is of a kind that the format does not hold.
    """
    plain = {name: _to_plain(name, array) for name, array in arrays.items()}
    declared = {name: {"dtype": a.dtype.str, "shape": a.shape} for name, a in plain.items()}
    text = json.dumps({"header": header, "arrays": declared}).encode()
    with replacing(path) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _add(archive, _HEADER, len(text)).write(text)
            for name, array in plain.items():
                with _add(archive, f"{name}.npy", array.nbytes) as member:
                    np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            archive.comment = b"0" * _DIGEST
        digest = _digest(file)
        file.seek(-_DIGEST, os.SEEK_END)
        file.write(digest)


def _to_plain(name, array):
    array = np.asarray(array)
    array = np.ascontiguousarray(array).reshape(array.shape)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.dtype.str not in _KINDS:
        raise TypeError(f"{name} has dtype {array.dtype}: only booleans, integers and floats do.")
    if not _NAME.fullmatch(name):
        raise TypeError(f"{name!r} is no name for an array.")
    return array


def _add(archive, name, size):
    # With a fixed date, equal contents give equal bytes.
    info = zipfile.ZipInfo(name, _EPOCH)
    return archive.open(info, "w", force_zip64=size > _LARGEST >> 6)


@contextlib.contextmanager
def replacing(path) -> Iterator[IO[bytes]]:
    """Yield a new file that replaces `path` when the body ends without an error.

    It is written beside the target, flushed to the disk and renamed to the target, and the rename
    is flushed, too. If the body or the disk fails, the temporary file is removed and the target is
    unchanged. Temporary files of killed processes are removed. Every OSError names `path`.
    """
    with _naming(path):
        target = _replaceable(path)
        temporary = target.with_name(f".{target.name}.{os.getpid()}-{next(_numbers)}.tmp")
        _under_way.add(str(temporary))
        try:
            _clear_stale(target)
            descriptor = os.open(temporary, _NEW, 0o600)
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _flush_folder(target.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        finally:
            _under_way.discard(str(temporary))


def _replaceable(path) -> Path:
    """Return what a path leads to, if that is a regular file, or nothing yet."""
    target = Path(os.path.realpath(path))
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(target).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, _NOT_REGULAR, str(path))
    return target


@contextlib.contextmanager
def _naming(path) -> Iterator[None]:
    """Let every OSError of the body name the user's path, not that of a temporary file."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def check_writable(path) -> None:
    """Raise an OSError if `path` cannot be replaced, without changing the file there."""
    with contextlib.suppress(_Enough), replacing(path) as file:
        file.write(b"0")
        file.flush()
        os.fsync(file.fileno())
        raise _Enough


def remove(path) -> None:
    """Remove `path`, if it exists, and the temporary files that killed writers of it have left."""
    target = Path(os.path.realpath(path))
    target.unlink(missing_ok=True)
    _clear_stale(target)
    _flush_folder(target.parent)


class _Enough(Exception):
    """Raised in the body of `replacing` to leave the file unchanged."""


def _flush_folder(folder):
    # Some file systems cannot flush a folder; the file itself is complete and in place.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _clear_stale(target):
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)-\d+\.tmp")
    for name in os.listdir(target.parent):
        found = pattern.fullmatch(name)
        if found and _is_stale(target.parent / name, int(found.group(1))):
            with contextlib.suppress(OSError):
                os.unlink(target.parent / name)


def _is_stale(temporary, process):
    """Say whether the process that created a temporary file has ended."""
    if str(temporary) in _under_way:
        return False
    if process == os.getpid():  # an earlier process had this number
        return True
    if os.name == "posix":
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
    with contextlib.suppress(OSError):
        return time.time() - os.stat(temporary).st_mtime > _OLD
    return False


# --- reading ----------------------------------------------------------------------------------


def read_archive(path, max_bytes: int = _LARGEST) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the header and the arrays of a file that `write_archive` wrote.

    Parameters
    ----------
    path : str or PathLike
    max_bytes : int, default=2**36
        The largest file that is read.

    Raises
    ------
    DamagedFileError
        If the file is of another kind, or any bit of it was changed.
    OSError
        If it cannot be read.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, _NOT_REGULAR, str(path))
        size = status.st_size
        if size > max_bytes:
            raise DamagedFileError(f"{path} has {size} bytes, more than the {max_bytes} allowed.")
        try:
            return _read(file, size)
        except DamagedFileError as error:
            raise DamagedFileError(
                f"{path} is damaged, or not a file of skavi's: {error}"
            ) from None
        except OSError:
            raise
        except Exception as error:  # any error of zipfile, json or numpy on forged bytes
            kind = type(error).__name__
            raise DamagedFileError(
                f"{path} is damaged, or not a file of skavi's: {kind}."
            ) from error


def _open_at_once(path, flags):
    """Open a file without waiting, as a fifo makes a reader wait for somebody who writes."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read(file, size):
    if size < _DIGEST:
        raise DamagedFileError("it is too short.")
    digest = _digest(file)
    file.seek(-_DIGEST, os.SEEK_END)
    if file.read() != digest:
        raise DamagedFileError("its checksum does not match.")
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        stored = sum(info.file_size for info in members.values())
        if len(members) < len(archive.infolist()) or stored > size:
            raise DamagedFileError("it declares more than it holds.")
        if any(i.compress_type or i.compress_size != i.file_size for i in members.values()):
            raise DamagedFileError("it has compressed members.")
        envelope = json.loads(archive.read(_HEADER))
        declared = envelope["arrays"]
        if members.keys() != {_HEADER, *(f"{name}.npy" for name in declared)}:
            raise DamagedFileError("its members are not those that its header names.")
        arrays = {
            name: _read_array(archive, members[f"{name}.npy"], **kind)
            for name, kind in declared.items()
        }
        return envelope["header"], arrays


def _read_array(archive, info, dtype, shape):
    """Read one array, if its size in the file agrees with its header and its declaration."""
    if dtype not in _KINDS or not all(type(n) is int and n >= 0 for n in shape):
        raise DamagedFileError(f"{info.filename} is declared as {dtype} of shape {shape}.")
    with archive.open(info) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise DamagedFileError(f"{info.filename} has another version.")
        found = np.lib.format.read_array_header_1_0(member)
        length = member.tell() + math.prod(shape) * np.dtype(dtype).itemsize
        if found != (tuple(shape), False, np.dtype(dtype)) or length != info.file_size:
            raise DamagedFileError(f"{info.filename} is not as declared: {dtype} of {shape}.")
    with archive.open(info) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _digest(file):
    """Return the SHA-256 of all but the last `_DIGEST` bytes, in hexadecimal digits."""
    left = file.seek(0, os.SEEK_END) - _DIGEST
    file.seek(0)
    digest = hashlib.sha256()
    while left > 0:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
            break
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest().encode()
