"""Finite latents: Bayes' rule, exact evidence, and the gap of amortizing, as theory says."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import binom, norm
from torch.distributions import Bernoulli, Beta, Binomial, HalfNormal, Normal, OneHotCategorical
from torch.distributions import Categorical as Draw

from skavi import AmortizedVI, FactorizedVI, amortization_gap, can_close_gap
from skavi.families import Categorical, CategoricalFactors, DiagonalNormal, FullNormal
from skavi.inference_functions import Polynomial
from skavi.models import HierarchicalModel, LinearModel

WEIGHTS, MEANS = np.array([0.5, 0.3, 0.2]), np.array([-1.0, 1.0, 3.0])
X = np.random.default_rng(0).normal(1.0, 2.0, size=(60, 1))


class Known(HierarchicalModel):
    """A mixture of normals with everything known."""

    n_latents = 1

    def __init__(self, sds=(1.0, 0.7, 1.5)):
        self.sds = sds

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta):
        return Draw(torch.tensor(WEIGHTS))

    def likelihood(self, z, theta):
        return Normal(torch.tensor(MEANS)[z], torch.tensor(self.sds)[z])


def bayes(sds=(1.0, 0.7, 1.5)):
    logs = norm.logpdf(X, MEANS, sds) + np.log(WEIGHTS)
    evidence = logsumexp(logs, axis=1)
    return np.exp(logs - evidence[:, None]), evidence


@pytest.fixture(scope="module")
def known():
    return FactorizedVI(Known()).fit(X)


def test_probabilities_are_bayes_rule_and_the_elbo_is_the_evidence(known):
    probabilities, evidence = bayes()
    assert isinstance(known.family_, Categorical)
    np.testing.assert_allclose(known.transform(X), probabilities, atol=1e-6)
    assert known.elbo_ == pytest.approx(evidence.sum(), abs=1e-8)
    np.testing.assert_allclose(known.score_samples(X), evidence, atol=1e-9)
    np.testing.assert_allclose(known.score_samples(X, n_draws=4), evidence, atol=1e-9)


def test_results_speak_of_states(known):
    probabilities, _ = bayes()
    posterior = known.posterior(X)
    np.testing.assert_array_equal(known.predict(X), probabilities.argmax(1))
    np.testing.assert_allclose(posterior.probabilities, probabilities, atol=1e-9)
    assert list(known.get_feature_names_out()) == ["state0", "state1", "state2"]
    draws = posterior.sample(4000, random_state=0)
    assert draws.shape == (4000, 60, 1)
    shares = (draws == np.arange(3)).mean(0)  # sds of at most 0.008
    np.testing.assert_allclose(shares, probabilities, atol=0.04)
    assert list(posterior.to_frame()) == ["state0", "state1", "state2"]
    assert "StatePosterior: 60 rows" in posterior._repr_html_()
    assert posterior.entropy.max() <= np.log(3)
    np.testing.assert_allclose(known.inverse_transform(np.eye(3))[:, 0], MEANS)
    rows, states = known.sample(2000, random_state=0)
    assert rows.shape == states.shape == (2000, 1)
    np.testing.assert_allclose((states == np.arange(3)).mean(0), WEIGHTS, atol=0.04)
    known.set_params(output="mean_sd")
    assert known.transform(X).shape == (60, 6)
    known.set_params(output="mean")


def test_real_latents_have_no_states():
    assert not hasattr(FactorizedVI(LinearModel()).fit(X), "predict")


def test_draws_from_normal_noise_follow_the_probabilities():
    logs = torch.tensor(WEIGHTS).log()[None]
    factors = CategoricalFactors(logs, torch.arange(3)[:, None])
    noise = torch.randn(20_000, 1, 3, generator=torch.Generator().manual_seed(0))
    states = factors.draw(noise.double())[..., 0]
    shares = torch.nn.functional.one_hot(states[:, 0]).double().mean(0)
    np.testing.assert_allclose(shares, WEIGHTS, atol=0.015)  # 4 sds
    np.testing.assert_array_equal(factors.log_prob(noise.double()), logs[0][states])


@pytest.mark.parametrize(
    ("degree", "sds", "closed"),
    [(2, (1.0, 0.7, 1.5), True), (1, (1.0, 0.7, 1.5), False), (1, (0.9, 0.9, 0.9), True)],
)
def test_logits_are_quadratic_in_x_or_linear_where_the_variances_are_equal(degree, sds, closed):
    model = _Independent(sds)
    amortized = AmortizedVI(model, Polynomial(degree)).fit(X)
    gap = amortization_gap(amortized, X, FactorizedVI(model).fit(X))
    assert (gap.per_row.max() < 1e-6) == closed
    if closed:
        np.testing.assert_allclose(amortized.transform(X), bayes(sds)[0], atol=1e-6)


class _Independent(Known):
    ideal_context = context = (0, 0)


def test_the_verdict_compares_states():
    assert can_close_gap(Known(), X, random_state=0).context == (0, 0)

    class Coupled(Known):
        def log_local(self, theta, z, X):
            terms = super().log_local(theta, z, X)
            return terms - 0.1 * (z[:, 0] - z.roll(1, 0)[:, 0]) ** 2

        def atoms(self, space, X):
            return torch.arange(3)[:, None]

    verdict = can_close_gap(Coupled(), X[:12], random_state=0)
    assert not verdict.closable
    assert verdict.evidence.latent_coupling > 1e-3


class Items(HierarchicalModel):
    """Several finite latents a row, of each kind that torch has."""

    def __init__(self, kind):
        self.kind = kind

    def n_latents(self, n_features):
        return 3 if self.kind == "one_hot" else 2

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta):
        shares = torch.tensor([0.2, 0.7])
        return {
            "bernoulli": Bernoulli(shares),
            "binomial": Binomial(2, shares),
            "one_hot": OneHotCategorical(torch.tensor(WEIGHTS)),
        }[self.kind]

    def likelihood(self, z, theta):
        return Normal((z * (1 + torch.arange(z.shape[1]))).sum(-1, keepdim=True), 0.8)


@pytest.mark.parametrize("kind", ["bernoulli", "binomial", "one_hot"])
def test_all_combinations_of_finite_latents_are_summed_over(kind):
    vi, shares = FactorizedVI(Items(kind)).fit(X), [0.2, 0.7]
    if kind == "one_hot":
        atoms, logs = np.eye(3), np.log(WEIGHTS)
    else:
        top = 2 if kind == "bernoulli" else 3
        atoms = np.stack(np.meshgrid(*[range(top)] * 2, indexing="ij"), -1).reshape(-1, 2)
        logs = binom.logpmf(atoms, top - 1, shares).sum(1)
    means = (atoms * (1 + np.arange(atoms.shape[1]))).sum(1)
    joint = norm.logpdf(X, means, 0.8) + logs
    evidence = logsumexp(joint, axis=1)
    assert vi.elbo_ == pytest.approx(evidence.sum(), abs=1e-8)
    np.testing.assert_allclose(vi.transform(X), np.exp(joint - evidence[:, None]), atol=1e-9)
    np.testing.assert_array_equal(vi.posterior(X).atoms, atoms)


class TwoNormals(HierarchicalModel):
    """Stan's low_dim_gauss_mix with its latents."""

    n_latents = 1

    def global_prior(self, n_features):
        return {
            "share": Beta(torch.tensor(5.0), torch.tensor(5.0)),
            "mu": Normal(torch.tensor([-2.0, 2.0]), 1.0),
            "sigma": HalfNormal(torch.tensor([2.0, 2.0])),
        }

    def local_prior(self, theta):
        return Bernoulli(theta["share"])

    def likelihood(self, z, theta):
        k = z.long()
        return Normal(theta["mu"][k], theta["sigma"][k])


