"""Numbers that are not finite: stepped back from, or named; a fit never trains on them."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from closed_forms import linear_factorized
from skavi import AmortizedVI, FactorizedVI
from skavi._data.rows import Rows
from skavi._fit import algorithm
from skavi._fit.nonfinite import what_broke
from skavi._fit.problem import Problem
from skavi.inference_functions import MLP, Polynomial, Table
from skavi.models import FactorAnalysis, LinearModel, RandomEffects, SawTimeSeries
from skavi.noise import GaussHermite
from skavi.objective import Objective
from skavi.solvers import LBFGS, Adam, CoordinateAscent, Newton, State, _adam, _newton_arrow

COLUMN = np.random.default_rng(0).normal(size=(12, 1))
SCHOOLS = torch.tensor([[28.0, 15.0], [8.0, 10.0], [-3.0, 16.0]], dtype=torch.float64)


class Cliff(LinearModel):
    """No number where a latent is beyond `edge`, as where an exponential overflows."""

    def __init__(self, edge=4.0, tau=1.155, sigma=2.43):
        super().__init__(tau, sigma)
        self.edge = edge

    def log_local(self, theta, z, X):
        beyond = torch.where(z[:, 0].abs() < self.edge, 0.0, torch.nan)
        return super().log_local(theta, z, X) + beyond


@pytest.mark.parametrize("solver", [Newton(), LBFGS(), Adam(0.5)], ids=repr)
def test_solvers_step_back_from_a_cliff(solver):
    """Three nodes reach 1.73 sds from a mean: the optimum, sds 0.9 around means below 1, is safe.

    Adam starts with steps of half an sd, the others with whole Newton steps.
    """
    vi = FactorizedVI(Cliff(edge=2.9), noise=GaussHermite(3), solver=solver, random_state=0)
    vi.fit(COLUMN * 2)
    truth = linear_factorized(COLUMN[:, 0] * 2, 1.155, 2.43)
    assert vi.converged_
    assert np.isfinite(vi.elbo_curve_).all()
    assert vi.elbo_ == pytest.approx(
        truth.elbo, abs=1e-6 if solver.needs_deterministic_noise else 0.1
    )


class Kink(LinearModel):
    """A density whose derivative at the start, z = 0, is no number."""

    def log_local(self, theta, z, X):
        return super().log_local(theta, z, X) - torch.sqrt(z[:, 0] ** 2)


@pytest.mark.parametrize("solver", [Newton(), LBFGS(), Adam()], ids=repr)
def test_derivatives_that_are_no_numbers_are_named(solver):
    vi = FactorizedVI(Kink(), noise=GaussHermite(1), solver=solver, random_state=0)
    message = r"in iteration 1: the ELBO is finite, but not its derivatives for 12 rows \(rows 0, 1"
    with pytest.raises(FloatingPointError, match=message):
        vi.fit(COLUMN)
    assert not hasattr(vi, "elbo_")


class Breaking(FactorAnalysis):
    """The fourth sweep ends in no number."""

    def adapted(self, X, weights):
        model = super().adapted(X, weights)
        model.n_sweeps_ = 0
        return model

    def global_optimum(self, globals_, factors, X, weights):
        self.n_sweeps_ += 1
        found = super().global_optimum(globals_, factors, X, weights)
        return type(found)(found.mean * (1.0 if self.n_sweeps_ < 4 else torch.nan), found.scale)


@pytest.mark.parametrize("memory", [0, 16])  # LAPACK takes no history that is not finite
def test_the_last_finite_iterate_is_kept_with_a_warning(memory):
    X = np.random.default_rng(0).normal(size=(20, 3)) * [1.0, 2.0, 3.0]
    ascent = {"solver": CoordinateAscent(memory), "random_state": 0}
    vi = FactorizedVI(Breaking(1), **ascent)
    message = r"last finite iterate, of n_iter_=3: .* iteration 4: q\(theta\) of 'noise_var"
    with pytest.warns(ConvergenceWarning, match=message):
        vi.fit(X)
    assert not vi.converged_
    assert len(vi.elbo_curve_) == 3
    # Three sweeps of coordinate ascent, as if the fit had been told to stop there.
    with pytest.warns(ConvergenceWarning):
        told = FactorizedVI(FactorAnalysis(1), max_iter=3, **ascent).fit(X)
    assert vi.elbo_ == told.elbo_
    np.testing.assert_array_equal(vi.transform(X), told.transform(X))


def problem_of(model, X):
    space = model.global_space(X)
    family = FactorizedVI().fit([[0.0], [1.0], [3.0]]).family_
    objective = Objective(model, space, family, family, 1)
    rows = Rows(X, torch.ones(len(X), dtype=X.dtype))
    generator = torch.Generator().manual_seed(0)
    return Problem(objective, Table(), rows, X, GaussHermite(3), generator)


class HeavyTau(RandomEffects):
    """Non-centred effects whose prior, or likelihood, is no number in the second row."""

    def __init__(self, where="prior"):
        super().__init__()
        self.where = where

    def log_prior(self, theta, z, X):
        return super().log_prior(theta, z, X) + self._broken("prior", len(z))

    def log_likelihood(self, theta, z, X):
        return super().log_likelihood(theta, z, X) + self._broken("likelihood", len(z))

    def _broken(self, where, n):
        return torch.where(torch.arange(n) == 1, torch.inf if where == self.where else 0.0, 0.0)


@pytest.mark.parametrize("where", ["prior", "likelihood"])
def test_the_term_and_the_rows_are_named(where):
    problem = problem_of(HeavyTau(where), SCHOOLS)
    state = State(torch.zeros(3, 2).double(), {}, torch.zeros(4).double())
    assert what_broke(problem, state) == f"the {where} is not finite for 1 rows (rows 1)"


def test_globals_that_broke_are_named():
    problem = problem_of(RandomEffects(), SCHOOLS)
    raw, globals_ = torch.zeros(3, 2).double(), torch.zeros(4).double()
    lost = globals_.clone()
    lost[1] = torch.nan
    assert what_broke(problem, State(raw, {}, lost)) == "q(theta) of 'tau' is not finite"


RNG = np.random.default_rng(1)
BASE = RNG.normal(size=(15, 4)) @ RNG.normal(size=(4, 4))
HARD = {
    "columns of 1e-8 to 1e8": BASE * [1e-8, 1.0, 1e4, 1e8],
    "duplicated columns": np.column_stack([BASE, BASE]),
    "constant columns": np.column_stack([BASE[:, :2], np.full((15, 2), 1e6)]),
    "one row": BASE[:1],
    "fewer rows than features": BASE[:3],
    "1e-150": BASE * 1e-150,
    "1e150": BASE * 1e150,
}


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
@pytest.mark.parametrize("kind", [FactorizedVI, AmortizedVI])
@pytest.mark.parametrize("data", HARD)
def test_hard_data_get_a_finite_fit_or_a_reason(data, kind, noise):
    """With five components: more than rows or features."""
    X = HARD[data]
    vi = kind(FactorAnalysis(5, noise), random_state=0, max_iter=200)
    if kind is AmortizedVI:
        vi.set_params(inference_function=Polynomial(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            vi.fit(X)
        except ValueError as error:
            assert "in size, but fits need it between" in str(error)
            assert "1e" in data  # only where squares leave the range of numbers
            return
    Z, scores = vi.transform(X), vi.score_samples(X)
    assert np.isfinite(Z).all() and np.isfinite(scores).all() and np.isfinite(vi.elbo_)
    assert np.isfinite(vi.inverse_transform(Z)).all()


def test_a_network_is_stopped_before_it_overflows():
    vi = AmortizedVI(LinearModel(), MLP((4,)), solver=Adam(learning_rate=1e12), random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            vi.set_params(max_iter=300).fit(COLUMN)
        except FloatingPointError as error:
            assert "the learning rate of a solver" in str(error) or "The ELBO of" in str(error)
            return
    assert np.isfinite(vi.elbo_) and np.isfinite(vi.transform(COLUMN)).all()


def test_predictions_do_not_overflow_on_the_way_to_a_finite_number():
    """E[x] has the standard errors' median as its second column: 1e308, where their sum is inf."""
    vi = FactorizedVI(RandomEffects(), random_state=0).fit(SCHOOLS.numpy())
    vi.model_.standard_errors_ = np.full(4, 1e308)
    np.testing.assert_array_equal(vi.inverse_transform([[0.0]])[:, 1], 1e308)


