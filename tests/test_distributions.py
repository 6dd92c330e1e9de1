"""Flat, the fit's own dtype, and the unconstrained space of the globals with its Jacobians."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from torch.distributions import (
    Beta,
    Chi2,
    Dirichlet,
    Exponential,
    Gamma,
    HalfCauchy,
    HalfNormal,
    Independent,
    InverseGamma,
    LKJCholesky,
    LogNormal,
    MultivariateNormal,
    Normal,
    StudentT,
    Uniform,
    Weibull,
    constraints,
)

from skavi import FactorizedVI
from skavi._numerics.quadrature import product_rule
from skavi.distributions import (
    Flat,
    PriorOfVariance,
    defaults_of,
    expected_log_prob,
    innermost,
    known_expectation,
    log_prob,
)
from skavi.families import DiagonalFactors, FullFactors
from skavi.models import HierarchicalModel, LatentVariableModel
from skavi.models._global_space import GlobalSpace


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


# Every kind of support a global may have: name -> proper prior of one draw.
PRIORS = {
    "real": Normal(double(0.5), double(2.0)),
    "real, not normal": StudentT(double(4.0), double(0.0), double(1.0)),
    "positive": InverseGamma(double(3.0), double(2.0)),
    "positive, heavy": HalfCauchy(double(1.5)),
    "unit interval": Beta(double(2.0), double(3.0)),
    "interval": Uniform(double(-1.0), double(3.0)),
    "matrix": LogNormal(torch.zeros(2, 3).double(), torch.ones(2, 3).double()),
    "independent": Independent(Exponential(double(1.0, 2.0)), 1),
    "simplex": Dirichlet(double(2.0, 3.0, 1.5)),
    "Cholesky": LKJCholesky(3, double(2.0)[0]),
}
ONE_NUMBER = ["real", "real, not normal", "positive", "positive, heavy", "unit interval"]

each_prior = pytest.mark.parametrize("name", PRIORS)


def random_u(space, scale=0.7):
    generator = torch.Generator().manual_seed(3)
    return scale * torch.randn(space.size, generator=generator, dtype=torch.float64)


# Flat and friends


def test_flat_has_density_one_and_no_draws():
    flat = Flat((2,))
    assert torch.equal(flat.log_prob(double(-1e9, 3.0)), double(0.0, 0.0))
    assert flat.batch_shape == (2,)
    with pytest.raises(NotImplementedError, match="Flat is improper"):
        flat.sample()


def test_log_prob_sums_univariate_distributions_over_the_last_dimension():
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()
    univariate, joint = Normal(z, 2.0), Independent(Normal(z, 2.0), 1)
    assert log_prob(univariate, z + 1).shape == (4,)
    torch.testing.assert_close(log_prob(univariate, z + 1), log_prob(joint, z + 1))
    assert innermost(Independent(joint, 1)) is joint.base_dist


def test_expected_log_prob_of_a_normal_is_its_quadrature():
    prior, mean, sd = Normal(double(1.0), double(0.3)), double(0.2), double(1.7)
    nodes, weights = (torch.as_tensor(a) for a in product_rule((2,)))
    sampled = weights @ prior.log_prob(mean + sd * nodes[:, 0])  # exact: the density is quadratic
    torch.testing.assert_close(expected_log_prob(prior, mean, sd)[0], sampled)
    assert torch.equal(expected_log_prob(Flat((1,)), mean, sd), double(0.0))
    assert expected_log_prob(HalfCauchy(double(1.0)), mean, sd) is None


OF_LOG = [
    Gamma(double(2.5), double(0.7)),
    Chi2(double(3.0)),
    Exponential(double(1.7)),
    InverseGamma(double(1.5), double(0.4)),
    PriorOfVariance(double(1.5), double(0.4)),
    HalfNormal(double(1.3)),
    Weibull(double(1.2), double(0.8)),
    LogNormal(double(-0.4), double(0.6)),
]


@pytest.mark.parametrize("prior", OF_LOG, ids=lambda prior: type(prior).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_expectations_of_positive_numbers_are_their_quadrature(prior, dtype):
    mean, sd = double(0.3, -1.1), double(0.4, 0.05)
    nodes, weights = (torch.as_tensor(a) for a in product_rule((100,)))
    u = mean + sd * nodes
    quadrature = weights @ (prior.log_prob(u.exp()) + u)
    known = known_expectation(Independent(prior.expand((2,)), 1), mean.to(dtype))
    value = known(mean.to(dtype), sd.to(dtype))
    assert value.dtype is dtype
    rounding = 1e-12 if dtype is torch.float64 else 1e-5
    torch.testing.assert_close(value.double(), quadrature, rtol=rounding, atol=rounding)


def test_no_expectation_is_known_of_a_density_that_a_subclass_changed():
    class Tilted(Gamma):
        def log_prob(self, value):
            return super().log_prob(value) + value

    mean, sd = double(0.3), double(0.4)
    assert known_expectation(Tilted(double(2.0), double(3.0)), mean) is None
    assert known_expectation(HalfCauchy(double(1.0)), mean) is None
    assert known_expectation(Flat(support=constraints.positive), mean) is None
    assert torch.equal(known_expectation(Flat((1,)), mean)(mean, sd), double(0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_python_numbers_take_the_dtype_of_the_fit(dtype):
    with defaults_of(torch.zeros(1, dtype=dtype)):
        assert Normal(0.0, 0.1).scale.dtype == dtype
        assert torch.tensor([1, 2]).dtype == torch.int64
        assert torch.arange(3).dtype == torch.int64
        assert torch.full((2,), 3).dtype == torch.int64
        assert {f(2).dtype for f in (torch.zeros, torch.ones, torch.eye)} == {dtype}
        assert torch.full((2,), 0.1).dtype == dtype
        assert torch.linspace(0, 1, 3).dtype == dtype
        assert torch.zeros(2, dtype=torch.long).dtype == torch.int64
        assert torch.as_tensor(0.1).dtype == dtype
    assert torch.zeros(1).dtype == torch.float32


def test_a_python_scale_keeps_its_64_bits():
    with defaults_of(double(0.0)):
        assert float(Normal(0.0, 0.1).scale) == 0.1


# GlobalSpace: names, constraints, Jacobians


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_made_before_take_the_dtype_of_the_fit(dtype):
    other = torch.float32 if dtype is torch.float64 else torch.float64
    held, z = torch.tensor([[1.0, 2.0]], dtype=other), torch.ones(3, 1, dtype=dtype)
    normal = MultivariateNormal(torch.zeros(2, dtype=other), torch.eye(2, dtype=other))
    with defaults_of(z):
        product = z @ held  # refused by torch where the dtypes differ
        for made in (product, held.exp(), torch.cat([held, product]), normal.log_prob(product)):
            assert made.dtype is dtype
        assert held.dtype is dtype
        assert torch.einsum("ni,ij->nj", z, held).dtype is dtype
        assert torch.nn.functional.linear(input=z, weight=held.mT).dtype is dtype
        counts = torch.ones(3, dtype=torch.long)
        assert counts.dtype is torch.long
    assert held.dtype is other
    with pytest.raises(RuntimeError, match="dtype"):
        z @ held


def test_what_is_written_into_is_not_copied():
    held, z = torch.zeros(3), torch.ones(3, dtype=torch.float64)
    with defaults_of(z):
        made = torch.zeros(3)
        made[:2] = torch.ones(2).float()
        made += held
        held[1] = z[0]
        held.add_(z)
    torch.testing.assert_close(made, double(1.0, 1.0, 0.0))
    torch.testing.assert_close(held, torch.tensor([1.0, 2.0, 1.0]))


def test_defaults_end_with_their_body_and_with_an_error():
    z = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ZeroDivisionError), defaults_of(z), defaults_of(z):
        assert torch.zeros(1).dtype is torch.float64
        _ = 1 / 0
    assert torch.zeros(1).dtype is torch.float32


ONE, TENTH = torch.ones(1), torch.tensor([[0.1, 0.2]])
HELD = {
    dtype: MultivariateNormal(torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype))
    for dtype in (torch.float32, torch.float64)
}


class Constants(HierarchicalModel):
    """x_n ~ N(z_n W, 1) with W, and what priors need, of another dtype and from outside."""

    n_latents = 1

    def __init__(self, dtype=torch.float32, prior=None):
        self.dtype = dtype
        self.prior = prior
        self.weights = TENTH.to(dtype)

    def global_prior(self, n_features):
        return {"b": HELD[self.dtype]}

    def local_prior(self, theta):
        return Normal(0 * ONE, ONE) if self.prior is None else self.prior

    def mean(self, z, theta):
        return z @ self.weights + theta["b"]

    def likelihood(self, z, theta):
        return Normal(self.mean(z, theta), ONE)


class WrittenOut(Constants):
    """The same by `log_local`."""

    def log_local(self, theta, z, X):
        rows = ((X - self.mean(z, theta)) ** 2).sum(-1) + (z**2).sum(-1)
        return -0.5 * rows - 1.5 * math.log(2 * math.pi)


class OneJoint(LatentVariableModel):
    """The same by `log_joint`."""

    n_latents = 1

    def global_prior(self, n_features):
        return Constants().global_prior(n_features)

    def log_joint(self, theta, z, X):
        mean = z @ TENTH + theta["b"]
        return Normal(mean, ONE).log_prob(X).sum() + Normal(0 * ONE, ONE).log_prob(z).sum()


@pytest.mark.parametrize(
    "model",
    [Constants(), Constants(prior=Normal(torch.zeros(1), 1.0)), WrittenOut(), OneJoint()],
    ids=["module", "held", "log_local", "log_joint"],
)
def test_constants_of_single_precision_fit_as_in_double(model):
    X = np.random.default_rng(0).normal(size=(12, 2))
    exact = FactorizedVI(Constants(torch.float64), random_state=0).fit(X)
    vi = FactorizedVI(model, random_state=0).fit(X)
    assert vi.elbo_ == pytest.approx(exact.elbo_, abs=1e-9)
    np.testing.assert_allclose(vi.transform(X), exact.transform(X), atol=1e-6)
    assert vi.converged_


def test_globals_lie_side_by_side_and_round_trip():
    space = GlobalSpace(PRIORS)
    u = random_u(space)
    assert space.slices["real"] == slice(0, 1)
    assert max(s.stop for s in space.slices.values()) == space.size
    theta = space.constrain(u)
    assert {n: v.shape for n, v in theta.items()} == space.shapes
    torch.testing.assert_close(space.unconstrain(theta), u, rtol=1e-9, atol=1e-9)


@each_prior
def test_constrained_values_lie_in_the_support(name):
    space = GlobalSpace({name: PRIORS[name]})
    value = space.constrain(random_u(space, scale=3.0))[name]
    assert bool(PRIORS[name].support.check(value).all())


def free_coordinates(name, value):
    """The numbers of a constrained value that can move on their own, as one vector."""
    if name == "simplex":
        return value[:-1]
    if name == "Cholesky":  # LKJCholesky's density is over the entries below the diagonal
        return torch.cat([value[1, :1], value[2, :2]])
    return value.reshape(-1)


@each_prior
def test_the_jacobian_is_that_of_finite_differences(name):
    """log p(u) = log p(theta(u)) + log |d theta / d u|."""
    space = GlobalSpace({name: PRIORS[name]})
    u, step = random_u(space), 1e-5
    columns = [
        free_coordinates(name, space.constrain(u + step * e)[name])
        - free_coordinates(name, space.constrain(u - step * e)[name])
        for e in torch.eye(space.size).double()
    ]
    log_volume = torch.linalg.slogdet(torch.stack(columns, 1) / (2 * step))[1]
    density = PRIORS[name].log_prob(space.constrain(u)[name]).sum()
    # A central difference of step 1e-5: truncation and cancellation are both about 1e-10.
    torch.testing.assert_close(space.log_prior(u), density + log_volume, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ONE_NUMBER)
def test_scalar_priors_integrate_to_one_in_u(name):
    space = GlobalSpace({name: PRIORS[name]})

    def density(u):
        return math.exp(space.log_prior(double(u)))

    # exp(-|u|) is the slowest tail: 1e-17 beyond 40; Student's t_4 leaves 1e-5 there.
    reach = 2000 if name == "real, not normal" else 40
    total = quad(density, -reach, reach, points=[-2, 0, 2], limit=300)[0]
    assert total == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("name", ["simplex", "Cholesky"])
def test_vector_priors_integrate_to_one_in_u(name):
    """Importance sampling from a wide Student's t: z score of the mean weight."""
    space = GlobalSpace({name: PRIORS[name]})
    draws = stats.t(5).rvs(size=(20_000, space.size), random_state=0) * 1.5
    log_q = (stats.t(5).logpdf(draws / 1.5) - math.log(1.5)).sum(1)
    log_p = torch.func.vmap(space.log_prior)(torch.as_tensor(draws)).numpy()
    weights = np.exp(log_p - log_q)
    assert abs(weights.mean() - 1) < 4 * stats.sem(weights)
    assert stats.sem(weights) < 0.03  # a missing Jacobian is off by far more


