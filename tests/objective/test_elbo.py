"""The ELBO: every noise rule against the closed form and against each other, nats and constants."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Dirichlet, Multinomial, Normal

from closed_forms import factor_analysis_elbo_rows, linear_evidence
from skavi.families import DiagonalNormal, FullNormal
from skavi.models import FactorAnalysis, HierarchicalModel, LatentVariableModel, LinearModel
from skavi.noise import FixedDraws, GaussHermite, MonteCarlo, QuasiMonteCarlo
from skavi.objective import bind

N_ROWS, N_FEATURES, N_COMPONENTS = 6, 3, 2
DIAGONAL = DiagonalNormal()
FAMILIES = [DIAGONAL, FullNormal()]

each_family = pytest.mark.parametrize("family", FAMILIES, ids=repr)
each_global_family = pytest.mark.parametrize("global_family", FAMILIES, ids=repr)


def elbo(objective, raw, raw_globals, X, weights, nodes):
    return objective.summed(objective.row_terms(raw, raw_globals, X, nodes), raw_globals, weights)


def random_(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def factor_analysis(noise="diagonal"):
    return FactorAnalysis(
        N_COMPONENTS, noise, loading_scale=1.5, mean_loc=0.2, mean_scale=3.0, noise_scale=0.5
    )


def bound(model, family, global_family=DIAGONAL, n_features=N_FEATURES, n_rows=N_ROWS):
    """Return the objective, data, and random factors of moderate width."""
    X = random_(n_rows, n_features, seed=1)
    objective = bind(model, family, global_family, X)
    raw = random_(n_rows, family.n_parameters(objective.n_latents), seed=2, scale=0.4)
    n_globals = global_family.n_parameters(objective.space.size)
    return objective, X, raw, random_(n_globals, seed=3, scale=0.2) - 0.5


def nodes_for(rule, objective, X, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return rule.nodes(objective.n_drawn_globals, objective.n_latents, len(X), generator)


@each_family
@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_factor_analysis_rows_are_the_independent_closed_form(family, noise):
    objective, X, raw, raw_globals = bound(factor_analysis(noise), family)
    rows = objective.row_terms(raw, raw_globals, X, None)
    theta, z = objective.global_factor(raw_globals), objective.local_factors(raw)
    parts = {n: (theta.mean[s], theta.sd[s]) for n, s in objective.space.slices.items()}
    loadings = [part.reshape(N_FEATURES, N_COMPONENTS) for part in parts["loadings"]]
    log_sd = [part / 2 for part in parts["noise_variance"]]  # ours is log variance = 2 log sd
    expected = factor_analysis_elbo_rows(
        X, *loadings, *parts["mean"], *log_sd, z.mean, z.covariance()
    )
    np.testing.assert_allclose(rows, expected, rtol=1e-12)


@each_family
@each_global_family
def test_sampled_rows_agree_with_the_closed_form(family, global_family):
    """z scores over 400 sets of fresh draws: correlated globals too, which closed_forms has not."""
    objective, X, raw, raw_globals = bound(factor_analysis(), family, global_family)
    exact = objective.row_terms(raw, raw_globals, X, None)
    sampled = torch.stack(
        [
            objective.row_terms(raw, raw_globals, X, nodes_for(MonteCarlo(64), objective, X, seed))
            for seed in range(400)
        ]
    ).numpy()
    z = (sampled.mean(0) - exact.numpy()) / stats.sem(sampled)
    assert (np.abs(z) < 4.5).all()


@each_family
def test_quadrature_of_factor_analysis_is_the_closed_form(family):
    """One column and one component: E exp(-u) needs the nodes, the rest is a polynomial."""
    model = FactorAnalysis(1, loading_scale=1.0, mean_loc=0.0, mean_scale=1.0, noise_scale=1.0)
    objective, X, raw, raw_globals = bound(model, family, n_features=1)
    exact = objective.row_terms(raw, raw_globals, X, None)
    by_nodes = objective.row_terms(
        raw, raw_globals, X, nodes_for(GaussHermite((3, 12)), objective, X)
    )
    torch.testing.assert_close(by_nodes, exact, rtol=1e-10, atol=1e-10)  # 12 nodes for exp


@pytest.mark.parametrize("rule", [GaussHermite(2), QuasiMonteCarlo(64)], ids=repr)
@each_family
@each_global_family
def test_rules_exact_for_quadratics_agree_on_the_linear_model(rule, family, global_family):
    objective, X, raw, raw_globals = bound(LinearModel(), family, global_family, n_features=1)
    fine = nodes_for(GaussHermite(5), objective, X)
    weights = torch.ones(N_ROWS).double()
    expected = elbo(objective, raw, raw_globals, X, weights, fine)
    value = elbo(objective, raw, raw_globals, X, weights, nodes_for(rule, objective, X))
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_the_elbo_adds_rows_prior_and_entropy_by_weight():
    objective, X, raw, raw_globals = bound(factor_analysis(), DiagonalNormal())
    weights = torch.arange(N_ROWS, dtype=torch.float64)
    rows = objective.row_terms(raw, raw_globals, X, None)
    q = objective.global_factor(raw_globals)
    noise = random_(20_000, objective.space.size, seed=9)
    u = q.draw(noise)
    values = (torch.func.vmap(objective.space.log_prior)(u) - q.log_prob(noise)).numpy()
    total = elbo(objective, raw, raw_globals, X, weights, None)
    z = (float(total - weights @ rows) - values.mean()) / stats.sem(values)
    assert abs(z) < 4


class Votes(HierarchicalModel):
    """Multinomial counts: the distribution that vmap cannot carry (a boolean mask inside)."""

    def n_latents(self, n_features):
        return n_features

    def global_prior(self, n_features):
        return {"share": Dirichlet(torch.ones(n_features))}

    def local_prior(self, theta):
        return Normal(torch.zeros(len(theta["share"])), 0.5)

    def likelihood(self, z, theta):
        return Multinomial(10, logits=theta["share"].log() + z, validate_args=False)


class WrittenOutVotes(Votes):
    """The same density in terms that vmap carries."""

    def log_likelihood(self, theta, z, X):
        logits = torch.log_softmax(theta["share"].log() + z, -1)
        return torch.lgamma(X.sum(-1) + 1) - torch.lgamma(X + 1).sum(-1) + (X * logits).sum(-1)


def test_a_multinomial_is_looped_over_and_agrees_with_vmap():
    X = torch.tensor([[5.0, 3, 2], [10, 0, 0], [0, 4, 6]]).double()
    values = []
    for model, batched in ((Votes(), False), (WrittenOutVotes(), True), (WrittenOutVotes(), False)):
        objective = replace(bind(model, DiagonalNormal(), DiagonalNormal(), X), batched=batched)
        raw, raw_globals = random_(3, 6, seed=2, scale=0.4), random_(4, seed=3, scale=0.4)
        nodes = nodes_for(FixedDraws(10), objective, X)
        values.append(objective.row_terms(raw, raw_globals, X, nodes))
    torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(values[1], values[2], rtol=1e-12, atol=1e-12)


class OneLogJoint(LatentVariableModel):
    """The linear model through its joint density alone."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return LinearModel().global_prior(n_features)

    def log_joint(self, theta, z, X):
        return LinearModel().log_joint(theta, z, X)


