"""What tests of displays share: figures without a screen, closed at the end, and a fit to draw."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from skavi import FactorizedVI
from skavi.models import FactorAnalysis


@pytest.fixture(autouse=True)
def figures_closed():
    yield
    plt.close("all")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def table():
    """Return 80 rows of five columns that two latents move."""
    rng = np.random.default_rng(0)
    moved = rng.normal(size=(80, 2)) @ rng.normal(size=(2, 5))
    return pd.DataFrame(moved + 0.5 * rng.normal(size=(80, 5)), columns=list("abcde"))


@pytest.fixture(scope="module")
def plane(table):
    return FactorizedVI(FactorAnalysis(2, noise="diagonal"), random_state=0).fit(table)
