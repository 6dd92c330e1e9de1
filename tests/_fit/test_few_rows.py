"""The first steps of a fit to many rows, on a few of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from skavi import FactorizedVI
from skavi._data.rows import Rows
from skavi._fit.checkpoint_journal import Journal
from skavi._fit.few_rows import begun_on_few
from skavi._fit.problem import Problem
from skavi._fit.stages import Stages
from skavi._fit.start import model_start
from skavi.families import DiagonalNormal
from skavi.inference_functions import Table
from skavi.models import FactorAnalysis
from skavi.noise import LinearPredictor
from skavi.objective import bind
from skavi.solvers import LBFGS, Newton
from skavi.solvers._base import unwatched

MODEL = FactorAnalysis(2, likelihood="bernoulli")


def answers(n_rows):
    """Yes or no by two latents, of 16 columns: few rows are equal."""
    rng = np.random.default_rng(0)
    eta = rng.normal(size=(n_rows, 2)) @ rng.normal(size=(2, 16)) + rng.normal(size=16)
    return (rng.random(eta.shape) < 1 / (1 + np.exp(-eta))) * 1.0


@pytest.fixture(autouse=True)
def five_hundred_rows_represent_all(monkeypatch):
    monkeypatch.setattr("skavi._data.rows._REPRESENTATIVES", 500)
    monkeypatch.setattr("skavi._fit.few_rows._MANY", 1000)


def start_of(n_rows):
    X = torch.as_tensor(answers(n_rows))
    rows = Rows(X, torch.ones(n_rows, dtype=torch.float64))
    objective = bind(MODEL.adapted(X, rows.weights), DiagonalNormal(), DiagonalNormal(), X)
    generator = torch.Generator().manual_seed(0)
    problem = Problem(objective, Table(), rows, X, LinearPredictor(), generator)
    return problem, model_start(objective, rows, generator)


def stages(solver=None):
    return Stages(solver or Newton(), 100, unwatched, Journal())


def test_a_fit_ends_where_it_does_without_them_in_fewer_steps(monkeypatch):
    """Both within 1e-8 nats a row of the same optimum, whose rule is exact to 2e-3 nats.

    Counts take several steps before those of Newton's method are full ones.
    """
    rng = np.random.default_rng(0)
    eta = rng.normal(size=(2000, 2)) @ rng.normal(size=(2, 6)) + rng.normal(size=6)
    X = rng.negative_binomial(2, 1 / (1 + np.exp(eta) / 2)) * 1.0
    model = FactorAnalysis(2, likelihood="negative_binomial")
    vi = FactorizedVI(model, random_state=0).fit(X)
    monkeypatch.setattr("skavi._fit.few_rows._MANY", 1e9)
    other = FactorizedVI(model, random_state=0).fit(X)
    assert vi.converged_ and other.converged_
    assert vi.elbo_ == pytest.approx(other.elbo_, abs=2e-3)
    assert vi.n_iter_ < other.n_iter_


def test_a_few_rows_bring_q_theta_and_the_rows_near_their_optimum():
    """Sds of q(theta) are as of all 2,000 rows.

    Were the few rows not to count for all, they would be twice as wide.
    """
    problem, start = start_of(2000)
    found = begun_on_few(problem, start, stages())
    best = Newton().solve(problem, start, 1e-8, 100)
    there = float(problem.elbo(found))
    assert float(problem.elbo(start)) < there < best.curve[-1]
    assert best.curve[-1] - there < 0.1 * (best.curve[-1] - float(problem.elbo(start)))
    sds = [problem.objective.global_factor(each.raw_globals).sd for each in (found, best.state)]
    assert float((sds[0] / sds[1]).log().mean().abs()) < 0.1


def test_no_worse_start_is_taken():
    problem, start = start_of(2000)
    best = Newton().solve(problem, start, 1e-8, 100).state
    assert begun_on_few(problem, best, stages()) is best


def test_where_they_spare_nothing_the_start_is_kept():
    few, start = start_of(999)
    assert begun_on_few(few, start, stages()) is start
    problem, start = start_of(2000)
    assert begun_on_few(problem, start, stages(LBFGS())) is start
    assert begun_on_few(replace(problem, frozen_globals=True), start, stages()) is start


@pytest.mark.parametrize("error", [FloatingPointError, torch.linalg.LinAlgError])
def test_where_they_cannot_be_fitted_the_start_is_kept(error, monkeypatch):
    problem, start = start_of(2000)

    def fail(*arguments):
        raise error("broken")

    monkeypatch.setattr(Stages, "solve", fail)
    assert begun_on_few(problem, start, stages()) is start
