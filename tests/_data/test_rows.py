"""Rows that stand for all others."""

import numpy as np
import torch

from skavi._data.rows import Rows


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