def test_a_bare_log_joint_gives_the_sum_of_the_rows():
    objective, X, raw, raw_globals = bound(LinearModel(), DiagonalNormal(), n_features=1)
    bare = bind(OneLogJoint(), DiagonalNormal(), DiagonalNormal(), X)
    nodes = nodes_for(GaussHermite(3), objective, X)
    rows = objective.row_terms(raw, raw_globals, X, nodes)
    whole = bare.row_terms(raw, raw_globals, X, nodes)
    assert (rows.shape, whole.shape) == ((N_ROWS,), ())
    torch.testing.assert_close(whole, rows.sum(), rtol=1e-12, atol=0)


@each_family
@each_global_family
def test_no_factors_lift_the_elbo_above_the_evidence(family, global_family):
    objective, X, _, _ = bound(LinearModel(), family, global_family, n_features=1)
    evidence, weights = linear_evidence(X, 1.155, 2.43), torch.ones(N_ROWS).double()
    nodes = nodes_for(GaussHermite(3), objective, X)
    for seed in range(50):
        raw = random_(N_ROWS, family.n_parameters(1), seed=seed)
        raw_globals = random_(global_family.n_parameters(1), seed=100 + seed)
        assert float(elbo(objective, raw, raw_globals, X, weights, nodes)) < evidence


def test_closed_form_noise_needs_a_model_that_has_one():
    objective, X, raw, raw_globals = bound(LinearModel(), DIAGONAL, n_features=1)
    with pytest.raises(ValueError, match=r"ClosedForm\(\): LinearModel has no closed form for"):
        objective.row_terms(raw, raw_globals, X, None)
