import numpy as np
import pytest
import torch

from skavi._data.missing_cells import Cells
from skavi.models._poisson_rates import Counts, Side
from skavi.models._poisson_rows import fitted, system, values


def problem(n_rows=6, factor=1.0, holes=False):
    rng = np.random.default_rng(0)
    u, t = rng.normal(size=(5, 3)), rng.uniform(0.01, 0.2, size=(5, 3))
    X = factor * rng.poisson(np.exp(rng.normal(size=(n_rows, 2)) @ u[:, :2].T + u[:, 2]))
    if holes:
        X = np.where(rng.random(X.shape) < 0.3, np.nan, X)
    columns = Side(torch.tensor(u), torch.tensor(t**2))
    exposure = torch.full((n_rows, 1), float(np.log(factor)), dtype=torch.float64)
    counts = Counts(Cells.of(torch.tensor(X, dtype=torch.float64)), exposure, exposure[:, 0])
    start = torch.zeros(n_rows, 2, dtype=torch.float64)
    return counts, columns, Side(start, start + 0.01)


@pytest.mark.parametrize("holes", [False, True])
def test_system_is_that_of_autograd(holes):
    counts, columns, rows = problem(holes=holes)

    def total(raw):
        there = rows.moved(raw)
        return values(counts, columns, there, counts.rates(there, columns)).sum()

    at = torch.zeros(6, 4, dtype=torch.float64)
    gradient, hessian = system(counts, columns, rows, counts.rates(rows, columns))
    torch.testing.assert_close(gradient, torch.autograd.functional.jacobian(total, at))
    bent = torch.autograd.functional.hessian(total, at)[range(6), :, range(6)]
    torch.testing.assert_close(hessian, -bent)


@pytest.mark.parametrize("factor", [1.0, 1e8])
@pytest.mark.parametrize("where", [0.0, 4.0, -4.0])
def test_rows_end_at_their_one_optimum(factor, where):
    counts, columns, start = problem(factor=factor)
    ends = fitted(counts, columns, Side(start.mean + where, start.variance))
    gradient, hessian = system(counts, columns, ends, counts.rates(ends, columns))
    left = 0.5 * (gradient * torch.linalg.solve(hessian, gradient)).sum(-1)
    assert float(left.max()) < 1e-9
    again = fitted(counts, columns, start)
    torch.testing.assert_close(again.mean, ends.mean, atol=1e-5, rtol=1e-5)


def test_a_step_never_lowers_a_row():
    counts, columns, start = problem()
    before = values(counts, columns, start, counts.rates(start, columns))
    for steps in (1, 2, 3):
        there = fitted(counts, columns, start, steps)
        after = values(counts, columns, there, counts.rates(there, columns))
        assert bool((after >= before).all())
        before = after


def test_one_huge_count_is_reached():
    counts, columns, start = problem()
    counts.cells.values[0, 0] = 1e9
    ends = fitted(counts, columns, start)
    gradient, _ = system(counts, columns, ends, counts.rates(ends, columns))
    assert float(gradient.abs().max()) < 1.0  # of sums of 1e9
    assert bool(torch.isfinite(ends.mean).all())


def test_no_rows_are_no_rows():
    counts, columns, start = problem(n_rows=0)
    assert len(fitted(counts, columns, start)) == 0
