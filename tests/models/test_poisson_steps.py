import numpy as np
import pytest
import torch

from skavi._data.missing_cells import Cells
from skavi.models import _poisson_steps
from skavi.models._poisson_frame import Prior
from skavi.models._poisson_rates import Counts, Side
from skavi.models._poisson_rows import fitted, system
from skavi.models._poisson_steps import Step, _Coupled, _moved


def problem(largest=1e-6, n_known=0):
    rng = np.random.default_rng(1)
    n, d, k = 12, 6, 2
    X = torch.tensor(rng.poisson(3.0, size=(n, d)), dtype=torch.float64)

    def side(rows, columns):
        mean = torch.tensor(0.5 * rng.normal(size=(rows, columns)))
        return Side(mean, torch.tensor(rng.uniform(0.1, 1.0, size=(rows, columns)) * largest))

    p = k + n_known + 1
    rows, columns = side(n, k), side(d, p)
    known = torch.tensor(0.5 * rng.normal(size=(n, n_known)))
    rows = Side(
        torch.cat([rows.mean, known], 1), torch.cat([rows.variance, torch.zeros_like(known)], 1)
    )
    weights = torch.tensor(rng.uniform(0.5, 2.0, size=n))
    counts = Counts(Cells.of(X), torch.zeros(n, 1, dtype=torch.float64), weights, n_known)
    loc = torch.zeros(d, p, dtype=torch.float64)
    loc[:, -1] = 1.0
    return counts, Prior(loc, torch.ones(d, p, dtype=torch.float64)), rows, columns


def elbo(counts, prior, rows, columns):
    """Written out again, with what does not depend on the factors."""
    rates = counts.rates(rows, columns)
    eta = rows.mean @ columns.mean[:, :-1].mT + columns.mean[:, -1]
    terms = (counts.cells.values * eta - rates).sum(-1)
    rows = rows.first(2)
    terms = terms - 0.5 * (rows.mean**2 + rows.variance - rows.variance.log()).sum(-1)
    away = prior.precision * ((columns.mean - prior.loc) ** 2 + columns.variance)
    return counts.weights @ terms - 0.5 * (away - columns.variance.log()).sum()


