"""A type checker passes on README's and the tutorials' code, and knows what methods return."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.rst"))
RIGHT = """
from typing import assert_type

import numpy as np
import pandas as pd

import skavi
from skavi import AmortizedVI, FactorizedVI, Imputer
from skavi.diagnostics import linear_response
from skavi.models import FactorAnalysis
from skavi.posterior import GlobalPosterior, LatentPosterior

X = np.zeros((3, 2))
frame = pd.DataFrame(X)
vi = FactorizedVI(FactorAnalysis(1)).fit(frame)
assert_type(vi, FactorizedVI)
assert_type(AmortizedVI().partial_fit(X), AmortizedVI)
assert_type(vi.elbo_, float)
assert_type(vi.converged_, bool)
assert_type(vi.posterior(X), LatentPosterior)
assert_type(vi.global_posterior_, GlobalPosterior)
assert_type(vi.score(X), float)
Z: "np.ndarray" = vi.transform([[1.0, 2.0]])
filled, sd = vi.impute(frame, return_sd=True)
width: int = vi.impute(frame).shape[1]
rows, latents = vi.sample(3, random_state=0)
low: "np.ndarray" = vi.posterior(X).quantile(0.05)
draws: "np.ndarray" = vi.global_posterior_.sample(10)["loadings"]
table: pd.DataFrame = vi.global_posterior_.to_frame("loadings")
total: float = skavi.amortization_gap(AmortizedVI().fit(X), X, vi).total
closable: bool = skavi.can_close_gap(FactorAnalysis(1)).closable
text: str = repr(vi.summary())
more: "np.ndarray" = Imputer().fit(X).transform(X)
"""

WRONG = """
import skavi

vi = skavi.FactorizedVI().fit([[1.0]])
vi.transform(3.5).no_such_method()
vi.sample("three")
skavi.can_close_gap("Wave")
vi.posterior([[1.0]]).means
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Return what mypy says of each page, and of right and wrong uses, by module."""
    folder = tmp_path_factory.mktemp("typed")
    sources = code_of_pages() | {"right": RIGHT, "wrong": WRONG}
    for name, text in sources.items():
        (folder / f"{name}.py").write_text(text)
    # With the settings and in the place of the everyday check, whose cache of our modules serves.
    command = [sys.executable, "-m", "mypy", "--config-file", "setup.cfg", "--no-error-summary"]
    paths = [str(folder / f"{name}.py") for name in sources]
    done = subprocess.run([*command, *paths], cwd=ROOT, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    found = {name: [] for name in sources}
    for line in done.stdout.splitlines():
        place = re.match(r".*?(\w+)\.py:\d+: error: (.*)", line)
        if place:
            found.setdefault(place[1], []).append(line)
    return found


def code_of_pages():
    """Return README's blocks as a module, and each tutorial's."""
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    pages = {"readme": "".join(blocks)}
    for page in PAGES:
        examples = doctest.DocTestParser().get_examples(page.read_text())
        pages[f"page_{page.stem}"] = "".join(example.source for example in examples)
    return pages


def test_a_checker_passes_on_the_code_of_pages(said):
    assert len(said) > 5 and not {*said} - {*code_of_pages(), "right", "wrong"}
    assert not [line for name, lines in said.items() if name != "wrong" for line in lines]


def test_mistakes_are_found(said):
    text = "\n".join(said["wrong"])
    for mistake in ('"no_such_method"', '"str"; expected "int"', "LatentVariableModel", '"means"'):
        assert mistake in text
