"""Planted bugs: each is caught by a test that is named here.

A mutant changes one line of skavi, of the kind that has gone wrong in libraries like it. The test
that claims to hold the truth must pass without the mutant, and fail with it.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.base import clone

import test_determinism as determinism
import test_distributions as distributions
import test_noise as noise
from families import test_normal as families
from models import test_likelihoods as likelihoods
from models import test_models as models
from objective import test_elbo as objective
from persistence import test_persistence as persistence
from skavi import noise as noise_rules
from skavi._estimators import row_inference
from skavi._estimators.base import VariationalInference
from skavi._fit import fitted_model
from skavi.distributions import unvalidated
from skavi.families import LOG_2PI, DiagonalFactors, DiagonalNormal, FullNormal, NormalFactors
from skavi.models import LinearModel
from skavi.models._global_space import GlobalSpace
from skavi.objective import Objective
from skavi.solvers import _lbfgs
from skavi.solvers._minibatches import Minibatches
from solvers import test_solvers as solvers

pytestmark = pytest.mark.slow

DIAGONAL = DiagonalNormal()


def no_jacobian(_):
    def log_prior(self, name, part):
        return unvalidated(self.prior[name]).log_prob(self.bijections[name](part)).sum()

    return log_prior


def remembered(getstate):
    first = {}
    return lambda self: first.setdefault(type(self), getstate(self))


def leaking(solve_rows):
    def solved(*arguments, **options):
        raw, converged = solve_rows(*arguments, **options)
        return raw + 1e-6 * raw.mean(0), converged

    return solved


def without_theta(expected):
    def terms(self, factors, globals_, X, nodes):
        nodes = nodes and replace(nodes, globals_=0 * nodes.globals_)
        return expected(self, factors, globals_, X, nodes)

    return terms


def at_rest(outcome):
    return lambda self: replace(outcome(self), converged=True, suboptimality=0.0)


def check_subsets():
    vi = clone(determinism.FITS["newton"]).fit(determinism._data(determinism.FITS["newton"]))
    determinism.test_row_order_and_subsets_do_not_matter("newton", {"newton": vi})


def check_entropies():
    noise = torch.ones(5, families.N_ROWS, families.N_LATENTS, dtype=torch.float64)
    families.test_entropy_and_density_are_those_of_the_multivariate_normal(DIAGONAL, noise)


# What is wrong: where, what is put in the place of what stands there, and the test that sees it.
MUTANTS = {
    "no Jacobian of a constrained global": (
        (GlobalSpace, "_log_prior"),
        no_jacobian,
        lambda: distributions.test_the_jacobian_is_that_of_finite_differences("positive"),
    ),
    "entropy with the wrong sign": (
        (NormalFactors, "entropy"),
        lambda entropy: lambda self: -entropy(self),
        lambda: objective.test_factor_analysis_rows_are_the_independent_closed_form(
            DIAGONAL, "diagonal"
        ),
    ),
    "entropy without its constant": (
        (NormalFactors, "entropy"),
        lambda _: lambda self: self.log_det_scale + 0.5 * self.mean.shape[-1],
        check_entropies,
    ),
    "density without its constant": (
        (LinearModel, "log_local"),
        lambda density: lambda self, *row: density(self, *row) + 0.5 * LOG_2PI,
        lambda: models.test_written_out_densities_are_the_declared_ones("linear"),
    ),
    "batches not scaled up to all rows": (
        (Minibatches, "draw"),
        lambda draw: lambda self: replace(draw(self), scale=1.0),
        solvers.test_batches_of_independent_rows_are_unbiased,
    ),
    "sds in place of variances": (
        (DiagonalFactors, "covariance"),
        lambda _: lambda self: torch.diag_embed(self.scale),
        lambda: families.test_draws_have_the_covariance_and_sd(DIAGONAL),
    ),
    "a Cholesky factor transposed": (
        (families.FullFactors, "draw"),
        lambda _: lambda self, e: self.mean + (self.scale.mT @ e.unsqueeze(-1)).squeeze(-1),
        lambda: families.test_draws_have_the_covariance_and_sd(FullNormal()),
    ),
    "noise detached from the sds": (
        (DiagonalFactors, "draw"),
        lambda _: lambda self, e: self.mean + (self.scale * e).detach(),
        lambda: solvers.test_newton_and_lbfgs_reach_one_factorized_optimum(
            LinearModel(), solvers.COLUMN, None
        ),
    ),
    "theta at its mean in place of draws": (
        (Objective, "expected_log_terms"),
        without_theta,
        lambda: objective.test_quadrature_of_factor_analysis_is_the_closed_form(DIAGONAL),
    ),
    "rows' weights forgotten": (
        (Objective, "summed"),
        lambda _: lambda self, terms, u, weights: terms.sum() + self.global_term(u),
        objective.test_the_elbo_adds_rows_prior_and_entropy_by_weight,
    ),
    "the globals' term twice": (
        (Objective, "global_term"),
        lambda term: lambda self, u: 2 * term(self, u),
        objective.test_the_elbo_adds_rows_prior_and_entropy_by_weight,
    ),
    "nodes of the other Hermite polynomials": (
        (noise_rules, "product_rule"),
        lambda rule: lambda *counts: (rule(*counts)[0] / np.sqrt(2), rule(*counts)[1]),
        noise.test_gauss_hermite_is_exact_for_products_over_dimensions,
    ),
    "rows that leak into each other": ((fitted_model, "solve_rows"), leaking, check_subsets),
    "a copy of an earlier fit": (
        (VariationalInference, "__getstate__"),
        remembered,
        persistence.test_copies_are_of_the_latest_fit,
    ),
    "a fit that says it has converged": (
        (_lbfgs._Descent, "outcome"),
        at_rest,
        lambda: solvers.test_a_solver_that_runs_out_of_iterations_says_so(solvers.LBFGS()),
    ),
    "weights of draws added up, not averaged": (
        (row_inference, "log_predictive"),
        lambda bound: lambda *given: bound(*given) + np.log(given[-1]),
        likelihoods.test_many_latents_have_the_importance_weighted_bound,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(name, monkeypatch):
    (owner, attribute), planted, truth = MUTANTS[name]
    truth()
    monkeypatch.setattr(owner, attribute, planted(vars(owner)[attribute]))
    with pytest.raises((AssertionError, pytest.fail.Exception, UserWarning)):  # warnings are errors
        truth()