class SummedOut(TwoNormals):
    """The same without its latents."""

    n_latents = 0

    def log_likelihood(self, theta, z, X):
        each = [Normal(theta["mu"][k], theta["sigma"][k]).log_prob(X[:, 0]) for k in range(2)]
        share = theta["share"]
        return torch.logaddexp(each[0] + torch.log1p(-share), each[1] + share.log())


@pytest.fixture(scope="module")
def mixtures():
    rng = np.random.default_rng(1)
    first = rng.random(80) < 0.4
    rows = np.where(first, rng.normal(-2, 0.4, 80), rng.normal(2, 0.6, 80))[:, None]
    return rows, FactorizedVI(TwoNormals(), random_state=0).fit(rows)


def test_separated_components_cost_nothing(mixtures):
    rows, vi = mixtures
    summed = FactorizedVI(SummedOut(), random_state=0).fit(rows)
    assert vi.converged_
    for name, mean in summed.global_posterior_.mean.items():
        away = np.abs(vi.global_posterior_.mean[name] - mean) / summed.global_posterior_.sd[name]
        assert away.max() < 0.1
    assert summed.elbo_ - 1.0 < vi.elbo_ < summed.elbo_


def test_a_function_finds_the_same_optimum_of_theta(mixtures):
    rows, vi = mixtures
    amortized = AmortizedVI(_OwnWindow(), Polynomial(2), random_state=0, tol=1e-7).fit(rows)
    assert amortized.elbo_ == pytest.approx(vi.elbo_, abs=1e-4)  # logits are quadratic
    assert vi.global_posterior_.corrected_sd is not None


class _OwnWindow(TwoNormals):
    ideal_context = context = (0, 0)


@pytest.mark.parametrize("family", [DiagonalNormal(), FullNormal()])
def test_a_normal_family_is_refused_by_name(family):
    with pytest.raises(ValueError, match=r"Known take 3 values, which only families.Categorical"):
        FactorizedVI(Known(), family=family).fit(X)


def test_states_are_refused_where_there_are_none():
    with pytest.raises(ValueError, match="LinearModel has no latents of finite support"):
        FactorizedVI(LinearModel(), family=Categorical()).fit(X)


def test_too_many_combinations_are_refused():
    class Many(Items):
        def n_latents(self, n_features):
            return 20

        def local_prior(self, theta):
            return Bernoulli(torch.full((20,), 0.5))

    with pytest.raises(ValueError, match=r"20 latents of 2 values each have 1.05e\+06 comb"):
        FactorizedVI(Many("bernoulli")).fit(X)
