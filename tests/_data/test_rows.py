"""Rows that stand for all others."""

import math

import numpy as np
import pytest
import scipy.sparse
import torch

from skavi._data.rows import Rows
from skavi._data.sparse_rows import SparseRows


def _table(n):
    weights = torch.as_tensor(np.random.default_rng(0).uniform(0.5, 4.0, n))
    return Rows(torch.arange(float(n)).double()[:, None], weights)


def test_representatives_weigh_as_much_as_all_and_each_by_its_own_weight():
    """In proportion to the weights they came with; spread evenly, ends included."""
    rows = _table(5000)
    few = rows.thinned()
    index = few.X[:, 0].long()
    assert len(few) == 2000
    assert (index[0], index[-1]) == (0, 4999)
    assert int(index.diff().max()) <= 3
    total, own = float(rows.weights.sum()), rows.weights[index]
    torch.testing.assert_close(few.weights, own * total / own.sum(), rtol=1e-12, atol=0)


def test_few_rows_stand_for_themselves_and_series_are_cut_off():
    rows = _table(2000)
    assert rows.thinned() is rows
    few = _table(2001).first()
    torch.testing.assert_close(few.weights, _table(2001).weights[:2000], rtol=0, atol=0)
    assert few.X[-1] == 1999


# --- equal rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
def test_equal_rows_are_merged_in_their_order_with_summed_weights(sparse):
    """The patterns appear as b, a, c; missing cells are values like others, and -0.0 is 0.0."""
    a, b, c = [0.0, 1.0, 2.0], [3.0, 0.0, 1.0], [0.0, 2.0, 0.0 if sparse else math.nan]
    X = torch.tensor([b, a, b, c, a, [-0.0, 1.0, 2.0], b, c], dtype=torch.float64)
    weights = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8], dtype=torch.float64)
    table = SparseRows.from_scipy(scipy.sparse.csr_array(X.numpy())) if sparse else X
    merged = Rows(table, weights).merged()
    found = merged.X.dense() if sparse else merged.X
    expected = torch.tensor([b, a, c], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert merged.weights.tolist() == [11.0, 13.0, 12.0]


def test_rows_of_which_few_repeat_stay_as_they_are():
    rows = _table(200)
    X = torch.cat([rows.X, rows.X[:10]])
    assert Rows(X, torch.ones(210).double()).merged().X is X
    assert rows.merged() is rows


def test_a_few_rows_of_many_show_that_all_repeat():
    """Every row is there twice, far from its equal: 10,000 of 40,000 rows hold thousands."""
    half = torch.randn(20_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    merged = Rows(torch.cat([half, half]), torch.ones(40_000).double()).merged()
    torch.testing.assert_close(merged.X, half, rtol=0, atol=0)
    assert bool((merged.weights == 2).all())
