"""Weights are counts: shares are told, counts are not."""

import warnings

import numpy as np
import pytest

from skavi import FactorizedVI
from skavi.diagnostics import SampleWeightWarning
from skavi.models import LinearModel

X = np.random.default_rng(0).normal(2.0, 1.0, size=(30, 1))
SHARES = np.random.default_rng(1).dirichlet(np.ones(30))


@pytest.mark.parametrize("weights", [SHARES, 2.9 * SHARES, list(SHARES)])
def test_shares_are_told(weights):
    vi = FactorizedVI(LinearModel())
    with pytest.warns(SampleWeightWarning, match=r"sums to (1|2.9) over 30 rows. Weights"):
        vi.fit(X, sample_weight=weights)
    with pytest.warns(SampleWeightWarning):
        vi.partial_fit(X, sample_weight=weights)


@pytest.mark.parametrize(
    "weights",
    [None, np.ones(30), np.arange(30) == 3, 30 * SHARES, 3.1 * SHARES, np.full(30, 0.5)],
    ids=["none", "ones", "a mask", "as many as rows", "0.103 a row", "halves"],
)
def test_counts_are_not(weights):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FactorizedVI(LinearModel()).fit(X, sample_weight=weights)
