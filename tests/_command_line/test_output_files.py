"""Nothing is overwritten unasked, the input never, by whatever path."""

import os
import stat

import pytest

from skavi._command_line.output_files import OutputError, check_outputs, free_name, write


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in a folder with an input, other names of it, a file, and what is no file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("input")
    (tmp_path / "old.csv").write_text("old")
    (tmp_path / "sub").mkdir()
    os.symlink("in.csv", "link.csv")
    os.link("in.csv", "hard.csv")
    os.symlink("nowhere.csv", "dangling.csv")
    os.mkfifo("pipe")
    before = _contents(tmp_path)
    yield tmp_path
    assert {name: text for name, text in _contents(tmp_path).items() if name in before} == before


def _contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): path.read_text() for path in files if path.stem != "mine"}


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("in.csv", "is the input file: choose another name"),
        ("./sub/../in.csv", "is the input file"),
        ("link.csv", "is the input file"),
        ("hard.csv", "is the input file"),
        ("sub", "exists|not a regular file"),
        ("pipe", "exists|not a regular file"),
        ("/dev/null", "exists|not a regular file"),
        ("no/z.csv", "cannot be written: No such file"),
        ("in.csv/z.csv", "cannot be written: Not a directory"),
        ("", "cannot be written: No such file"),
        ("x" * 300, "cannot be written: File name too long"),
        ("a\0b", "cannot be written: no file has such a name"),
    ],
)
def test_what_cannot_be_an_output_is_refused(path, message, force):
    with pytest.raises(OutputError, match=f"^--output .*({message})"):
        check_outputs({"--output": path}, "in.csv", force)


@pytest.mark.parametrize("path", ["old.csv", "dangling.csv"])
def test_what_exists_is_refused_without_force(path):
    with pytest.raises(OutputError, match=f"--output {path} exists: .* by --force"):
        check_outputs({"--output": path}, "in.csv", force=False)
    with pytest.raises(OutputError, match="exists by now"):
        write("--output", path, b"new", force=False)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("other", ["mine.png", "./mine.png", "sub/../mine.png"])
def test_two_outputs_are_two_files(folder, other, force):
    outputs = {"--output": "mine.png", "--figure": other}
    with pytest.raises(OutputError, match=r"--output mine.png and --figure .* are one file"):
        check_outputs(outputs, "in.csv", force)
    (folder / "mine.png").write_text("")
    os.link("mine.png", "sub/mine.png")
    with pytest.raises(OutputError, match=r"are one file|exists"):
        check_outputs({"--output": "mine.png", "--figure": "sub/mine.png"}, None, force)


def test_a_check_leaves_nothing_behind(folder):
    names = sorted(os.listdir())
    check_outputs({"--output": "z.csv", "--figure": "sub/z.png"}, "in.csv", force=False)
    check_outputs({"--output": "old.csv"}, None, force=True)
    assert sorted(os.listdir()) == names and not os.listdir("sub")


def test_a_file_is_written_and_overwritten_with_force_alone(folder):
    mine = folder / "mine.csv"
    write("--output", "mine.csv", b"new", force=False)
    assert mine.read_bytes() == b"new" and stat.S_IMODE(mine.stat().st_mode) != 0o600
    with pytest.raises(OutputError, match=r"mine.csv exists by now: it is left alone"):
        write("--output", "mine.csv", b"newer", force=False)
    assert mine.read_bytes() == b"new"
    write("--output", "mine.csv", b"newest", force=True)
    assert mine.read_bytes() == b"newest"
    with pytest.raises(OutputError, match=r"sub cannot be written: Is a directory"):
        write("--output", "sub", b"new", force=True)


def test_of_a_full_disk_no_half_file_is_left(folder):
    os.symlink("/dev/full", "mine.csv")
    with pytest.raises(OutputError, match=r"mine.csv cannot be written: No space left"):
        write("--output", "mine.csv", b"new", force=True)
    assert not os.path.lexists("mine.csv")


def test_a_default_name_gives_way(folder):
    assert free_name("skavi.png", ["in.csv"], force=False) == "skavi.png"
    assert free_name("old.csv", ["in.csv"], force=False) == "old-2.csv"
    assert free_name("old.csv", ["in.csv"], force=True) == "old.csv"
    (folder / "old-2.csv").write_text("")
    assert free_name("old.csv", ["old-3.csv"], force=False) == "old-4.csv"
    assert free_name("in.csv", ["link.csv"], force=True) == "in-2.csv"
    (folder / "old-2.csv").unlink()
