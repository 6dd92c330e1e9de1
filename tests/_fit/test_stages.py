"""The way on where a solver is stuck, and what is not done at a point that is not worth it."""

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal

from skavi import FactorizedVI
from skavi._data.rows import Rows
from skavi._fit.checkpoint_journal import Journal
from skavi._fit.noise_refinement import refine_noise
from skavi._fit.problem import Problem
from skavi._fit.stages import Stages
from skavi._fit.suboptimality import nats_below
from skavi.families import DiagonalNormal
from skavi.inference_functions import Table
from skavi.models import HierarchicalModel, LinearModel, NonlinearModel
from skavi.noise import GaussHermite
from skavi.objective import bind
from skavi.solvers import Newton, Outcome, Run, Solver, State
from skavi.solvers._base import Memory, unwatched


class StuckRun(Run):
    def __init__(self, problem, at):
        super().__init__(Memory())
        self.problem, self.at = problem, at

    def step(self, memory):
        elbo = float(self.problem.elbo(self.at))
        return Memory(n_iter=memory.n_iter + 1, elbo=elbo, finished=True)

    def state(self):
        return self.at

    def outcome(self):
        return Outcome(self.at, self.curve, False, 1e9, 1.0, stuck=True)


class Stuck(Solver):
    """A second-order solver of which no step gains."""

    second_order = True

    def begin(self, problem, state, tol):
        return StuckRun(problem, state)


def problem_of_rows():
    X = np.random.default_rng(0).normal(2.0, 1.0, (30, 1))
    vi = FactorizedVI(LinearModel(), noise=GaussHermite(3)).fit(X)
    rows = vi._rows(vi._validate(X))
    fit = vi._fitted_model
    problem = fit.frozen_problem(rows)
    problem = type(problem)(**{**vars_of(problem), "frozen_globals": False, "nodes": None})
    return vi, problem, fit.state(rows)


def vars_of(problem):
    return {name: getattr(problem, name) for name in problem.__dataclass_fields__}


def far_from(state):
    return State(state.raw_locals + 1.0, {}, state.raw_globals + 1.0)


def test_first_order_steps_go_on_from_where_no_second_order_step_gains():
    vi, problem, best = problem_of_rows()
    stages = Stages(Stuck(), 10_000, unwatched, Journal())
    stages.solve(problem, far_from(best), 1e-8)
    assert stages.outcome.converged
    assert float(problem.elbo(stages.outcome.state)) == pytest.approx(vi.elbo_, abs=1e-5)
    assert len(stages.outcome.curve) > 3  # iterations of both are told
    assert stages.worth_refining


def test_without_iterations_left_a_stuck_fit_ends():
    _, problem, best = problem_of_rows()
    stages = Stages(Stuck(), 1, unwatched, Journal())
    stages.solve(problem, far_from(best), 1e-8)
    assert not stages.outcome.converged
    assert not stages.worth_refining


class Logistic(HierarchicalModel):
    """y ~ Bernoulli(logit = b0 + b1 x) for rows (x, y)."""

    n_latents = 0

    def global_prior(self, n_features):
        return {"b": Normal(torch.zeros(2), 10.0)}

    def log_likelihood(self, theta, z, X):
        return Bernoulli(logits=theta["b"][0] + theta["b"][1] * X[:, 0]).log_prob(X[:, 1])


def test_damped_steps_gain_where_no_length_of_a_newton_step_does():
    """A raw column near 500, from sds of 1: the curvature there is that of saturated logits, and
    no length of the step gains. Damped steps alone, without L-BFGS, go on from there.
    """
    rng = np.random.default_rng(0)
    x = 500 + 100 * rng.normal(size=30)
    y = (rng.random(30) < 1 / (1 + np.exp(-(x - 500) / 100))) * 1.0
    rows = Rows(torch.as_tensor(np.c_[x, y]), torch.ones(30, dtype=torch.float64))
    objective = bind(Logistic(), DiagonalNormal(), DiagonalNormal(), rows.X)
    generator = torch.Generator().manual_seed(0)
    problem = Problem(objective, Table(), rows, rows.X, GaussHermite(3), generator)
    far = torch.tensor([0.3386, -0.6434, 0.0, 0.0], dtype=torch.float64)
    state = State(rows.X.new_zeros(30, 0), {}, far)
    outcome = Newton().solve(problem, state, 1e-6, 500)
    assert not outcome.stuck
    assert outcome.curve[-1] - float(problem.elbo(state)) > 1000


class Recorder:
    """Stages that keep the states which they are asked to start from."""

    def __init__(self, outcome):
        self.outcome, self.failure, self.starts = outcome, "", []

    def solve(self, problem, state, tol):
        self.starts.append(state)
        return state


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # a coarse rule
def test_a_run_that_exploited_a_coarse_rule_is_begun_again():
    """Under the finer rule its end is below its start, so the next run begins at the start."""
    X = np.random.default_rng(0).normal(size=(20, 1))
    vi = FactorizedVI(NonlinearModel(), noise=GaussHermite(3), random_state=0).fit(X)
    rows = vi._rows(vi._validate(X))
    problem = vi._fitted_model.frozen_problem(rows)
    problem = type(problem)(**{**vars_of(problem), "frozen_globals": False, "nodes": None})
    good = vi._fitted_model.state(rows)
    bad = State(good.raw_locals + 3.0, {}, good.raw_globals)
    outcome = Outcome(good, [0.0], True, 0.0, 0.0)
    for began, ended, expected in ((good, bad, good), (bad, good, good)):
        stages = Recorder(outcome)
        refine_noise(problem, began, ended, 1e-8, stages)
        assert torch.equal(stages.starts[0].raw_locals, expected.raw_locals)


def test_no_message_speaks_of_nan_or_infinite_nats():
    for left in (np.nan, np.inf):
        assert nats_below(left) == "an unknown distance below"
    assert nats_below(7063.4) == "7,063 nats below"
