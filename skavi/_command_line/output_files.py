"""Files that the command writes: it overwrites nothing unasked, and never its input."""

import contextlib
import itertools
import os

from skavi._command_line.table import printable


class OutputError(ValueError):
    """A file is not to be written or cannot be; the message says which and why."""


def check_outputs(outputs, source, force):
    """Refuse outputs that cannot be written, or would replace something.

    Parameters
    ----------
    outputs : dict of str to str
        Path by the option that names it.
    source : str or None
        Input, which is never overwritten.
    force : bool
        Whether other files may be.

    Raises
    ------
    OutputError
    """
    for option, path in outputs.items():
        if "\0" in path:
            raise OutputError(f"{_named(option, path)} cannot be written: no file has such a name.")
        if source is not None and _is_same(path, source):
            raise OutputError(f"{_named(option, path)} is the input file: choose another name.")
        if os.path.lexists(path) and not force:
            raise OutputError(
                f"{_named(option, path)} exists: choose another name, or overwrite it by --force."
            )
        if os.path.exists(path) and not os.path.isfile(path):
            raise OutputError(f"{_named(option, path)} is not a regular file.")
    for (option, path), (other, other_path) in itertools.combinations(outputs.items(), 2):
        if _is_same(path, other_path):
            raise OutputError(
                f"{_named(option, path)} and {_named(other, other_path)} are one file: choose two."
            )
    for option, path in outputs.items():
        _require_writable(option, path)


def free_name(path, taken, force):
    """Return `path`, or the first of path-2, path-3, ... that exists not yet and is not taken.

    Parameters
    ----------
    path : str
    taken : list of str
        Other files of the command: input and outputs.
    force : bool
        Whether a file that exists may be overwritten.

    Returns
    -------
    str
    """
    stem, ending = os.path.splitext(path)
    names = itertools.chain([path], (f"{stem}-{i}{ending}" for i in itertools.count(2)))
    return next(
        name
        for name in names
        if (force or not os.path.lexists(name)) and not any(_is_same(name, t) for t in taken)
    )


def write(option, path, content, force):
    """Write bytes to a file; one that has appeared meanwhile is overwritten with `force` alone.

    Raises
    ------
    OutputError
    """
    try:
        with open(path, "wb" if force else "xb") as file:
            try:
                file.write(content)
                file.flush()
            except OSError:
                os.unlink(path)  # rather none than half of it
                raise
    except FileExistsError:
        raise OutputError(f"{_named(option, path)} exists by now: it is left alone.") from None
    except OSError as error:
        raise OutputError(f"{_named(option, path)} cannot be written: {error.strerror}.") from None


def _named(option, path):
    return f"{option} {printable(path)}"


def _is_same(path, other):
    """Say whether two paths are or will be one file, by links too."""
    with contextlib.suppress(OSError):
        return os.path.samefile(path, other)
    return os.path.realpath(path) == os.path.realpath(other)


def _require_writable(option, path):
    try:
        if os.path.lexists(path):
            open(path, "r+b").close()
        else:
            open(path, "xb").close()
            os.unlink(path)
    except OSError as error:
        raise OutputError(f"{_named(option, path)} cannot be written: {error.strerror}.") from None
