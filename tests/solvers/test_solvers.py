"""Solvers: they reach one optimum, say how far off they are, and batches are unbiased."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from closed_forms import linear_factorized
from skavi import AmortizedVI, FactorizedVI
from skavi._data.rows import Rows
from skavi._fit.problem import Problem
from skavi.families import FullNormal
from skavi.inference_functions import MLP, Constant, Polynomial, Table
from skavi.models import (
    FactorAnalysis,
    GaussianProcess,
    LinearModel,
    LocalLevel,
    NonlinearModel,
    RandomEffects,
)
from skavi.noise import FixedDraws, GaussHermite, MonteCarlo, QuasiMonteCarlo
from skavi.solvers import LBFGS, Adam, CoordinateAscent, Newton, State
from skavi.solvers._loss import newton_step
from skavi.solvers._minibatches import Minibatches

SCHOOLS = np.array(
    [[28, 15], [8, 10], [-3, 16], [7, 11], [-1, 9], [1, 11], [18, 10], [12, 18]], dtype=float
)
COLUMN = np.random.default_rng(0).normal(scale=2.7, size=(60, 1))


@pytest.mark.parametrize("function", [Constant(), Polynomial(1), Polynomial(2)], ids=repr)
def test_newton_and_lbfgs_reach_one_optimum_of_linear_functions(function):
    fits = [
        AmortizedVI(LinearModel(), function, solver=solver).fit(COLUMN)
        for solver in (Newton(), LBFGS())
    ]
    # Both stop below 1e-8 nats a row, 60 rows.
    assert fits[0].elbo_ == pytest.approx(fits[1].elbo_, abs=2e-6)
    assert all(fit.converged_ for fit in fits)


@pytest.mark.parametrize(
    ("model", "X"), [(RandomEffects(), SCHOOLS), (LinearModel(), COLUMN)], ids=["schools", "linear"]
)
@pytest.mark.parametrize("family", [None, FullNormal()], ids=["diagonal", "full"])
def test_newton_and_lbfgs_reach_one_factorized_optimum(model, X, family):
    noise = GaussHermite(8)
    fits = [
        FactorizedVI(model, noise=noise, global_family=family, solver=solver, tol=1e-9).fit(X)
        for solver in (Newton(), LBFGS())
    ]
    assert fits[0].elbo_ == pytest.approx(fits[1].elbo_, abs=1e-6)  # tol times rows, both ways


def test_newton_fits_a_small_network_at_least_as_well_as_lbfgs():
    model = RandomEffects()
    newton, lbfgs = (
        AmortizedVI(
            model, MLP((6,), "tanh"), noise=GaussHermite(8), solver=solver, random_state=0
        ).fit(SCHOOLS)
        for solver in (Newton(), LBFGS())
    )
    assert newton.converged_
    assert newton.elbo_ >= lbfgs.elbo_ - 1e-4
    # tanh cannot carry the linear start, so both had to climb: the curve must show it.
    assert newton.elbo_ > newton.elbo_curve_[0]


def test_adam_reaches_the_closed_form():
    truth = linear_factorized(COLUMN[:, 0], 1.155, 2.43)
    vi = FactorizedVI(LinearModel(), noise=MonteCarlo(20), solver=Adam(), random_state=0)
    vi.fit(COLUMN)
    assert vi.converged_
    # The promise for a stochastic solver (reliability): 0.1 nat, and never above the optimum
    # by more than the evaluation's error.
    assert truth.elbo - 0.1 < vi.elbo_ < truth.elbo + 4 * vi.elbo_se_ + 1e-9
    theta = float(vi.global_posterior_.mean["theta"])
    assert abs(theta - truth.theta_mean) < 0.1 * truth.theta_sd


@pytest.mark.parametrize("model", [LinearModel(), LocalLevel(1.0, 1.0)], ids=["rows", "chain"])
def test_minibatches_of_a_table_reach_the_optimum(model):
    series = np.cumsum(COLUMN, axis=0)
    truth = FactorizedVI(model).fit(series)
    solver = Adam(batch_size=16)
    vi = FactorizedVI(model, noise=MonteCarlo(10), solver=solver, random_state=0).fit(series)
    assert truth.elbo_ - 0.3 < vi.elbo_ < truth.elbo_ + 1e-6  # 60 rows left noisy at the last rate


def test_pieces_of_a_series_add_up_to_its_elbo():
    """The mean over all pieces is exact: every term is in one piece, its left neighbour led in."""
    vi = FactorizedVI(LocalLevel(1.0, 1.0), solver=LBFGS()).fit(COLUMN)
    rows = vi._rows(COLUMN)
    objective = vi._fitted_model.objective
    generator = torch.Generator().manual_seed(0)
    problem = Problem(objective, Table(), rows, rows.X, vi.noise_, generator)
    state, pieces = vi._fitted_model.state(rows), {}
    batches = Minibatches(problem, state, 25)
    for _ in range(200):
        batch = batches.draw()
        pieces[int(batch.index[-1])] = batches.own_elbo(state.of_rows(batch.index), batch)
    assert len(pieces) == 3
    assert float(sum(pieces.values()) / 3) == pytest.approx(float(problem.elbo(state)), rel=1e-12)


def test_batches_of_independent_rows_are_unbiased():
    vi = FactorizedVI(LinearModel()).fit(COLUMN)
    rows = vi._rows(COLUMN)
    generator = torch.Generator().manual_seed(0)
    problem = Problem(vi._fitted_model.objective, Table(), rows, rows.X, vi.noise_, generator)
    state, values = vi._fitted_model.state(rows), []
    batches = Minibatches(problem, state, 7)
    for _ in range(400):
        batch = batches.draw()
        values.append(float(batches.own_elbo(state.of_rows(batch.index), batch)))
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - float(problem.elbo(state))) < 4 * error


def test_no_row_has_a_better_basin_than_the_one_found():
    """Exhaustive search over means and sds of every row, q(theta) given, then polished."""
    X = np.linspace(-20, 20, 41)[:, None]
    vi = FactorizedVI(NonlinearModel()).fit(X)
    rows = vi._rows(X)
    here = vi._fitted_model.at(rows)
    problem, globals_ = here.problem, here.raw_globals
    found = problem.row_terms(here.raw, globals_)
    means = torch.linspace(-10, 10, 161, dtype=torch.float64)
    log_sds = torch.linspace(-3.5, 1.0, 19, dtype=torch.float64)
    grid = torch.cartesian_prod(means, log_sds)
    value = torch.stack([problem.row_terms(point.expand(len(X), 2), globals_) for point in grid])
    start = State(grid[value.argmax(0)], {}, globals_)
    best = Newton().solve(problem, start, 1e-10, 200, None).state.raw_locals
    # Newton's own stop, 1e-9 nats a row, on either side.
    assert float((problem.row_terms(best, globals_) - found).max()) < 1e-7


def test_rows_of_weight_zero_change_nothing():
    weights = np.r_[np.ones(40), np.zeros(20)]
    whole = FactorizedVI(NonlinearModel(), noise=GaussHermite((12, 3)), tol=1e-10)
    part = FactorizedVI(NonlinearModel(), noise=GaussHermite((12, 3)), tol=1e-10)
    whole.fit(COLUMN, sample_weight=weights)
    part.fit(COLUMN[:40])
    assert whole.elbo_ == pytest.approx(part.elbo_, abs=1e-7)


def test_stated_suboptimality_bounds_the_true_one():
    """Stopped early, Newton's and L-BFGS's estimates are of the right size (within twice)."""
    truth = FactorizedVI(RandomEffects(), noise=GaussHermite(8), tol=1e-12).fit(SCHOOLS).elbo_
    vi = FactorizedVI(RandomEffects(), noise=GaussHermite(8), solver=Newton(), tol=1e-3).fit(
        SCHOOLS
    )
    assert truth - vi.elbo_ <= 2 * vi.suboptimality_ + 1e-9


@pytest.mark.parametrize("solver", [Newton(), LBFGS(), CoordinateAscent(), Adam()], ids=repr)
def test_a_solver_that_runs_out_of_iterations_says_so(solver):
    """Two iterations are enough for none of them."""
    X = np.random.default_rng(1).normal(size=(40, 3)) @ np.diag([1.0, 3.0, 9.0])
    best = FactorizedVI(FactorAnalysis(1), random_state=0).fit(X).elbo_
    vi = FactorizedVI(FactorAnalysis(1), solver=solver, max_iter=2, random_state=0)
    with pytest.warns(ConvergenceWarning, match="did not converge in n_iter_=2 iterations"):
        vi.fit(X)
    assert not vi.converged_
    assert vi.elbo_ < best - 1e-3


def test_memory_zero_is_plain_coordinate_ascent():
    X = np.random.default_rng(1).normal(size=(40, 4))
    plain = FactorizedVI(FactorAnalysis(1), solver=CoordinateAscent(memory=0)).fit(X)
    mixed = FactorizedVI(FactorAnalysis(1)).fit(X)
    assert plain.n_iter_ > mixed.n_iter_
    assert plain.elbo_ == pytest.approx(mixed.elbo_, abs=1e-6)
    assert (np.diff(plain.elbo_curve_) >= -1e-12 * abs(plain.elbo_)).all()


@pytest.mark.filterwarnings("ignore:.*a finer noise")
@pytest.mark.parametrize("noise", [FixedDraws(64), QuasiMonteCarlo(64)], ids=repr)
def test_draws_are_evaluated_on_others_than_they_were_fitted_on(noise):
    truth = FactorizedVI(RandomEffects()).fit(SCHOOLS).elbo_
    vi = FactorizedVI(RandomEffects(), noise=noise).fit(SCHOOLS)
    assert vi.elbo_se_ > 0
    assert vi.elbo_ < truth + 4 * vi.elbo_se_


def test_a_schedule_multiplies_the_learning_rate():
    def fit(schedule):
        solver = Adam(learning_rate=0.1, schedule=schedule)
        vi = FactorizedVI(LinearModel(), noise=MonteCarlo(1), solver=solver, random_state=0)
        with pytest.warns(match="did not converge"):
            vi.set_params(max_iter=5).fit(COLUMN)
        return vi.elbo_curve_

    assert np.ptp(fit(_never)) > 0  # the noise alone
    assert not np.array_equal(fit(_never), fit(None))


def _never(iteration):
    return 0.0


def test_adam_gives_up_on_nan_with_a_reason():
    class Overflow(LinearModel):
        def log_local(self, theta, z, X):
            return super().log_local(theta, z, X) + torch.sqrt(1.5 - z[:, 0] ** 2).detach() * 0

    solver = Adam(learning_rate=0.5)
    vi = FactorizedVI(Overflow(), noise=MonteCarlo(5), solver=solver, random_state=0)
    message = r"Adam met numbers .* iteration 1: the log joint is not finite for \d+ rows \(rows "
    with pytest.raises(FloatingPointError, match=message):
        vi.fit(COLUMN)


def test_rows_hold_their_weights():
    rows = Rows(torch.zeros(3, 1), torch.tensor([1.0, 2.0, 3.0]))
    assert rows.total_weight == 6.0
    assert len(rows[1:]) == 2


def test_lbfgs_asks_the_hessian_before_it_stops():
    """On a smooth Gaussian process (condition number 1e6) gains fade long before the optimum.

    Stopped by its gains, L-BFGS ended 24 nats short at tol = 1e-3; by conjugate gradients whose own
    gains fade, it stated 1/20 of what was left. The dense Newton optimum is the truth, to 1e-8.
    """
    t = np.linspace(0, 3, 30)[:, None]
    X = np.c_[t, np.sin(t) + 0.2 * np.random.default_rng(0).normal(size=t.shape)]
    best = FactorizedVI(GaussianProcess(), solver=Newton()).fit(X).elbo_
    for tol in (1e-3, 1e-5):
        vi = FactorizedVI(GaussianProcess(), solver=LBFGS(), tol=tol).fit(X)
        assert vi.converged_
        assert best - vi.elbo_ < 2 * vi.suboptimality_ + 1e-8 * len(X)
        assert vi.suboptimality_ < tol * len(X)


@pytest.mark.parametrize("size", [60, 400])
@pytest.mark.parametrize("tol", [1e-8, 1e-5, 1e-3])
def test_what_conjugate_gradients_leave_is_stated(tol, size):
    """Curvatures from 1e-7 to 1, gradients of 1e-2 nats in all or in the flattest directions.

    The exact decrement is g' H^-1 g / 2. Conjugate gradients stand still on plateaus before they
    have met the flat directions, and rounding keeps them there: what they gained says too little.
    """
    draw = np.random.default_rng(0).normal
    vectors = torch.as_tensor(np.linalg.qr(draw(size=(size, size)))[0])
    curvatures = torch.logspace(-7, 0, size, dtype=torch.float64)
    for flattest in (size, size // 10):
        along = torch.as_tensor(draw(size=size)) * curvatures.sqrt()
        along[flattest:] *= 1e-2
        along *= np.sqrt(2e-2 / float((along**2 / curvatures).sum()))
        hessian, gradient = (vectors * curvatures) @ vectors.mT, vectors @ along
        _, stated, convex = newton_step(gradient, hessian.matmul, tol)
        assert convex
        assert 2 * stated >= 1e-2
        assert stated <= 1.1 * (1e-2 + tol)


@pytest.mark.parametrize("solver", [Newton(), LBFGS()])
def test_few_draws_are_part_of_the_certificate(solver):
    """64 draws shared by all rows have an optimum of their own, nats below the true one."""
    x = np.random.default_rng(0).normal(1, 2, (100, 1))
    best = FactorizedVI(LinearModel()).fit(x).elbo_
    vi = FactorizedVI(LinearModel(), noise=FixedDraws(64), solver=solver)
    with pytest.warns(ConvergenceWarning, match=r"a finer noise \(now FixedDraws"):
        vi.fit(x)
    assert not vi.converged_
    assert best - vi.elbo_ < 2 * vi.suboptimality_


@pytest.mark.parametrize("function", [Table(), Polynomial(2)])
def test_rows_in_pieces_are_the_rows_at_once(function, monkeypatch):
    """Sums over pieces differ from the sum at once by rounding only: 1e-12 relative."""
    model = NonlinearModel()

    def fitted():
        if isinstance(function, Table):
            return FactorizedVI(model).fit(COLUMN)
        return AmortizedVI(model, function).fit(COLUMN)

    whole = fitted()
    monkeypatch.setattr("skavi._fit.problem.EVALUATED_NUMBERS", 500)
    pieces = fitted()
    assert len(pieces._fitted_model.frozen_problem(pieces._rows(COLUMN)).parts()) > 5
    assert pieces.n_iter_ == whole.n_iter_
    assert pieces.elbo_ == pytest.approx(whole.elbo_, rel=1e-12)


def test_adam_steps_in_the_precision_of_the_data():
    """A float32 X is climbed in float32; the fit is read in float64, and ends at the same optimum.

    The tolerance is what two runs of Adam on 20 draws differ by; float32 itself adds 1e-6.
    """
    seen = []

    class Watched(LinearModel):
        def log_local(self, theta, z, X):
            seen.append(X.dtype)
            return super().log_local(theta, z, X)

    solver = Adam(batch_size=20)
    single, double = (
        FactorizedVI(Watched(), noise=MonteCarlo(20), solver=solver, random_state=0).fit(X)
        for X in (COLUMN.astype(np.float32), COLUMN)
    )
    assert seen.count(torch.float32) > 1000
    assert single._raw_globals.dtype == np.float64
    assert single.elbo_ == pytest.approx(double.elbo_, abs=0.2)


def test_single_precision_goes_with_priors_that_have_no_closed_form():
    """E log p(noise_variance) is a quadrature in double precision: the ELBO takes it all the same.

    300 steps of Adam end within 2% of the closed-form optimum.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 1)) @ rng.normal(size=(1, 3)) + 0.5 * rng.normal(size=(60, 3))
    arguments = {"noise": MonteCarlo(10), "solver": Adam(), "max_iter": 300, "random_state": 0}
    model = FactorAnalysis(1)
    with pytest.warns(ConvergenceWarning):
        single = FactorizedVI(model, **arguments).fit(X.astype(np.float32))
    assert single.elbo_ == pytest.approx(FactorizedVI(model).fit(X).elbo_, rel=0.02)


_FIRST_FITS = """
import sys, warnings
import numpy as np
from skavi import AmortizedVI, FactorizedVI
from skavi.inference_functions import MLP
from skavi.models import BayesianDecoder, FactorAnalysis, NonlinearModel, SawTimeSeries
from skavi.noise import MonteCarlo
from skavi.solvers import LBFGS, Adam
warnings.simplefilter("ignore")
x = np.random.default_rng(0).normal(size=(40, 1))
for vi in (
    AmortizedVI(SawTimeSeries(), MLP((4,), context=(1, 0))),
    AmortizedVI(NonlinearModel(), MLP((4,)), solver=LBFGS()),
    FactorizedVI(NonlinearModel()),
    FactorizedVI(BayesianDecoder(1, (4,)), solver=Adam(batch_size=10)),
    FactorizedVI(FactorAnalysis(1, "diagonal")),
):
    vi.set_params(max_iter=30, random_state=0).fit(x).transform(x)
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""


def test_first_fits_do_not_wait_for_torchs_compiler():
    """Importing it, or the algebra it needs, takes longer than many a fit: a second or more."""
    paths = [str(Path(__file__).parents[2]), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", _FIRST_FITS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
