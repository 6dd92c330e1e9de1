"""What is built holds what it should, runs on its own, and can be extended as messages say."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser(interpolation=None)
SETUP.read(ROOT / "setup.cfg")
EXTRAS = SETUP["options.extras_require"]
#: Written when something is built or run here, and in no distribution.
PRODUCTS = ("__pycache__", "_build", "auto_examples", "generated")
NO_SOURCE = (*PRODUCTS, ".git", "*.egg-info", ".*_cache", "build", "dist")

BUILD = "from setuptools import build_meta; build_meta.build_{}('dist')"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build the sdist from a copy of the sources, and the wheel from the sdist, as pip does."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, folder / "copy", ignore=shutil.ignore_patterns(*NO_SOURCE))
    _run([sys.executable, "-c", BUILD.format("sdist")], folder / "copy")
    (sdist,) = (folder / "copy" / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.glob("skavi-*")
    _run([sys.executable, "-c", BUILD.format("wheel")], unpacked)
    (wheel,) = (unpacked / "dist").glob("*.whl")
    return sdist, wheel


def _run(command, folder, **variables):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def sources(*folders):
    """Return the files below some folders that are no products of builds or runs."""
    found = {path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()}
    kept = {p for p in found if not {*PRODUCTS} & {*p.relative_to(ROOT).parts}}
    return {p.relative_to(ROOT).as_posix() for p in kept if "cache" not in p.as_posix()}


@pytest.mark.slow
def test_the_sdist_holds_all_sources_and_the_wheel_the_package_alone(built):
    sdist, wheel = built
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert sources("skavi", "docs", "tests") <= held
    assert {"README.md", "LICENSE", "setup.cfg", "pyproject.toml", "ruff.toml"} <= held
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        said = archive.read(metadata).decode()
    assert names == sources("skavi")
    assert "skavi/py.typed" in names
    for extra in EXTRAS:
        assert f"Provides-Extra: {extra}\n" in said


@pytest.mark.slow
def test_an_installed_wheel_runs_the_blocks_of_readme(built, tmp_path):
    """Where the checkout is not on the path; the libraries it needs are those of this run."""
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    _run([*install, "--target", str(target), str(built[1])], tmp_path)
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    where = "import skavi, sys\nassert skavi.__file__.startswith(sys.argv[1]), skavi.__file__\n"
    (tmp_path / "readme.py").write_text(where + "".join(blocks))
    variables = {"PYTHONPATH": str(target), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    printed = _run([sys.executable, "readme.py", str(target)], tmp_path, **variables)
    assert printed.splitlines()[0].endswith("nats lost by amortizing")
    script = _run([sys.executable, str(target / "bin" / "skavi"), "--help"], tmp_path, **variables)
    assert script.startswith("usage: skavi ")


# --- extras that messages name --------------------------------------------------------------------


def asked_for():
    """Return (file, requirement with its quotes) for all that code, pages and README install."""
    files = [*(ROOT / "skavi").rglob("*.py"), *(ROOT / "docs").rglob("*.rst")]
    files += [*(ROOT / "docs" / "gallery").glob("*.py"), ROOT / "README.md"]
    found = []
    for path in sorted(files):
        text = path.read_text()
        for line in re.findall(r"pip install (.*)", text):
            found += [(path.name, each) for each in re.findall(r'"?[\w.-]+\[\w+\]"?', line)]
        for each in re.findall(r'require\("[\w.]+", ("[^"]+")', text):
            found.append((path.name, each))
    return found


def test_what_messages_say_to_install_exists_and_is_quoted():
    asked = asked_for()
    assert len(asked) > 15
    needed = "\n".join([*EXTRAS.values(), SETUP["options"]["install_requires"]])
    for name, requirement in asked:
        # Unquoted brackets are a pattern to zsh.
        assert requirement[0] == requirement[-1] == '"', (name, requirement)
        package, _, extra = requirement.strip('"]').partition("[")
        if package in ("skavi", "."):
            # "skavi[plot]" serves a checkout, too, as pip finds what is installed already; a dot is
            # only for pages about the checkout.
            assert extra in EXTRAS and (package == "skavi" or not name.endswith(".py")), name
        else:
            assert re.search(rf"^{re.escape(package)}\b", needed, re.MULTILINE), (name, requirement)


def test_extras_of_messages_made_up_of_parts_exist():
    """Those of the command, whose extra stands apart from its sentence."""
    text = (ROOT / "skavi" / "__main__.py").read_text()
    used = re.findall(r"_EXTRA % '(\w+)'", text)
    assert used and set(used) <= EXTRAS.keys()


def test_every_extra_is_documented_by_what_it_holds():
    everything = EXTRAS["all"].split()
    for extra in ("plot", "progress", "arviz", "parquet"):
        assert f"%({extra})s" in everything
