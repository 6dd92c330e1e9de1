"""Second derivatives: the blocks, borders and corner of the arrow are the dense Hessian's."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from skavi import FactorizedVI, _curvature
from skavi._curvature import arrow_derivatives, dense_derivatives, jacobian
from skavi.models import RandomEffects
from skavi.solvers import LBFGS

STUDIES = np.random.default_rng(0).normal(size=(6, 2)) ** 2 + 0.5


@pytest.fixture(scope="module")
def problem_and_state():
    vi = FactorizedVI(RandomEffects(), solver=LBFGS(), random_state=0).fit(STUDIES)
    rows = vi._rows(STUDIES)
    return vi._fitted_model.frozen_problem(rows), vi._fitted_model.state(rows)


@pytest.mark.parametrize("one_by_one", [0, 10**6])
def test_an_arrow_is_the_dense_hessian_by_blocks(one_by_one, monkeypatch, problem_and_state):
    """At once or one by one; off the optimum, so that no entry is small by chance."""
    problem, state = problem_and_state
    problem = replace(problem, frozen_globals=False)
    raw, raw_globals = state.raw_locals + 0.3, state.raw_globals - 0.2
    monkeypatch.setattr(_curvature, "_FEW_PASSES", one_by_one)
    arrow = arrow_derivatives(problem, raw, raw_globals)
    slope, hessian, *_ = dense_derivatives(problem, raw, raw_globals)
    n, p = raw.shape
    torch.testing.assert_close(torch.cat([arrow.g.reshape(-1), arrow.g_globals]), slope)
    torch.testing.assert_close(hessian[n * p :, n * p :], arrow.H_globals)
    torch.testing.assert_close(hessian[: n * p, n * p :].reshape(n, p, -1), arrow.C)
    torch.testing.assert_close(hessian[: n * p, : n * p], torch.block_diag(*arrow.H))


def test_pieces_of_rows_have_the_derivatives_of_all(monkeypatch, problem_and_state):
    problem, state = problem_and_state
    problem = replace(problem, frozen_globals=False)
    raw, raw_globals = state.raw_locals + 0.3, state.raw_globals - 0.2
    whole = arrow_derivatives(problem, raw, raw_globals)
    monkeypatch.setattr("skavi._fit.problem.EVALUATED_NUMBERS", 2)
    assert len(problem.parts()) > 1
    torch.testing.assert_close(vars(arrow_derivatives(problem, raw, raw_globals)), vars(whole))


class Unbatched(torch.autograd.Function):
    """Cubes, by an operation that has no rule for batches."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return torch.as_tensor(slope.detach().numpy()) * 3 * x**2


def test_what_cannot_be_batched_is_differentiated_entry_by_entry(monkeypatch):
    monkeypatch.setattr(_curvature, "_FEW_PASSES", 0)
    x = torch.arange(1.0, 4.0, requires_grad=True)
    (found,) = jacobian(Unbatched.apply(x), (x,))
    torch.testing.assert_close(found, torch.diag(3 * x.detach() ** 2))


def test_a_constant_has_no_slope():
    x = torch.ones(2, requires_grad=True)
    (found,) = jacobian(torch.ones(3), (x,))
    assert not found.any() and found.shape == (3, 2)


def test_passes_at_once_are_as_many_as_memory_allows(monkeypatch):
    """So many that evaluations together hold 1,000 numbers; one by one where one holds as many."""
    sizes, own = [], _curvature._batched_jacobian

    def recorded(values, unknowns, at_once):
        sizes.append(at_once)
        return own(values, unknowns, at_once)

    monkeypatch.setattr(_curvature, "_BATCHED_NUMBERS", 1000)
    monkeypatch.setattr(_curvature, "_batched_jacobian", recorded)
    x = torch.arange(1.0, 11.0, requires_grad=True)
    for numbers in (1, 300, 1000):
        (found,) = jacobian(x**3, (x,), numbers)
        torch.testing.assert_close(found, torch.diag(3 * x.detach() ** 2))
    assert sizes == [256, 3]


@pytest.mark.parametrize("derivatives", [arrow_derivatives, dense_derivatives])
def test_evaluations_are_of_rows_times_nodes(monkeypatch, derivatives, problem_and_state):
    """Six rows of one latent, under the nodes of the fit."""
    problem, state = problem_and_state
    problem, told = replace(problem, frozen_globals=False), []
    own = _curvature.jacobian
    monkeypatch.setattr(_curvature, "jacobian", lambda *given: told.append(given[2]) or own(*given))
    derivatives(problem, state.raw_locals, state.raw_globals)
    assert len(problem.nodes.weights) > 1
    assert told == [6 * len(problem.nodes.weights)]
