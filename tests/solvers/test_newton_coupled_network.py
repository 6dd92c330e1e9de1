"""Gauss-Newton steps of networks over coupled rows."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from skavi import AmortizedVI, FactorizedVI
from skavi._data.rows import Rows
from skavi._fit.defaults import default_function
from skavi._fit.problem import Problem, inputs_of
from skavi.inference_functions import MLP
from skavi.models import FactorAnalysis, GaussianProcess
from skavi.solvers import LBFGS, Newton
from skavi.solvers._newton_coupled_network import CoupledNetworkSystem

pytestmark = pytest.mark.filterwarnings("ignore::skavi.closability.AmortizationWarning")
RNG = np.random.default_rng(0)
TIMES = np.sort(RNG.uniform(0, 3, 12))
CURVE = np.column_stack([TIMES, np.sin(TIMES) + 0.5 * RNG.normal(size=12)])


def _system(likelihood):
    X = np.column_stack([TIMES, CURVE[:, 1] > 0.5]) if likelihood == "bernoulli" else CURVE
    function = MLP((5,), "tanh")
    model = GaussianProcess(0.2, likelihood=likelihood)  # a covariance that is far from singular
    vi = AmortizedVI(model, function, max_iter=2, random_state=0)
    with pytest.warns(UserWarning, match="did not converge"):
        vi.fit(X)
    fit, table = vi._fitted_model, torch.as_tensor(np.asarray(X, float))
    rows = Rows(table, torch.ones(len(X), dtype=torch.float64))
    features = fit.function.features(inputs_of(fit.objective.model, fit.function, rows.X))
    generator = torch.Generator().manual_seed(0)
    problem = Problem(fit.objective, fit.function, rows, features, fit.noise, generator)
    system, state = CoupledNetworkSystem(problem), fit.state(rows)
    return system, system.read(state), state.raw_globals


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli"])
def test_the_system_is_the_gauss_newton_one(likelihood):
    """Right side: the gradient; matrix: -J'HJ, both by automatic differentiation of the ELBO.

    H is the Hessian in the rows' raw numbers, which is negative definite here, J their Jacobian.
    """
    system, flat, raw_globals = _system(likelihood)
    step = system.step(flat, raw_globals)
    slope = torch.func.grad(lambda each: system.value(each, raw_globals))(flat)
    outputs = torch.func.jacfwd(system.raw)(flat).reshape(-1, len(flat))
    raw = system.raw(flat).detach()

    def of_raw(numbers):
        return system.problem.row_terms(numbers.reshape(raw.shape), raw_globals)

    hessian = torch.func.hessian(of_raw)(raw.reshape(-1))
    assert float(torch.linalg.eigvalsh(hessian).max()) < 0
    torch.testing.assert_close(step.model.right, slope)
    torch.testing.assert_close(step.model.matrix, -outputs.mT @ hessian @ outputs)
    torch.testing.assert_close(system._slope(flat, raw_globals), slope)


def test_it_ends_higher_than_first_order_steps_and_not_above_f_vi():
    """The rows' own factors bound every function, as there is nothing else to be learned."""
    bound = FactorizedVI(GaussianProcess()).fit(CURVE).elbo_

    def fitted(solver):
        return AmortizedVI(GaussianProcess(), solver=solver, random_state=0).fit(CURVE)

    newton, first_order = fitted(None), fitted(LBFGS())
    assert isinstance(newton.solver_, Newton) and newton.converged_
    assert first_order.elbo_ - 0.01 < newton.elbo_ <= bound + 1e-9
    assert newton.elbo_ > bound - 0.5


def test_units_are_smooth_where_all_rows_meet():
    assert default_function(2, GaussianProcess()).activation == "tanh"
    assert default_function(2, FactorAnalysis(1)).activation == "relu"


def test_a_network_whose_tol_is_lost_in_the_elbo_ends_and_says_so():
    """At 1e16 nats rounding is 3 nats: no end at tol (0.001 nats) can be told from a step."""
    times = np.sort(np.random.default_rng(1).uniform(0, 6, 30))
    far = np.column_stack([times, np.sin(times)])
    far[3, 1] = 1e8
    with pytest.warns(ConvergenceWarning, match="in whose rounding tol is lost: rescale X, or"):
        vi = AmortizedVI(GaussianProcess(), random_state=0).fit(far)
    assert vi.elbo_ < -1e15 and not vi.converged_ and vi.n_iter_ == 500
    assert vi.suboptimality_ > 1e9


def test_many_rows_are_refused():
    X = np.column_stack([np.arange(301.0), np.zeros(301)])
    with pytest.raises(ValueError, match="Newton solves up to 600 unknowns"):
        AmortizedVI(GaussianProcess(), solver=Newton()).fit(X)