@each_prior
@pytest.mark.parametrize("factors", [DiagonalFactors, FullFactors])
def test_expected_log_prior_agrees_with_draws(name, factors):
    """A second global before it shows that the right slice of q is read."""
    space = GlobalSpace({"before": Normal(double(0.0, 1.0), 1.0), name: PRIORS[name]})
    generator = torch.Generator().manual_seed(5)
    mean, sd = random_u(space), 0.3 + 0.1 * torch.arange(space.size).double()
    scale = sd
    if factors is FullFactors:
        below = 0.2 * torch.randn(len(sd), len(sd), generator=generator).double().tril(-1)
        scale = torch.diag(sd) + below
    factor = factors(mean, scale)
    noise = torch.randn(20_000, space.size, generator=generator, dtype=torch.float64)
    values = torch.func.vmap(space.log_prior)(factor.draw(noise)).numpy()
    error = float(space.expected_log_prior(factor)) - values.mean()
    # 256 quasi-Monte Carlo points leave a few thousandths for simplices and Cholesky factors.
    rule = 0.02 if PRIORS[name].event_shape else 0.0
    assert abs(error) < 4 * stats.sem(values) + rule


NORMALS = [
    {"one": Normal(0.0, 1.0), "other": Normal(0.0, 3.0)},
    {"one": Normal(0.5, 2.0), "other": Normal(-0.5, 2.0)},
    {"one": Normal(0.5, 2.0), "other": Normal(0.5, 2.0)},
    {"one": Normal(torch.zeros(3), 2.0), "flat": Flat(), "other": Normal(0.0, 2.0)},
    {"one": Normal(torch.zeros(2), double(1.0, 3.0)), "other": Normal(0.0, 1.0)},
    {"one": Normal(double(0.0, 1.0), 1.0), "other": Normal(torch.zeros(2, 2), 1.0)},
    {"one": Independent(Normal(double(0.0, 0.0), double(1.0, 3.0)), 1), "other": Normal(0.0, 3.0)},
]


