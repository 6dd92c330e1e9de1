"""Functions of rows in blocks: the function's own values, and equal rows equal to the last bit."""

import pytest
import torch

from skavi._data import blockwise
from skavi._data.blockwise import evaluate_blockwise

SIZE = 16


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blockwise, "_SIZES", {"cpu": SIZE})


def rows(n):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, SIZE, 2 * SIZE, 2 * SIZE + 1, 5 * SIZE - 1])
def test_every_row_is_evaluated_in_its_place(n):
    X, seen = rows(n), []

    def function(part):
        seen.append(len(part))
        return torch.stack([part.sum(1), part.prod(1)], 1)

    torch.testing.assert_close(
        evaluate_blockwise(function, X), torch.stack([X.sum(1), X.prod(1)], 1), rtol=0, atol=1e-15
    )
    assert max(seen) <= SIZE


def test_equal_rows_are_equal_even_where_the_place_in_a_block_matters():
    def by_place(part):
        return part.sum(1, keepdim=True) + 1e-15 * torch.arange(len(part)).unsqueeze(1)

    distinct = rows(SIZE + 3)
    outputs = evaluate_blockwise(by_place, torch.cat([distinct] * 4))
    one, *others = outputs.split(len(distinct))
    assert all(torch.equal(other, one) for other in others)


def test_blocks_have_one_shape_where_the_place_does_not_matter():
    shapes = []

    def function(part):
        shapes.append(len(part))
        return 2 * part

    X = rows(4 * SIZE + 5)
    assert torch.equal(evaluate_blockwise(function, X), 2 * X)
    assert set(shapes) == {SIZE} and len(shapes) == 1 + 5  # a block to see, then all rows
