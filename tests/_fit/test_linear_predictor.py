"""Regressions: found where each row reads theta through one number, and integrated along it."""

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, HalfNormal, Laplace, Normal, Poisson

from skavi import FactorizedVI
from skavi._curvature import arrow_derivatives
from skavi._data.rows import Rows
from skavi._fit.linear_predictor import with_linear_predictor
from skavi._fit.problem import Problem
from skavi.families import DiagonalFactors, DiagonalNormal, FullNormal
from skavi.inference_functions import Table
from skavi.models import HierarchicalModel
from skavi.noise import GaussHermite, LinearPredictor, QuasiMonteCarlo
from skavi.objective import bind

RNG = np.random.default_rng(0)


class Regression(HierarchicalModel):
    """The last column on the others: slopes, and nothing else."""

    n_latents = 0

    def global_prior(self, n_features):
        return {"slopes": Normal(torch.zeros(n_features - 1), 2.0)}

    def predictor(self, theta, X):
        return X[:, :-1] @ theta["slopes"]


class Logistic(Regression):
    def log_likelihood(self, theta, z, X):
        return Bernoulli(logits=self.predictor(theta, X)).log_prob(X[:, -1])


class Counts(Regression):
    def log_likelihood(self, theta, z, X):
        return Poisson((self.predictor(theta, X) - 1).exp()).log_prob(X[:, -1])


class Kinked(Regression):
    def log_likelihood(self, theta, z, X):
        return Laplace(self.predictor(theta, X), 1.0).log_prob(X[:, -1])


class WithScale(Regression):
    """A second number: the scale."""

    def global_prior(self, n_features):
        return super().global_prior(n_features) | {"sd": HalfNormal(1.0)}

    def log_likelihood(self, theta, z, X):
        return Normal(self.predictor(theta, X), theta["sd"]).log_prob(X[:, -1])


class TwoKinks(Regression):
    """Two predictors, each of which bends where the other does not."""

    def log_likelihood(self, theta, z, X):
        return -(X[:, :-1] * theta["slopes"]).relu().sum(1)


class Squares(Regression):
    """A row with one cell of 1 reads one slope; one with two of them reads no linear predictor."""

    def log_likelihood(self, theta, z, X):
        return -(X[:, :-1] @ theta["slopes"] ** 2)


class WithLatent(Logistic):
    n_latents = 1

    def local_prior(self, theta):
        return Normal(0.0, 1.0)


FEATURES = RNG.normal(size=(50, 2))
BINARY = np.column_stack([FEATURES, RNG.random(50) < 0.5]).astype(float)
COUNTED = np.column_stack([FEATURES, RNG.poisson(1.0, size=50)]).astype(float)
COUNTED[0, :2] = 0.0  # does not read theta at all
ONE_CELL = np.column_stack([np.eye(2)[RNG.integers(2, size=50)], np.ones(50)])


def bound(model, X, global_family=None):
    X = torch.as_tensor(X)
    objective = bind(model, DiagonalNormal(), global_family or DiagonalNormal(), X)
    return objective, Rows(X, torch.as_tensor(RNG.uniform(0.5, 2.0, len(X))))


@pytest.mark.parametrize(
    ("model", "X", "expected"),
    [
        (Logistic(), BINARY, True),
        (Logistic(), BINARY * [1e3, 1e-3, 1.0], True),
        (Counts(), COUNTED, True),
        (Kinked(), BINARY, True),
        (WithScale(), BINARY, False),
        (TwoKinks(), BINARY, False),
        (Squares(), ONE_CELL, False),
        (WithLatent(), BINARY, False),
    ],
)
def test_rows_that_read_one_number_are_found(model, X, expected):
    assert with_linear_predictor(*bound(model, X)).linear_predictor is expected


@pytest.mark.parametrize("family", [DiagonalNormal(), FullNormal()], ids=repr)
@pytest.mark.parametrize(("model", "X"), [(Logistic(), BINARY), (Counts(), COUNTED)])
def test_elbo_and_derivatives_are_those_of_nodes_in_all_dimensions(model, X, family):
    """48 nodes are exact to rounding here, along one number and over the plane of both slopes."""
    objective, rows = bound(model, X, family)
    narrow = family.raw(DiagonalFactors(torch.ones(2).double(), torch.full((2,), 0.3).double()))
    away = torch.randn(len(narrow), generator=torch.Generator().manual_seed(1)).double()
    raw, raw_globals = torch.zeros(50, 0).double(), narrow + 0.1 * away
    found = []
    for noise in (LinearPredictor(48), GaussHermite(48)):
        problem = Problem(objective, Table(), rows, rows.X, noise, torch.Generator())
        d = arrow_derivatives(problem, raw, raw_globals)
        found.append((problem.elbo_of(raw, raw_globals), d.g_globals, d.H_globals))
    for one, plane in zip(*found, strict=True):
        torch.testing.assert_close(one, plane, rtol=1e-9, atol=1e-9)


def test_a_fit_chooses_the_rule_and_ends_at_the_optimum_of_a_finer_one():
    vi = FactorizedVI(Logistic(), random_state=0).fit(BINARY)
    fine = FactorizedVI(Logistic(), noise=GaussHermite(24), random_state=0).fit(BINARY)
    assert isinstance(vi.noise_, LinearPredictor) and vi.converged_
    assert vi.elbo_ == pytest.approx(fine.elbo_, abs=1e-5)
    mean, sd = fine.global_posterior_.mean["slopes"], fine.global_posterior_.sd["slopes"]
    np.testing.assert_allclose(vi.global_posterior_.mean["slopes"], mean, atol=1e-3 * sd.min())
    own, corrected = vi.global_posterior_.corrected_sd, fine.global_posterior_.corrected_sd
    np.testing.assert_allclose(own["slopes"], corrected["slopes"], rtol=1e-4)
    assert vi.score(BINARY) == pytest.approx(fine.score(BINARY), abs=1e-6)


def test_equal_results_in_other_units():
    """Cells a thousand times as large, or small, change the slopes' unit and nothing else."""
    own = FactorizedVI(Logistic(), random_state=0).fit(BINARY * [1.0, 1e-3, 1.0])
    quasi = FactorizedVI(Logistic(), noise=QuasiMonteCarlo(4096)).fit(BINARY * [1.0, 1e-3, 1.0])
    assert own.elbo_ == pytest.approx(quasi.elbo_, abs=1e-3)


@pytest.mark.parametrize("model", [WithScale(), Squares(), WithLatent()], ids=repr)
def test_the_rule_is_refused_for_other_models(model):
    with pytest.raises(ValueError, match="through one number"):
        FactorizedVI(model, noise=LinearPredictor()).fit(ONE_CELL)
