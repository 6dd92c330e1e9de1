"""Planted bugs of numbers: each is caught by the test that `planted_bugs.py` names.

The project is copied, one line of the copy is changed, and the test run there: it must fail, and
not for want of the test.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from planted_bugs import BUGS

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("skavi", "tests", "benchmarks", "setup.cfg", "pyproject.toml", "README.md")
FAILED = 1  # pytest's exit code where tests failed, and not their collection or their name


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    for part in PARTS:
        copied = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copied(ROOT / part, folder / part)
    return folder


@pytest.mark.parametrize("name", BUGS)
def test_lines_to_change_are_there_once(name):
    bug = BUGS[name]
    assert (ROOT / "skavi" / bug.file).read_text().count(bug.right) == 1
    assert (ROOT / "tests" / bug.test.split("::")[0]).exists()


@pytest.mark.nightly
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name, copy):
    bug = BUGS[name]
    path = copy / "skavi" / bug.file
    before = path.read_text()
    path.write_text(before.replace(bug.right, bug.wrong))
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not nightly", f"tests/{bug.test}"],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
    finally:
        path.write_text(before)
    assert run.returncode == FAILED, run.stdout[-3000:]
