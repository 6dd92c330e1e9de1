"""Steps of rows that are independent given theta."""

import pytest
import torch

from skavi._data.rows import Rows
from skavi._fit.problem import Problem
from skavi.families import DiagonalNormal
from skavi.inference_functions import Table
from skavi.models import LinearModel
from skavi.noise import GaussHermite
from skavi.objective import bind
from skavi.solvers._newton_arrow import ArrowSystem


@pytest.mark.parametrize("too_far", [1, 5])
def test_rows_whose_full_step_goes_too_far_take_shorter_ones(too_far, monkeypatch):
    """They are tried alone: where the others go depends on no row but their own.

    A row's term is quadratic in its mean, so that a Newton step gains what it promises, but for the
    log sd; twelve times the step goes too far.
    """
    X = torch.linspace(-2, 3, 20, dtype=torch.float64).unsqueeze(-1)
    family, rows = DiagonalNormal(), Rows(X, torch.ones(20, dtype=torch.float64))
    objective = bind(LinearModel(), family, family, X)
    problem = Problem(objective, Table(), rows, X, GaussHermite(5), None)
    raw_globals = objective.global_family.raw(objective.global_factor(torch.zeros(2).to(X)))
    raw = torch.zeros(20, 2, dtype=torch.float64)
    system = ArrowSystem(problem)
    step = system.step(raw, raw_globals)
    local = step.unknowns(torch.zeros_like(step.d_globals))
    local[:too_far] *= 12.0
    sizes = []
    evaluate = Problem.row_terms
    monkeypatch.setattr(
        Problem, "row_terms", lambda own, *at: sizes.append(len(at[0])) or evaluate(own, *at)
    )
    best, value, gained = system._best_of(raw, raw_globals, local, step.row_decrement)
    assert bool(gained.all()) and sizes[:3] == [20, 20, too_far]
    lengths = ((best - raw) / local)[:, 0]
    assert bool((lengths[:too_far] < 1).all())
    assert bool((lengths[too_far:] == 1).all())
    before = system.value(raw, raw_globals)
    torch.testing.assert_close(value, system.value(best, raw_globals), rtol=0, atol=1e-12)
    assert bool((value[:-1] > before[:-1]).all()) and value[-1] == before[-1]
