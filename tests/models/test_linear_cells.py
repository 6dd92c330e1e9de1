"""Second derivatives cell by cell, against automatic differentiation of the same ELBO."""

import numpy as np
import pytest
import torch

from skavi import FactorizedVI
from skavi._curvature import arrow_derivatives
from skavi._data.rows import Rows
from skavi._fit.network_start import PenalisedProblem, Penalty
from skavi._fit.problem import Problem
from skavi.families import DiagonalNormal
from skavi.inference_functions import Table
from skavi.models import FactorAnalysis
from skavi.noise import GaussHermite
from skavi.objective import bind


def answers(n_rows=30, n_columns=4):
    """0/1 cells, some of them missing, and weights."""
    rng = np.random.default_rng(0)
    X = (rng.random((n_rows, n_columns)) < 0.4).astype(float)
    X[rng.random(X.shape) < 0.15] = np.nan
    return torch.as_tensor(X), torch.as_tensor(rng.uniform(0.5, 2.0, n_rows))


def problem_of(model, frozen=False):
    X, weights = answers()
    objective = bind(model.adapted(X, weights), DiagonalNormal(), DiagonalNormal(), X)
    rows = Rows(X, weights)
    return Problem(objective, Table(), rows, X, GaussHermite(5), None, frozen_globals=frozen)


class ByHand(FactorAnalysis):
    """The same model with a method of its own: nothing is known of it."""

    def predictor(self, theta, z):
        return 1.5 * super().predictor(theta, z)


class Plain(FactorAnalysis):
    """The same model, differentiated automatically."""

    def row_derivatives(self, *arguments):
        return None


def somewhere(problem):
    """Raw parameters away from any optimum."""
    generator = torch.Generator().manual_seed(1)
    size = 2 * problem.objective.n_latents, 2 * problem.objective.space.size
    rows = torch.randn(len(problem.rows), size[0], generator=generator, dtype=torch.float64)
    return rows, 0.5 * torch.randn(size[1], generator=generator, dtype=torch.float64)


def penalised(problem):
    """The problem of a network's start: rows are drawn to factors of their own."""
    raw, _ = somewhere(problem)
    targets = torch.roll(raw, 1, 0)
    return PenalisedProblem.of(problem, Penalty(0.3, targets, torch.full_like(targets, 0.5)))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("variant", [lambda problem: problem, penalised], ids=["fit", "start"])
def test_the_arrow_is_that_of_automatic_differentiation(k, frozen, variant):
    ours = variant(problem_of(FactorAnalysis(k, likelihood="bernoulli"), frozen))
    plain = variant(problem_of(Plain(k, likelihood="bernoulli"), frozen))
    at = somewhere(ours)
    assert ours.row_derivatives(*at) is not None and plain.row_derivatives(*at) is None
    exact, found = arrow_derivatives(plain, *at), arrow_derivatives(ours, *at)
    for name in ("g", "g_globals", "H", "C", "H_globals"):
        want, got = getattr(exact, name), getattr(found, name)
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)  # rounding of sums


def test_what_a_subclass_changes_is_not_taken_as_known():
    problem = problem_of(ByHand(1, likelihood="bernoulli"))
    assert problem.row_derivatives(*somewhere(problem)) is None


@pytest.mark.parametrize("roles", [{}, {"covariates": [4], "offset": [5]}], ids=["", "roles"])
def test_a_fit_ends_where_it_would_by_automatic_differentiation(roles):
    """Corrected sds read all of the arrow."""
    X, rng = answers()[0].numpy(), np.random.default_rng(1)
    X = np.column_stack([X, rng.normal(size=(len(X), 2))]) if roles else X
    fits = [
        FactorizedVI(model(1, likelihood="bernoulli", **roles), random_state=0).fit(X)
        for model in (FactorAnalysis, Plain)
    ]
    # Each is within 1e-8 nats a row of the optimum.
    assert fits[0].elbo_ == pytest.approx(fits[1].elbo_, abs=2e-8 * len(X))
    ours, plain = (vi.global_posterior_.corrected_sd for vi in fits)
    for name, sd in plain.items():
        np.testing.assert_allclose(ours[name], sd, rtol=1e-3)