@pytest.mark.parametrize("prior", NORMALS, ids=range(len(NORMALS)))
def test_normal_priors_side_by_side_keep_their_own_loc_and_scale(prior):
    """E log N(u; m, s) = log N(mu; m, s) - sd^2 / 2 s^2 for u ~ N(mu, sd^2), number by number."""
    space = GlobalSpace(prior)
    mean, sd = random_u(space), 0.3 + 0.1 * torch.arange(space.size).double()
    expected = 0.0
    for name, where in space.slices.items():
        base = innermost(prior[name])
        if not isinstance(base, Flat):
            loc, scale = (t.reshape(-1).numpy() for t in (base.loc, base.scale))
            at = stats.norm(loc, scale).logpdf(mean[where].numpy())
            expected += (at - sd[where].numpy() ** 2 / (2 * scale**2)).sum()
    ours = space.expected_log_prior(DiagonalFactors(mean, sd))
    assert float(ours) == pytest.approx(expected, rel=1e-7)  # scales in float32


def test_start_is_the_prior_s_median_and_spread():
    space = GlobalSpace({"mu": Normal(double(3.0), 2.0), "sd": HalfCauchy(1.0), "flat": Flat()})
    centre, spread = space.start(torch.Generator().manual_seed(0))
    assert centre[0] == 3.0
    assert abs(centre[1]) < 0.5  # the half-Cauchy's median is its scale; 101 draws
    assert (centre[2], spread[2]) == (0.0, 1.0)
    assert 1.4 < spread[0] < 2.8


def test_a_prior_whose_draws_all_coincide_has_a_spread():
    """Gamma draws of so small a shape fall below the smallest number: no draw differs."""
    space = GlobalSpace({"variance": InverseGamma(double(1e-8), double(1000.0))})
    _, spread = space.start(torch.Generator().manual_seed(0))
    assert spread.tolist() == [1.0]


def test_no_globals_at_all():
    space = GlobalSpace({})
    assert (space.size, space.constrain(torch.zeros(0)), len(space.unconstrain({}))) == (0, {}, 0)
    assert float(space.log_prior(torch.zeros(0))) == 0.0


def test_unknown_names_and_wrong_kinds():
    with pytest.raises(ValueError, match="theta has no global 'sigma'; global_prior names: 'mu'"):
        GlobalSpace({"mu": Flat()}).constrain(torch.zeros(1))["sigma"]
    with pytest.raises(TypeError, match="must return a dict from names to torch"):
        GlobalSpace([Flat()])
    with pytest.raises(TypeError, match="'mu' is a float"):
        GlobalSpace({"mu": 1.0})
