"""Second derivatives cell by cell, against automatic differentiation of the same ELBO."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from skavi import FactorizedVI
from skavi._curvature import arrow_derivatives
from skavi._data.rows import Rows
from skavi._fit.network_start import PenalisedProblem, Penalty
from skavi._fit.problem import Problem
from skavi.families import DiagonalNormal
from skavi.inference_functions import MLP, Table
from skavi.models import FactorAnalysis
from skavi.noise import GaussHermite
from skavi.objective import bind
from skavi.solvers import State
from skavi.solvers._loss import Loss


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
    return Problem(objective, Table(), rows, X, GaussHermite(3), None, frozen_globals=frozen)


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


#: Likelihood and noise: those whose kernel has a bend, with one noise and with one a column.
NOISY = [
    ("bernoulli", "isotropic"),
    ("student_t", "isotropic"),
    ("student_t", "diagonal"),
    ("negative_binomial", "isotropic"),
    ("negative_binomial", "diagonal"),
]
each_noise = pytest.mark.parametrize("likelihood, noise", NOISY, ids=map("-".join, NOISY))


@pytest.mark.parametrize(
    "likelihood, noise, k, frozen, variant",
    [
        *[(*pair, 2, False, lambda problem: problem) for pair in NOISY],
        ("student_t", "diagonal", 1, True, lambda problem: problem),
        ("bernoulli", "isotropic", 1, False, penalised),
        ("bernoulli", "isotropic", 1, True, penalised),
    ],
)
def test_the_arrow_is_that_of_automatic_differentiation(likelihood, noise, k, frozen, variant):
    ours = variant(problem_of(FactorAnalysis(k, noise, likelihood=likelihood), frozen))
    plain = variant(problem_of(Plain(k, noise, likelihood=likelihood), frozen))
    at = somewhere(ours)
    assert ours.row_derivatives(*at) is not None and plain.row_derivatives(*at) is None
    exact, found = arrow_derivatives(plain, *at), arrow_derivatives(ours, *at)
    for name in ("g", "g_globals", "H", "C", "H_globals"):
        want, got = getattr(exact, name), getattr(found, name)
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)  # rounding of sums


@each_noise
def test_products_with_the_hessian_are_those_of_automatic_differentiation(likelihood, noise):
    """Through a network, whose own curvature counts, in one piece of rows and in several."""
    found = []
    for model in (FactorAnalysis, Plain):
        problem = problem_of(model(2, noise, likelihood=likelihood))
        function = MLP((3,), activation="tanh")
        raw, raw_globals = somewhere(problem)
        problem = replace(problem, function=function, features=torch.nan_to_num(problem.rows.X))
        generator = torch.Generator().manual_seed(0)
        _, shared = function.start(problem.features, raw, problem.rows.weights, generator)
        loss = Loss(problem, State(None, shared, raw_globals))
        at = torch.linspace(-0.1, 0.1, loss.size, dtype=torch.float64)
        gradient, times = loss.products(at)
        found.append(torch.stack([gradient, times(at)]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


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
