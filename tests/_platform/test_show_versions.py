"""What is installed is listed by the names of setup.cfg."""

import configparser
import re
from importlib.metadata import version
from pathlib import Path

import skavi
from skavi._platform import show_versions as module

SETUP = configparser.ConfigParser(interpolation=None)
SETUP.read(Path(__file__).parents[2] / "setup.cfg")


def listed(capsys):
    skavi.show_versions()
    return dict(re.findall(r"^ *([\w-]+): (.+)$", capsys.readouterr().out, re.MULTILINE))


def test_every_library_that_is_needed_is_there_with_its_version(capsys):
    found = listed(capsys)
    assert found["skavi"] == skavi.__version__
    needed = re.findall(r"^([\w-]+)", SETUP["options"]["install_requires"], re.MULTILINE)
    assert len(needed) > 5
    for name in needed:
        assert found[name] == version(name)
    assert {"matplotlib", "pandas", "rich"} <= found.keys()


def test_what_is_not_installed_is_said(capsys, monkeypatch):
    asked = ["numpy>=1.26", 'nothing-of-this-name>=2; extra == "all"', 'x; extra == "plot"']
    monkeypatch.setattr(module, "requires", lambda name: asked)
    found = listed(capsys)
    assert found["nothing-of-this-name"] == "not installed" and "x" not in found
    assert found["numpy"] == version("numpy")
