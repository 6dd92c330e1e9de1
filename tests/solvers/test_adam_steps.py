"""One step of Adam against torch's own optimiser, and rows that are moved on their own."""

import pytest
import torch

from skavi.solvers._adam_steps import move_rows, move_whole

RATE, N_STEPS = 0.1, 5
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def gradients(dtype, n_rows=4):
    """Return one gradient a step."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N_STEPS, n_rows, 3, generator=generator, dtype=torch.float64).to(dtype)


def reference(start, slopes, lengths=1.0):
    """Return where torch's Adam, which descends, gets from departures of zero."""
    departure = torch.nn.Parameter(torch.zeros_like(start))
    optimiser = torch.optim.Adam([departure], lr=RATE, eps=1e-6)
    for slope in slopes:
        departure.grad = -slope
        optimiser.step()
    return start + lengths * departure.detach()


@DTYPES
def test_whole_tensors_move_as_in_torch(dtype):
    slopes = gradients(dtype)
    value, moments = torch.zeros(4, 3, dtype=dtype), [torch.zeros(4, 3, dtype=dtype)] * 2
    moments, count = (moments[0], moments[1].clone()), torch.zeros(())
    for slope in slopes:
        move_whole([slope], [value], [moments], [count], RATE)
    # Rounding of some ten operations a step.
    atol = 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(value, reference(torch.zeros_like(value), slopes), rtol=0, atol=atol)


@DTYPES
def test_rows_move_by_their_own_count_of_steps(dtype):
    """Rows 2 and 0 move at every step, row 1 at the last alone, and row 3 never."""
    slopes = gradients(dtype)
    start = torch.arange(12.0).reshape(4, 3).to(dtype)
    lengths = torch.linspace(0.5, 2, 12).reshape(4, 3).to(dtype)
    table, moments = start.clone(), (torch.zeros_like(start), torch.zeros_like(start))
    count = torch.zeros(4, 1, dtype=dtype)
    for step, slope in enumerate(slopes):
        rows = torch.tensor([2, 0, 1] if step == N_STEPS - 1 else [2, 0])
        before = table[rows]
        move_rows(rows, slope[rows], before, lengths[rows], table, moments, count, RATE)
    atol = 200 * torch.finfo(dtype).eps
    expected = reference(start, slopes, lengths)
    torch.testing.assert_close(table[[0, 2]], expected[[0, 2]], rtol=0, atol=atol)
    last = reference(start, slopes[-1:], lengths)
    torch.testing.assert_close(table[1], last[1], rtol=0, atol=atol)
    assert torch.equal(table[3], start[3]) and count.flatten().tolist() == [5, 1, 5, 0]