@pytest.mark.parametrize("n_known", [0, 2])
def test_gradient_and_couplings_are_those_of_autograd(n_known):
    """At s t near 0, where couplings are exact."""
    counts, prior, rows, columns = problem(n_known=n_known)
    width = 2 * (3 + n_known)

    def value(of_rows, of_columns):
        return elbo(counts, prior, rows.moved(of_rows), columns.moved(of_columns))

    at = torch.zeros(12, 4, dtype=torch.float64), torch.zeros(6, width, dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(value, at)
    hessian = torch.autograd.functional.hessian(value, at)
    step = Step.__new__(Step)
    step.counts, step.prior = counts, prior
    point = step._at(rows, columns)
    assert point.elbo == pytest.approx(float(value(*at)))
    gradient, blocks = step._columns(point)
    torch.testing.assert_close(gradient, slopes[1])
    torch.testing.assert_close(blocks, -hessian[1][1][range(6), :, range(6)])
    _, own = system(counts, columns, rows, point.rates)
    coupled = _Coupled(counts, point, torch.linalg.inv(own))
    generator = torch.Generator().manual_seed(0)
    move = torch.randn(6, width, generator=generator, dtype=torch.float64)
    pushed = torch.einsum("npdq,dq->np", hessian[0][1], move) / counts.weights.unsqueeze(-1)
    expected = torch.linalg.solve(own, pushed)
    torch.testing.assert_close(coupled.response(move), expected, atol=1e-5, rtol=1e-5)
    back = torch.einsum("npdq,np->dq", hessian[0][1], expected)
    torch.testing.assert_close(coupled.to_columns(expected), -back, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_known", [0, 1])
def test_a_move_along_the_frame_keeps_the_log_rates(n_known):
    # Narrow factors: nothing holds the change back.
    counts, prior, rows, columns = problem(n_known=n_known)
    step = Step(counts, prior, rows, columns)
    point = step._at(rows, columns)
    change = torch.tensor([[0.1, 0.5, -0.2, 0.3], [-0.5, 0.2, 0.3, 0.1]], dtype=torch.float64)
    change = change[:, : 3 + n_known]
    z = torch.nn.functional.pad(rows.mean, (0, 1), value=1.0)
    of_rows = torch.nn.functional.pad(-z @ change.mT, (0, 2))
    of_columns = torch.nn.functional.pad(columns.mean[:, :2] @ change, (0, 3 + n_known))
    there_rows, there_columns = _moved(point, of_columns, of_rows)
    there = torch.nn.functional.pad(there_rows.mean, (0, 1), value=1.0) @ there_columns.mean.mT
    torch.testing.assert_close(there, z @ columns.mean.mT, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("largest", "n_known"), [(1e-4, 0), (0.1, 0), (0.1, 1)])
def test_steps_rise_to_an_optimum(largest, n_known):
    counts, prior, rows, columns = problem(largest, n_known)
    heights = [float(elbo(counts, prior, rows, columns))]
    for _ in range(60):
        step = Step(counts, prior, rows, columns)
        columns, rows = step.end.columns, fitted(counts, step.end.columns, step.end.rows)
        heights.append(float(elbo(counts, prior, rows, columns)))
        if step.promised < 1e-10:
            break
    assert step.promised < 1e-10
    assert min(np.diff(heights)) > -1e-8
    latents, known = rows.first(2), rows.mean[:, 2:]
    free = (
        latents.mean.clone(),
        latents.variance.log(),
        columns.mean.clone(),
        columns.variance.log(),
    )
    for each in free:
        each.requires_grad_(True)
    m, s, u, t = free
    rows = Side(torch.cat([m, known], 1), torch.cat([s.exp(), torch.zeros_like(known)], 1))
    value = elbo(counts, prior, rows, Side(u, t.exp()))
    slopes = torch.autograd.grad(value, free)
    assert max(float(each.abs().max()) for each in slopes) < 1e-4


@pytest.mark.parametrize("n_known", [0, 1])
def test_far_away_columns_go_alone_each_by_its_own_length(n_known, monkeypatch):
    """Column 0 starts at exp(-6) times its rates, where Newton's own step is far too long."""
    counts, prior, rows, columns = problem(0.2, n_known)
    columns.mean[0, -1] -= 6.0
    monkeypatch.setattr(_poisson_steps.Step, "_turned", lambda self, point: point)
    step = Step(counts, prior, rows, columns)
    assert step.end.rows is rows
    assert step.promised == pytest.approx(step.end.elbo - step.start.elbo)
    assert step.promised > float(counts.weights.sum())
    gradient, blocks = step._columns(step.start)
    newton = torch.linalg.solve(blocks, gradient.unsqueeze(-1)).squeeze(-1)[:, : 3 + n_known]
    moved = step.end.columns.mean - columns.mean
    lengths = (moved * newton).sum(-1) / newton.square().sum(-1)
    torch.testing.assert_close(moved, lengths.unsqueeze(-1) * newton)
    assert float(lengths[0]) < 1
    assert float(lengths[1:].min()) > 2 * float(lengths[0])  # which holds nobody else back
    before = float(elbo(counts, prior, rows, columns))
    assert float(elbo(counts, prior, rows, step.end.columns)) - before == pytest.approx(
        step.promised
    )


def test_a_column_whose_step_does_not_rise_stays():
    counts, prior, rows, columns = problem(1e-4)
    step = Step.__new__(Step)
    step.counts, step.prior = counts, prior
    point = step._at(rows, columns)
    gradient, blocks = step._columns(point)
    newton = torch.linalg.solve(blocks, gradient.unsqueeze(-1)).squeeze(-1)
    newton[2] *= -1  # downhill
    there = step._alone(point, newton, (gradient * newton).sum(-1).abs())
    torch.testing.assert_close(there.columns.mean[2], columns.mean[2])
    assert not torch.equal(there.columns.mean[3], columns.mean[3])
    assert there.elbo == pytest.approx(float(elbo(counts, prior, rows, there.columns)))


def test_steps_stay_where_the_elbo_is_finite(monkeypatch):
    counts, prior, rows, columns = problem(0.9)
    monkeypatch.setattr(_poisson_steps, "_REACH", 10.0)  # longer steps cross s t = 1
    for _ in range(20):
        step = Step(counts, prior, rows, columns)
        assert np.isfinite(step.end.elbo)
        rows, columns = step.end.rows, step.end.columns
