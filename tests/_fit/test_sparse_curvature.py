"""Second derivatives by few passes: the same as by one pass for each parameter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import HalfNormal, LogNormal, Normal

import skavi._fit.sparse_curvature as sparse
from skavi import FactorizedVI
from skavi._curvature import arrow_derivatives
from skavi._data.rows import Rows
from skavi._fit.problem import Problem
from skavi._fit.shared_noise import with_shared_noise
from skavi.families import DiagonalNormal
from skavi.inference_functions import Table
from skavi.models import HierarchicalModel
from skavi.noise import GaussHermite
from skavi.objective import bind
from skavi.solvers import Newton, State


class Questions(HierarchicalModel):
    """Slope and level of each question, and a scale that all of them read: a hub."""

    n_latents = 1

    def global_prior(self, n_features):
        zeros = torch.zeros(n_features)
        return {
            "slope": LogNormal(zeros, 0.5),
            "level": Normal(zeros, 1.0),
            "scale": HalfNormal(1.0),
        }

    def local_prior(self, theta):
        return Normal(0.0, 1.0)

    def likelihood(self, z, theta):
        return Normal(torch.sinh(theta["slope"] * z + theta["level"]), 0.1 + theta["scale"])


def problem_and_state(n_columns=9, n_rows=7):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n_rows, n_columns, generator=generator, dtype=torch.float64)
    objective = bind(Questions(), DiagonalNormal(), DiagonalNormal(), X)
    rows = Rows(X, 1 + torch.arange(n_rows, dtype=X.dtype) % 3)
    objective = with_shared_noise(objective, rows)
    rule = GaussHermite(3, objective.shared)
    problem = Problem(objective, Table(), rows, X, rule, generator)
    raw = 0.3 * torch.randn(n_rows, 2, generator=generator, dtype=X.dtype)
    size = 2 * objective.space.size
    raw_globals = 0.3 * torch.randn(size, generator=generator, dtype=X.dtype)
    raw_globals[size // 2 :] -= 2.0  # log sds
    return problem, raw, raw_globals


def test_few_passes_give_all_second_derivatives(monkeypatch):
    """Slope and level of one question meet, and both the scale: 3 groups, of 19 globals."""
    problem, raw, raw_globals = problem_and_state()
    meet, groups = sparse._of_parameters(problem.objective.meet)
    assert len(groups) == 6 and meet.shape == (38, 38)
    passes = []
    counted = sparse.jacobian
    monkeypatch.setattr(
        sparse, "jacobian", lambda values, *of: passes.append(len(values)) or counted(values, *of)
    )
    few = arrow_derivatives(problem, raw, raw_globals)
    assert passes == [2 + 6 + 1]
    plain = replace(problem, objective=replace(problem.objective, meet=None))
    all_of_them = arrow_derivatives(plain, raw, raw_globals)
    assert passes == [9]
    for name in ("g", "g_globals", "H", "C", "H_globals"):
        torch.testing.assert_close(
            getattr(few, name), getattr(all_of_them, name), rtol=1e-9, atol=1e-9
        )


def test_globals_that_meet_unseen_are_noticed():
    problem, raw, raw_globals = problem_and_state()
    meet = problem.objective.meet.clone()
    meet[0, 9] = meet[9, 0] = False  # slope and level of the first question
    wrong = replace(problem, objective=replace(problem.objective, meet=meet))
    assert sparse.sparse_derivatives(problem, raw, raw_globals) is not None
    assert sparse.sparse_derivatives(wrong, raw, raw_globals) is None


def groups_of(meet):
    return sparse._groups(tuple(map(tuple, meet.tolist())))


def test_groups_hold_no_neighbours_of_neighbours():
    """A path 0 - 1 - 2 - 3: 0 and 3 are the first that share no neighbour. A star: hub alone."""
    path = torch.zeros(4, 4, dtype=torch.bool)
    for i in range(3):
        path[i, i + 1] = path[i + 1, i] = True
    assert len(groups_of(path)) == 3
    star = torch.zeros(6, 6, dtype=torch.bool)
    star[0, 1:] = star[1:, 0] = True
    assert sorted(map(sorted, groups_of(star))) == [[0], [1, 2, 3, 4, 5]]


def test_what_a_finer_rule_leaves_is_told_by_the_slopes_under_it():
    """Half g'H^-1 g with H of the fit's own rule, against one Newton step under the finer rule.

    Second derivatives differ by a few per cent from one rule to the other, and so does the gain (6
    %): what is compared with a tolerance need not be nearer.
    """
    problem = problem_and_state(4, 30)[0]
    X, rule = problem.rows.X, problem.noise
    problem = replace(problem, rows=Rows(X, torch.ones(len(X), dtype=X.dtype)))
    vi = FactorizedVI(Questions(), noise=rule, random_state=0).fit(X.numpy())
    factors = vi.posterior(X.numpy())
    raw = torch.as_tensor(np.hstack([factors.mean, np.log(factors.sd)]))
    state, newton = State(raw, {}, torch.as_tensor(vi._raw_globals)), Newton()
    finer = problem.with_noise(GaussHermite((12, 3), rule.shared))
    whole = newton.suboptimality_at(finer, state, 1e-3)
    by_slopes = newton.suboptimality_at(finer, state, 1e-3, newton.curvature_at(problem, state))
    assert whole > 1e-4
    assert by_slopes == pytest.approx(whole, rel=0.2)
