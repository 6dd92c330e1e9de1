"""When a rule of quadrature is fine enough."""

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal

from skavi._data.rows import Rows
from skavi._fit.noise_refinement import _resolution
from skavi._fit.problem import Problem
from skavi._fit.suboptimality import NOISE_TOLERANCE
from skavi.families import DiagonalNormal
from skavi.inference_functions import Table
from skavi.models import FactorAnalysis, HierarchicalModel
from skavi.noise import GaussHermite, LinearPredictor
from skavi.objective import bind


@pytest.mark.parametrize(
    "n_latents, rule, exact",
    [
        (1, GaussHermite((192, 3)), True),
        (2, GaussHermite((24, 3)), True),
        (2, GaussHermite((48, 3)), False),
        (2, LinearPredictor(20), True),
        (2, LinearPredictor(40), False),
    ],
)
def test_rules_of_many_nodes_need_not_be_exact(n_latents, rule, exact):
    """1e-7 of the ELBO where that is cheap, else what a converged fit is allowed."""
    X = torch.as_tensor(np.random.default_rng(0).normal(size=(3, 5)))
    weights = torch.ones(3, dtype=torch.float64)
    model = FactorAnalysis(n_latents, likelihood="student_t").adapted(X, weights)
    objective = bind(model, DiagonalNormal(), DiagonalNormal(), X)
    problem = Problem(objective, Table(), Rows(X, weights), X, rule, None)
    allowed = _resolution(problem, 1e-8, -47.0)
    assert allowed == pytest.approx(3e-8 + 47e-7 if exact else NOISE_TOLERANCE)


def test_nodes_of_regressions_are_cheap():
    """A row has one predictor, whose nodes are not multiplied by those of cells."""
    X = torch.ones(3, 2, dtype=torch.float64)

    class Regression(HierarchicalModel):
        n_latents = 0

        def global_prior(self, n_features):
            return {"slopes": Normal(torch.zeros(n_features), 1.0)}

        def log_likelihood(self, theta, z, X):
            return Bernoulli(logits=X @ theta["slopes"]).log_prob(torch.ones(len(X)))

    objective = bind(Regression(), DiagonalNormal(), DiagonalNormal(), X)
    rows = Rows(X, torch.ones(3, dtype=torch.float64))
    problem = Problem(objective, Table(), rows, X, LinearPredictor(80), None)
    assert _resolution(problem, 1e-8, -47.0) == pytest.approx(3e-8 + 47e-7)
