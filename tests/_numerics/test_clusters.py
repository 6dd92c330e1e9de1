import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from skavi._numerics.clusters import k_means


def _spread(rows, weights, centres):
    return float(weights @ torch.cdist(rows, centres).amin(1) ** 2)


@pytest.fixture(scope="module")
def rows():
    """Ten groups of 30 rows, far apart."""
    rng = np.random.default_rng(0)
    centres = np.repeat(20 * rng.normal(size=(10, 3)), 30, 0)
    return torch.as_tensor(centres + rng.normal(size=(300, 3)))


def test_careful_starts_find_separated_groups(rows):
    """All ten of them from 19 of 20 seeds; plain k-means++ finds them from 11."""
    weights = torch.ones(300, dtype=torch.float64)
    best = KMeans(10, n_init=20, random_state=0).fit(rows.numpy()).inertia_
    found = [
        _spread(rows, weights, k_means(rows, weights, 10, torch.Generator().manual_seed(seed)))
        for seed in range(20)
    ]
    assert np.sum(np.array(found) < 1.01 * best) >= 18


def test_a_row_of_weight_zero_is_not_there(rows):
    """It is drawn by no chance, and moves no centre."""
    weights = torch.ones(300, dtype=torch.float64)
    weights[:30] = 0
    centres = k_means(rows, weights, 9, torch.Generator().manual_seed(0))
    assert torch.cdist(rows[:30], centres).min() > 5
    assert torch.cdist(rows[30:], centres).amin(1).max() < 5


def test_equal_rows_have_one_centre():
    rows, weights = torch.ones(4, 2, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    centres = k_means(rows, weights, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(centres, torch.ones(3, 2, dtype=torch.float64), rtol=0, atol=0)


def test_order_and_repeats_of_rows_change_no_draw(rows):
    """As scikit-learn's check of weights has it: a row of weight 3 is the row three times."""
    generator = torch.Generator().manual_seed(1)
    times = torch.randint(0, 4, (300,), generator=generator)
    repeated = rows.repeat_interleave(times, 0)
    order = torch.randperm(300, generator=generator)
    pairs = (rows[order], times[order].double()), (repeated, torch.ones_like(repeated[:, 0]))
    for seed in range(5):
        one, other = (k_means(*pair, 12, torch.Generator().manual_seed(seed)) for pair in pairs)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
