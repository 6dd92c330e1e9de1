"""The decoder's units, its linear start, and the latents that it uses."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skavi import AmortizedVI, FactorizedVI
from skavi._fit.defaults import falling
from skavi.models import BayesianDecoder, FactorAnalysis, UnusedLatentsWarning
from skavi.models._likelihoods import LIKELIHOODS
from skavi.noise import MonteCarlo
from skavi.solvers import Adam

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 2)) @ RNG.normal(size=(2, 5)) + 0.3 * RNG.normal(size=(60, 5)) + 4.0
COUNTS = RNG.poisson(np.exp(0.5 * RNG.normal(size=(60, 1)) + RNG.normal(size=5))).astype(float)
ONES = torch.ones(60).double()


def adapted(model, table):
    X = torch.as_tensor(table)
    return model.adapted(X, ONES), X


@pytest.mark.parametrize(
    ("likelihood", "table"), [("normal", X), ("poisson", COUNTS), ("bernoulli", COUNTS > 1)]
)
@pytest.mark.parametrize("sizes", [(), (4,), (9, 6, 5)])
def test_a_fit_starts_as_the_linear_model(likelihood, table, sizes):
    """The predictor at its first weights is that of `FactorAnalysis`, and so are first factors."""
    model, data = adapted(BayesianDecoder(2, sizes, likelihood), np.asarray(table, dtype=float))
    linear, _ = adapted(FactorAnalysis(2, likelihood=likelihood), data)
    theta, plain = model.initial_globals(data, ONES), linear.initial_globals(data, ONES)
    z = torch.randn(7, 2, generator=torch.Generator().manual_seed(0)).double()
    assert_allclose(model.predictor(theta, z), linear.predictor(plain, z), atol=1e-10)
    first, other = model.initial_locals(theta, data), linear.initial_locals(plain, data)
    for own, its in zip(first, other, strict=True):
        assert_allclose(own, its, atol=1e-10)


def test_too_narrow_a_decoder_carries_the_first_latents():
    model, data = adapted(BayesianDecoder(2, (3,)), X)
    theta = model.initial_globals(data, ONES)
    linear, _ = adapted(FactorAnalysis(2), data)
    plain = linear.initial_globals(data, ONES)
    z = torch.tensor([[1.5, 0.0]]).double()
    assert_allclose(model.predictor(theta, z), linear.predictor(plain, z), atol=1e-10)


def test_a_table_of_one_value_starts_near_its_bound():
    """The first sds of weights and the noise of the start are of one size.

    Cells then start near -log(2 pi s^2) / 2 - 1 / 2 = 2.4 nats each, of noise s^2 = 5e-4, and each
    of 37 weights costs log(100) - 1 / 2 = 4.1 nats: 480 - 152 in all. A noise of 1e-6, as the
    columns' own variance has it, starts at -18,920.
    """
    solver = Adam(1e-9)
    vi = FactorizedVI(BayesianDecoder(2, (4,)), solver=solver, max_iter=20, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops after 20 steps, and uses no latents
        vi.fit(np.full((40, 5), 3.0))
    assert vi.elbo_curve_.mean() == pytest.approx(480 - 152, abs=100)


def test_spare_units_are_random_and_silent():
    """They differ by seed, and their outputs start at zero, so that a step can use them."""
    model, data = adapted(BayesianDecoder(2, (8,)), X)
    one, other = (
        model.drawn_globals(data, ONES, torch.Generator().manual_seed(seed)) for seed in (1, 2)
    )
    assert (one["weight_0"][:, 4:] != other["weight_0"][:, 4:]).all()
    assert not one["weight_1"][4:].any()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_units_do_not_matter(scale):
    """Densities of s X are those of X over s^(n p): the steps are the same, but for rounding."""
    table = scale * X
    fits = [AmortizedVI(BayesianDecoder(2, (8,)), random_state=0, max_iter=50) for _ in range(2)]
    with pytest.warns(UserWarning, match="did not converge"):
        plain, scaled = fits[0].fit(X), fits[1].fit(table)
    shift = X.size * np.log(scale)
    assert scaled.elbo_ + shift == pytest.approx(plain.elbo_, abs=0.05 * len(X))
    assert_allclose(scaled.transform(table), plain.transform(X), atol=0.05)


def test_a_given_noise_is_in_units_of_x():
    """The paper's decoder: normal cells of unit variance around the output itself."""
    model, data = adapted(BayesianDecoder(2, (3,), noise_sd=1.0), X)
    assert not np.any(model.output_loc) and model.output_scale == 1.0
    theta = {name: prior.mean.double() for name, prior in model.global_prior(5).items()}
    assert "noise_variance" not in theta
    expected = -0.5 * (X**2 + np.log(2 * np.pi)).sum(1)
    density = model.log_likelihood(theta, torch.zeros(60, 2).double(), data)
    assert_allclose(density, expected)


@pytest.mark.slow
def test_a_default_fit_uses_minibatches_and_its_latents():
    vi = AmortizedVI(BayesianDecoder(2, (8,)), random_state=0).fit(X)
    assert isinstance(vi.noise_, MonteCarlo) and isinstance(vi.solver_, Adam)
    assert vi.converged_
    assert vi.model_.n_used_components == 2
    assert "uses" not in repr(vi)
    linear = FactorizedVI(FactorAnalysis(2)).fit(X)  # the data's own model
    # Steps that gain less than 0.015 nats a row are not taken, and weights are less sure.
    assert vi.score(X) > linear.score(X) - 0.6


