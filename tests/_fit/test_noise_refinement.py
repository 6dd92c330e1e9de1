"""When a rule of quadrature is fine enough."""

import numpy as np
import pytest
import torch

from skavi._data.rows import Rows
from skavi._fit.noise_refinement import _resolution
from skavi._fit.problem import Problem
from skavi._fit.suboptimality import NOISE_TOLERANCE
from skavi.families import DiagonalNormal
from skavi.inference_functions import Table
from skavi.models import FactorAnalysis
from skavi.noise import GaussHermite
from skavi.objective import bind


@pytest.mark.parametrize(
    "n_latents, n_nodes, exact", [(1, 192, True), (2, 24, True), (2, 48, False)]
)
def test_rules_of_many_nodes_need_not_be_exact(n_latents, n_nodes, exact):
    """1e-7 of the ELBO where that is cheap, else what a converged fit is allowed."""
    X = torch.as_tensor(np.random.default_rng(0).normal(size=(3, 5)))
    weights = torch.ones(3, dtype=torch.float64)
    model = FactorAnalysis(n_latents, likelihood="student_t").adapted(X, weights)
    objective = bind(model, DiagonalNormal(), DiagonalNormal(), X)
    rule = GaussHermite((n_nodes, 3))
    problem = Problem(objective, Table(), Rows(X, weights), X, rule, None)
    allowed = _resolution(problem, 1e-8, -47.0)
    assert allowed == pytest.approx(3e-8 + 47e-7 if exact else NOISE_TOLERANCE)
