"""What a model may be, and the words for what it may not."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import (
    Categorical,
    Cauchy,
    Dirichlet,
    Exponential,
    Geometric,
    Independent,
    LogNormal,
    MixtureSameFamily,
    Multinomial,
    MultivariateNormal,
    Normal,
    Poisson,
    StudentT,
    TransformedDistribution,
)
from torch.distributions.transforms import AffineTransform

from skavi import AmortizedVI, FactorizedVI, can_close_gap
from skavi.distributions import LeavesTorchError
from skavi.models import HierarchicalModel, LatentVariableModel, MarkovModel, TimeSeriesModel
from skavi.noise import GaussHermite

X = np.random.default_rng(0).normal(size=(30, 1))
ONE = torch.ones(1)


class One(HierarchicalModel):
    """x_n ~ N(z_n, 1), with any prior of one latent."""

    n_latents = 1

    def __init__(self, prior=None):
        self.prior = prior

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta):
        return self.prior

    def likelihood(self, z, theta):
        return Normal(z, 1.0)


class Chain(MarkovModel):
    """A random walk, with any first and later distributions."""

    n_latents = 1

    def __init__(self, first=None, later=None):
        self.first = first
        self.later = later

    def global_prior(self, n_features):
        return {}

    def initial_prior(self, theta):
        return self.first

    def transition(self, z_previous, theta):
        return self.later(z_previous, 1.0)

    def likelihood(self, z, theta):
        return Normal(z, 1.0)


# Latents for which q has no factor (tests/models/test_bijected_latents.py walks all distributions)

REFUSED = {
    "Poisson": (Poisson(2.0), "sum a discrete latent out"),
    "Geometric": (Geometric(0.3), "sum a discrete latent out"),
    "Dirichlet": (Dirichlet(ONE), "torch.softmax"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("estimator", [FactorizedVI, AmortizedVI])
def test_latents_without_a_factor_are_refused(estimator, name):
    prior, remedy = REFUSED[name]
    message = rf"One\.local_prior returned {name} with support \w+.*: .*{remedy}"
    with pytest.raises(ValueError, match=message):
        estimator(One(prior)).fit(X)


def test_so_are_those_of_chains_and_series():
    with pytest.raises(ValueError, match=r"Chain\.initial_prior returned Exponential with support"):
        FactorizedVI(Chain(Exponential(ONE), Normal)).fit(X)
    with pytest.raises(ValueError, match=r"Chain\.transition returned LogNormal with support"):
        FactorizedVI(Chain(Normal(0.0, ONE), LogNormal)).fit(X)

    class Series(TimeSeriesModel):
        n_latents = 1

        def global_prior(self, n_features):
            return {}

        def local_prior(self, theta, x_previous):
            return LogNormal(x_previous, 1.0)

        def likelihood(self, z, theta):
            return Normal(z, 1.0)

    with pytest.raises(ValueError, match=r"Series\.local_prior returned LogNormal"):
        FactorizedVI(Series()).fit(X)


def evidence(log_prior):
    """Log evidence of X under One, by a sum over a fine grid (all of them smooth or kinked)."""
    z = np.linspace(-60, 60, 120_001)
    prior = log_prior(torch.as_tensor(z)[:, None]).reshape(-1).numpy()
    rows = -0.5 * (X - z) ** 2 - 0.5 * math.log(2 * math.pi)
    return np.logaddexp.reduce(prior + rows, axis=1).sum() + len(X) * math.log(z[1] - z[0])


MIXTURE = MixtureSameFamily(Categorical(torch.ones(2)), Normal(torch.tensor([-1.0, 1.0]), 1.0))


@pytest.mark.parametrize(
    ("prior", "slack"),
    [
        (Normal(0.0, 1.0), 1e-6),
        (Normal(torch.zeros(1), 1.0), 1e-6),
        (MultivariateNormal(torch.zeros(1), torch.eye(1)), 1e-6),
        (Independent(Normal(torch.zeros(1), ONE), 1), 1e-6),
        # No moments that torch knows.
        (TransformedDistribution(Normal(0.0, ONE), [AffineTransform(1.0, 2.0)]), 1e-6),
        # Posteriors that are not normal: the bound is lower by up to 0.05 nats a row.
        (StudentT(5.0), 1.5),
        (Cauchy(0.0, 1.0), 1.5),
        (MIXTURE, 1.5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_real_support_is_served(prior, slack):
    vi = FactorizedVI(One(prior)).fit(X)
    exact = evidence(prior.log_prob)
    assert exact - slack < vi.elbo_ < exact + 1e-6


# A number of latents, as a method or as an attribute


class Counted(One):
    """`n_latents` set in __init__."""

    def __init__(self, n_latents=1):
        self.n_latents = n_latents
        self.prior = Normal(torch.zeros(1), 1.0)


class Method(Counted):
    """`n_latents` as a method."""

    def __init__(self):
        self.prior = Normal(torch.zeros(1), 1.0)

    def n_latents(self, n_features):
        return n_features


def test_n_latents_is_a_method_or_an_attribute():
    elbos = [FactorizedVI(model).fit(X).elbo_ for model in (One(Normal(0.0, 1.0)), Counted())]
    assert elbos[0] == elbos[1] == FactorizedVI(Method()).fit(X).elbo_
    assert elbos[0] == pytest.approx(-42.9869, abs=1e-4)


@pytest.mark.parametrize("number", [-1, 1.5, True, "one", None])
def test_n_latents_must_be_a_whole_number(number):
    with pytest.raises(ValueError, match=r"Counted\.n_latents is .*: it must be an integer >= 0"):
        FactorizedVI(Counted(number)).fit(X)


def test_a_scalar_prior_serves_one_latent_only():
    scalar, vector = One(Normal(0.0, 1.0)), One(Normal(torch.zeros(1), 1.0))
    fits = [FactorizedVI(model, random_state=0).fit(X) for model in (scalar, vector)]
    np.testing.assert_array_equal(*(vi.transform(X) for vi in fits))
    drawn = [vi.sample(4, random_state=0) for vi in fits]
    for one, other in zip(*drawn, strict=True):
        assert one.shape == other.shape == (4, 1)
        np.testing.assert_array_equal(one, other)

    class Two(One):
        n_latents = 2

        def likelihood(self, z, theta):
            return Normal(z.sum(-1, keepdim=True), 1.0)

    with pytest.raises(ValueError, match=r"Two\.local_prior has shape \(\) .* n_latents=2"):
        FactorizedVI(Two(Normal(0.0, 1.0))).fit(X)


def test_a_scalar_first_prior_serves_a_chain():
    scalar, vector = (Chain(prior, Normal) for prior in (Normal(0.0, 1.0), Normal(0.0, ONE)))
    one, other = (FactorizedVI(model).fit(X) for model in (scalar, vector))
    assert one.elbo_ == other.elbo_
    assert one.sample(3, random_state=0)[1].shape == (3, 1)


# What a model must define


class ByDensity(One):
    """The likelihood as a log density alone."""

    def __init__(self):
        self.prior = Normal(torch.zeros(1), 1.0)

    likelihood = HierarchicalModel.likelihood

    def log_likelihood(self, theta, z, X):
        return Normal(z, 1.0).log_prob(X).sum(-1)


@pytest.mark.parametrize("estimator", [FactorizedVI, AmortizedVI])
def test_a_log_likelihood_is_enough(estimator):
    vi = estimator(ByDensity(), random_state=0).fit(X)
    same = estimator(One(Normal(torch.zeros(1), 1.0)), random_state=0).fit(X)
    assert vi.elbo_ == pytest.approx(same.elbo_, abs=1e-9)
    np.testing.assert_allclose(vi.transform(X), same.transform(X), atol=1e-7)
    assert can_close_gap(ByDensity(), X).context == (0, 0)
    with pytest.raises(NotImplementedError, match="ByDensity does not define likelihood"):
        vi.sample(3)


class ChainByDensity(Chain):
    """The same for a chain."""

    likelihood = MarkovModel.likelihood

    def log_likelihood(self, theta, z, X):
        return Normal(z, 1.0).log_prob(X).sum(-1)


def test_a_log_likelihood_is_enough_for_a_chain():
    fits = [FactorizedVI(k(Normal(0.0, 1.0), Normal)).fit(X) for k in (Chain, ChainByDensity)]
    assert fits[0].elbo_ == pytest.approx(fits[1].elbo_, abs=1e-9)


class Bare(HierarchicalModel):
    """Nothing but globals."""

    def global_prior(self, n_features):
        return {"mu": Normal(0.0, 1.0)}


class BareLatents(Bare):
    """A number of latents as well."""

    n_latents = 1


class BarePrior(BareLatents):
    """And a prior of theirs."""

    def local_prior(self, theta):
        return Normal(0.0, 1.0)


class BareChain(Chain):
    """A chain that says nothing of its rows."""

    likelihood = MarkovModel.likelihood


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Bare(), r"Bare does not define n_latents: give it n_latents\(self, n_features\), or"),
        (BareLatents(), r"BareLatents does not define local_prior: .*n_latents 0"),
        (BarePrior(), r"BarePrior does not define likelihood: .*or log_likelihood\(self, theta"),
        (BareChain(Normal(0.0, 1.0), Normal), r"BareChain does not define likelihood: "),
    ],
    ids=repr,
)
def test_what_is_missing_is_named_before_any_work(model, message):
    for ask in (FactorizedVI(model).fit, AmortizedVI(model).fit, lambda X: can_close_gap(model, X)):
        with pytest.raises(TypeError, match=message):
            ask(X)


class Summed(ByDensity):
    """A log likelihood summed over rows, which each row would count."""

    def log_likelihood(self, theta, z, X):
        return Normal(z, 1.0).log_prob(X).sum()


class PerCell(ByDensity):
    """A log likelihood that is not summed over columns."""

    def log_likelihood(self, theta, z, X):
        return Normal(z, 1.0).log_prob(X)


@pytest.mark.parametrize(("model", "shape"), [(Summed(), r"\(\)"), (PerCell(), r"\(30, 1\)")])
def test_a_log_likelihood_is_one_number_a_row(model, shape):
    message = rf"{type(model).__name__}\.log_likelihood has shape {shape} for 30 rows"
    with pytest.raises(ValueError, match=message):
        FactorizedVI(model).fit(X)


# Methods that take values out of torch


class Escapes(HierarchicalModel):
    """A model that asks for the values of tensors, in one of many ways."""

    n_latents = 1

    def __init__(self, way=None):
        self.way = way

    def global_prior(self, n_features):
        return {"mu": Normal(1.0, 1.0)}

    def local_prior(self, theta):
        return Normal(0.0, 1.0)

    def likelihood(self, z, theta):
        return Normal(self.way(z, theta["mu"]), 1.0)


def _branch(z, mu):
    return z if mu > 0 else -z


WAYS = {
    "np.exp": lambda z, mu: z + np.exp(mu),
    "np.exp of latents": lambda z, mu: np.exp(z),
    "np.mean": lambda z, mu: z - np.mean(z),
    "np.where": lambda z, mu: torch.as_tensor(np.where(z > 0, z, 0.0)),
    "math.exp": lambda z, mu: z + math.exp(mu),
    "float": lambda z, mu: z + float(mu),
    "item": lambda z, mu: z + mu.item(),
    "numpy": lambda z, mu: z + torch.as_tensor(mu.detach().numpy()),
    "if": _branch,
    "if of latents": lambda z, mu: z if (z > 0).all() else mu + z,
    "if of many": lambda z, mu: z if z > 0 else mu + z,
}


@pytest.mark.parametrize("way", WAYS)
def test_values_taken_out_of_torch_are_told_with_torch_s_words(way):
    message = (
        r"\(line \d+\) needs the values of a tensor, .*vmap and autograd.* use torch's functions "
        r".*torch\.where.* torch says: \w+"
    )
    for ask in (FactorizedVI(Escapes(WAYS[way])).fit, AmortizedVI(Escapes(WAYS[way])).fit):
        with pytest.raises(LeavesTorchError, match=message) as caught:
            ask(X)
        assert str(caught.value.__cause__) in str(caught.value)


def test_the_method_is_named():
    class Branching(One):
        def likelihood(self, z, theta):
            return Normal(z, 1.0) if z.sum() > 0 else Normal(z, 2.0)

    with pytest.raises(LeavesTorchError, match=r"^Branching\.likelihood \(line \d+\) needs"):
        FactorizedVI(Branching(Normal(0.0, 1.0))).fit(X)

    class BranchingJoint(LatentVariableModel):
        n_latents = 1

        def global_prior(self, n_features):
            return {}

        def log_joint(self, theta, z, X):
            return -((X - z) ** 2).sum() if z.sum() > 0 else -(z**2).sum()

    with pytest.raises(LeavesTorchError, match=r"^BranchingJoint\.log_joint \(line \d+\) needs"):
        FactorizedVI(BranchingJoint()).fit(X)


def test_values_of_the_rows_may_be_taken():
    """X is neither batched nor differentiated: numpy and branches on it are fine."""

    class Scaled(One):
        def log_likelihood(self, theta, z, X):
            scale = 1.0 if X.abs().sum() > 0 else 2.0
            return Normal(z * float(np.abs(X.numpy() * 0 + 1).mean()), scale).log_prob(X).sum(-1)

    vi = FactorizedVI(Scaled(Normal(0.0, 1.0))).fit(X)
    assert vi.elbo_ == pytest.approx(-42.9869, abs=1e-4)


def test_what_torch_itself_cannot_batch_is_still_looped_over():
    class Votes(HierarchicalModel):
        def n_latents(self, n_features):
            return n_features

        def global_prior(self, n_features):
            return {}

        def local_prior(self, theta):
            return Normal(torch.zeros(2), 1.0)

        def log_likelihood(self, theta, z, X):
            return Multinomial(4, logits=z, validate_args=False).log_prob(X)

    vi = FactorizedVI(Votes(), noise=GaussHermite(3)).fit([[1.0, 3.0], [2.0, 2.0]])
    assert np.isfinite(vi.elbo_)