@pytest.mark.parametrize(
    ("likelihood", "rate"), [("normal", 0.015), ("poisson", 0.015), ("negative_binomial", 0.03)]
)
def test_the_first_rate_is_that_of_the_cells(likelihood, rate):
    """Digits fall by 10 nats a row at 0.02, Poisson counts by 100 at 0.03."""
    X = np.random.default_rng(0).poisson(3.0, (30, 4)).astype(float)
    vi = AmortizedVI(BayesianDecoder(1, likelihood=likelihood), max_iter=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one step neither converges nor uses latents
        vi.fit(X)
    assert vi.solver_.learning_rate == rate


@pytest.mark.parametrize(
    ("likelihood", "share"),
    [
        ("normal", 1.0),
        ("bernoulli", 1.0),
        ("poisson", 0.1),
        ({"normal": [0, 1, 2, 3], "bernoulli": [4]}, 1.0),
        ({"normal": [0, 1, 2], "poisson": [3, 4]}, 0.1),
    ],
)
def test_steps_of_weights_are_as_long_as_their_priors_sds(likelihood, share):
    """A tenth of it where some output is a log rate. Adam's first step is its rate, and no slope's.

    The prior's sd is 2, and a rate of 1e-12 leaves weights at their start.
    """
    table = np.minimum(COUNTS, 1) if likelihood == "bernoulli" else COUNTS.copy()
    table[:, 4] = np.minimum(table[:, 4], 1)
    model, ends = BayesianDecoder(2, (4,), likelihood, weight_scale=2.0), []
    for rate in (1e-12, 1e-3):
        vi = FactorizedVI(model, solver=Adam(rate), max_iter=1, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one step neither converges nor more
            ends.append(vi.fit(table).global_posterior_.mean["weight_1"])
    assert_allclose(np.abs(ends[1] - ends[0]), 1e-3 * share * 2.0, rtol=1e-2)  # its epsilon


@pytest.mark.slow
def test_counts_have_a_dispersion_for_each_column():
    """Variances are mu + a mu^2, a 0.05, 3 and 3, of which a latent may explain one column's."""
    rng, a = np.random.default_rng(1), np.array([0.05, 3.0, 3.0])
    table = rng.poisson(20 * rng.gamma(1 / a, a, size=(300, 3))).astype(float)
    model = BayesianDecoder(1, (), "negative_binomial", weights="point", exposure="unit")
    solver = Adam(0.1, schedule=falling)
    vi = AmortizedVI(model, solver=solver, noise=MonteCarlo(), random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnusedLatentsWarning)  # columns have nothing in common
        vi.fit(table)
    narrow, *wide = vi.global_posterior_.mean["dispersion"]
    assert narrow < 0.2 and 2 < max(wide) < 4


def test_unused_latents_are_told():
    """Under a noise of 100 no latent says anything."""
    solver = Adam(0.05, schedule=falling)
    vi = AmortizedVI(BayesianDecoder(2, (8,), noise_sd=100.0), solver=solver, random_state=0)
    with pytest.warns(UnusedLatentsWarning, match="uses 0 of its 2 latents. Every row has"):
        vi.fit(X)
    assert vi.model_.n_used_components == 0
    assert "BayesianDecoder uses 0 of its 2 latents." in repr(vi)
    assert "0 of its 2 latents" in vi._repr_html_()


def test_latents_in_use_vary_between_rows():
    model = BayesianDecoder(3)
    means = torch.stack([torch.linspace(-1, 1, 50), torch.full((50,), 2.0), torch.zeros(50)], 1)
    model.learn_use(means)
    assert model.n_used_components == 1
    assert model.note == "BayesianDecoder uses 1 of its 3 latents."


@pytest.mark.parametrize("used", [-1, 4, 1.0, None])
def test_a_file_may_hold_no_other_number(used):
    model = BayesianDecoder(3)
    model.n_used_components = used
    with pytest.raises(ValueError, match="n_used_components must be from 0 to 3"):
        model.check_learned(5)


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial"])
def test_encoders_read_logs_of_counts(likelihood):
    """On the scale of log rates, NaN where a cell is missing, covariates as they are."""
    table = np.array([[0.0, 20.0, 1.0], [3.0, np.nan, -1.0], [400.0, 7.0, 0.0]])
    model = BayesianDecoder(1, (4,), likelihood, weights="point", covariates=2)
    solver = Adam(0.01, schedule=falling)
    vi = AmortizedVI(model, solver=solver, noise=MonteCarlo(), max_iter=2, random_state=0)
    with pytest.warns(UserWarning, match="did not converge"):
        vi.fit(table)
    read = vi.model_.summary(torch.as_tensor(table))
    expected = LIKELIHOODS[likelihood].pseudo(torch.as_tensor(table[:, :2]))
    torch.testing.assert_close(read[:, :2], expected, equal_nan=True)
    torch.testing.assert_close(read[:, 2], torch.as_tensor(table[:, 2]))
    assert float(read[2, 0]) == pytest.approx(np.log(400), abs=0.01)
    before = vi.model_.with_arguments({"logs_read_": False})  # as in files that say nothing of it
    torch.testing.assert_close(
        before.summary(torch.as_tensor(table)), torch.as_tensor(table), equal_nan=True
    )
    normal = BayesianDecoder(1, (4,)).summary(torch.as_tensor(table))
    torch.testing.assert_close(normal, torch.as_tensor(table), equal_nan=True)
