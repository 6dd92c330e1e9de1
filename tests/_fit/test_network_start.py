"""Where networks start: near the rows' own factors."""

import numpy as np
import pytest
import torch

from closed_forms import paper_nonlinear_data
from skavi import AmortizedVI, FactorizedVI
from skavi._data.rows import Rows
from skavi._estimators.fitted_estimator import position_on
from skavi._fit.network_start import _restrict_to_few, best_start
from skavi._fit.problem import Problem
from skavi.families import DiagonalNormal
from skavi.inference_functions import MLP, Constant
from skavi.models import LinearModel, NonlinearModel
from skavi.noise import GaussHermite
from skavi.objective import bind
from skavi.solvers import State


def _nonlinear_problem(n_rows, width):
    x = torch.tensor(paper_nonlinear_data()[0][:n_rows]).reshape(-1, 1)
    factorized = FactorizedVI(NonlinearModel()).fit(x.numpy())
    rows = Rows(x, torch.ones(n_rows, dtype=x.dtype))
    objective = bind(NonlinearModel(), DiagonalNormal(), DiagonalNormal(), x)
    function = MLP((width, width)).fit_inputs(x, rows.weights)
    generator = torch.Generator().manual_seed(0)
    features, noise = function.features(x), GaussHermite((24, 3))
    problem = Problem(objective, function, rows, features, noise, generator)
    targets = position_on(factorized, x.numpy()).raw
    return problem, targets, torch.as_tensor(factorized._raw_globals), factorized.elbo_


def test_a_network_starts_near_the_rows_own_optima():
    """Regression alone starts a network of width 8 hundreds of per cent off, in other basins.

    1% of the ELBO is what the paper calls close; the start is there before the first iteration.
    """
    problem, targets, globals_, optimum = _nonlinear_problem(300, width=8)
    start = problem.function.start(
        problem.features, targets, problem.rows.weights, torch.Generator().manual_seed(0)
    )
    regressed = float(problem.elbo(State(*start, globals_)))
    started = float(problem.elbo(best_start(problem, targets, globals_)))
    assert started > optimum - 0.02 * abs(optimum)
    assert regressed < optimum - 0.5 * abs(optimum)


def test_rows_of_the_start_stand_for_all_rows():
    """Weighted sums over the chosen rows equal those over all: sampling weights are 1 / chance.

    The choice is systematic, so that sums of smooth functions agree to a per cent or so; the
    largest |x| is among the chosen, whose chance grows with the squared distance.
    """
    problem, targets, _, _ = _nonlinear_problem(3000, width=4)
    few, near = _restrict_to_few(problem, targets, 1000)
    x, every = few.rows.X[:, 0], problem.rows.X[:, 0]
    assert len(few.rows) == len(near) == 1000
    assert few.frozen_globals
    assert abs(few.rows.total_weight / 3000 - 1) < 0.02
    assert abs(float(few.rows.weights @ x**2) / float((every**2).sum()) - 1) < 0.02
    assert float(x.abs().max()) > 0.98 * float(every.abs().max())


@pytest.mark.filterwarnings("ignore:.*did not converge")  # at a kink, by a hair, on some machines
def test_wider_networks_come_closer():
    """Widths 1, 2, 8 on the nonlinear model: about 10%, 2% and under 1% off (paper, figure 4)."""
    x = paper_nonlinear_data()[0][:150].reshape(-1, 1)
    factorized = FactorizedVI(NonlinearModel()).fit(x).elbo_
    gaps = []
    for width in (1, 2, 8):
        network = MLP((width, width))
        vi = AmortizedVI(NonlinearModel(), network, max_iter=60, tol=1e-3, random_state=0)
        gaps.append((factorized - vi.fit(x).elbo_) / abs(factorized))
    assert gaps[0] > 0.05 > gaps[1] > 0.01 > gaps[2] > 0


def test_functions_with_one_regression_start_from_it():
    """Least squares of a constant on the targets is their mean."""
    x = np.random.default_rng(0).normal(size=(20, 1))
    vi = AmortizedVI(LinearModel(), Constant(), max_iter=1, tol=1e9).fit(x)
    problem, targets, globals_, _ = _nonlinear_problem(50, width=2)
    function = Constant().fit_inputs(problem.rows.X, problem.rows.weights)
    constant = Problem(
        problem.objective,
        function,
        problem.rows,
        function.features(problem.rows.X),
        problem.noise,
        problem.generator,
    )
    start = best_start(constant, targets, globals_).shared["coefficients"]
    torch.testing.assert_close(start[0], targets.mean(0))
    assert vi.n_iter_ == 1


def test_many_rows_start_in_pieces(monkeypatch):
    """The pull is of the rows, piece by piece or at once: the same start to rounding."""
    problem, targets, globals_, _ = _nonlinear_problem(30, width=2)
    whole = best_start(problem, targets, globals_)
    monkeypatch.setattr("skavi._fit.problem.EVALUATED_NUMBERS", 500)
    problem.generator.manual_seed(0)
    pieces = best_start(problem, targets, globals_)
    for name, value in whole.shared.items():
        torch.testing.assert_close(pieces.shared[name], value, rtol=1e-6, atol=1e-8)