def test_sds_beyond_the_range_of_numbers_are_refused():
    """A line whose log sd rises, or falls, by one a unit of x is at -+1e12 at a row of 1e12."""
    vi = AmortizedVI(LinearModel(), Polynomial(1)).fit(COLUMN)
    for slope in (1.0, -1.0):
        vi._parameters["coefficients"][1, 1] = slope
        with pytest.raises(FloatingPointError, match=r"posterior of 1 rows \(first at row 1\)"):
            vi.transform([[1.0], [1e12]])


def test_predictions_that_are_no_numbers_are_refused():
    """One node for theta leaves its sd free to grow without end: 1e308 after eight iterations."""
    rule, X = GaussHermite((2, 1)), [[2.0], [-2.6]]
    vi = FactorizedVI(SawTimeSeries(0.3), noise=rule, solver=LBFGS(1), max_iter=8, random_state=0)
    with pytest.warns(ConvergenceWarning):
        vi.fit(X)
    with pytest.raises(
        FloatingPointError, match=r"no number: q\(theta\) has sds of up to 1\.8e\+308"
    ):
        vi.inverse_transform(vi.transform(X))


BROKEN = [(_newton_arrow, "arrow_derivatives"), (algorithm, "solve_rows")]


@pytest.mark.parametrize("breaks", BROKEN, ids=str)
def test_a_start_that_breaks_takes_no_fit_with_it(breaks, monkeypatch):
    """The factorized fit that amortized VI starts at is a help: its own climb reaches the optimum.

    The linear model's posterior means are linear in x (`linear_factorized`).
    """

    def broken(*_, **__):
        raise torch.linalg.LinAlgError("singular")

    monkeypatch.setattr(*breaks, broken)
    vi = AmortizedVI(LinearModel(), Polynomial(1), noise=GaussHermite(3), solver=LBFGS())
    vi.fit(COLUMN)
    truth = linear_factorized(COLUMN[:, 0], 1.155, 2.43)
    assert vi.converged_
    assert vi.elbo_ == pytest.approx(truth.elbo, abs=1e-6)  # tol times rows, and rounding


def test_averages_forget_the_values_that_broke(monkeypatch):
    """A step of the last stage that overflows is averaged before the next one can notice."""
    monkeypatch.setattr(_adam, "_WINDOW", 20)
    X = torch.as_tensor(COLUMN)
    problem = problem_of(LinearModel(), X)
    state = State(torch.zeros(12, 2).double(), {}, torch.zeros(2).double())
    run = Adam().begin(problem, state, 1e-8)
    while not run.memory.n_averaged:
        run.curve.append(run.memory.elbo)
        run.memory = run.step(run.memory)
    overflown = [torch.full_like(value, torch.inf) for value in run.memory.values]
    run.memory = replace(run.memory, values=overflown, averages=overflown, n_averaged=2)
    run.curve = run.curve[1:]
    outcome = run.iterate(run.memory.n_iter + 2000, lambda _: False)
    assert outcome.converged and run.memory.retreats == 1
    truth = linear_factorized(COLUMN[:, 0], 1.155, 2.43)
    assert float(problem.elbo(outcome.state)) == pytest.approx(truth.elbo, abs=0.1)  # as stochastic
