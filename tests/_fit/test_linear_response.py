"""The correction that a fit keeps: exact where the posterior is normal, else why there is none."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from skavi import AmortizedVI, FactorizedVI
from skavi._fit.linear_response import _from_dense, respond
from skavi.diagnostics import linear_response
from skavi.families import FullNormal
from skavi.inference_functions import MLP, Constant, Polynomial
from skavi.models import (
    FactorAnalysis,
    HierarchicalModel,
    LinearModel,
    LocalLevel,
    NonlinearModel,
    RandomEffects,
    SawTimeSeries,
    TopicModel,
)
from skavi.noise import MonteCarlo, QuasiMonteCarlo
from skavi.solvers import LBFGS, Adam, Newton

RNG = np.random.default_rng(0)
COLUMN = RNG.normal(1.0, 3.0, size=(30, 1))
TABLE = RNG.normal(size=(60, 2)) @ RNG.normal(size=(2, 4)) + 0.5 * RNG.normal(size=(60, 4))
SCHOOLS = np.array(
    [[28, 15], [8, 10], [-3, 16], [7, 11], [-1, 9], [1, 11], [18, 10], [12, 18]], float
)
WAYS = {"factorized": FactorizedVI, "amortized": lambda m: AmortizedVI(m, Polynomial(1))}
# The ELBO of a normal posterior is quadratic in the means: Newton's last step is exact.
EXACT = 1e-6


class Conjugate(HierarchicalModel):
    """theta ~ N(0, 2^2), z_n ~ N(theta, 1.5^2), x_n ~ N(z_n, 1)."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {"theta": Normal(0.0, 2.0)}

    def local_prior(self, theta):
        return Normal(theta["theta"].reshape(1), 1.5)

    def likelihood(self, z, theta):
        return Normal(z, 1.0)


class Line(HierarchicalModel):
    """x_n2 ~ N(a + b x_n1, 1) with flat-ish priors on (a, b), and no latents."""

    n_latents = 0

    def global_prior(self, n_features):
        return {"ab": Normal(torch.zeros(2), 10.0)}

    def likelihood(self, z, theta):
        raise NotImplementedError

    def log_likelihood(self, theta, z, X):
        a, b = theta["ab"]
        return Normal(a + b * X[:, 0], 1.0).log_prob(X[:, 1])


def corrected(vi):
    return float(vi.global_posterior_.corrected_sd["theta"])


@pytest.mark.parametrize("way", WAYS)
def test_the_linear_models_sd_is_exact(way):
    """x_n = theta + tau z_n + sigma e: theta | X has variance (tau^2 + sigma^2) / N."""
    vi = WAYS[way](LinearModel(tau=1.2, sigma=0.8)).fit(COLUMN)
    assert corrected(vi) == pytest.approx(np.hypot(1.2, 0.8) / np.sqrt(30), rel=EXACT)


@pytest.mark.parametrize("way", WAYS)
def test_the_saws_sd_is_exact(way):
    """x_n | x_{n-1}, theta ~ N(a (theta + x_{n-1}), a^2 + 1): variance (a^2 + 1) / (N a^2)."""
    vi = WAYS[way](SawTimeSeries(a=0.75)).fit(COLUMN)
    assert corrected(vi) == pytest.approx(np.sqrt((0.75**2 + 1) / (30 * 0.75**2)), rel=EXACT)


@pytest.mark.parametrize("way", WAYS)
def test_a_conjugate_normals_sd_is_exact(way):
    """x_n | theta ~ N(theta, 1.5^2 + 1): the precision is 1 / 2^2 + N / (1.5^2 + 1)."""
    vi = WAYS[way](Conjugate()).fit(COLUMN)
    assert corrected(vi) == pytest.approx((1 / 4 + 30 / 3.25) ** -0.5, rel=EXACT)
    assert vi.global_posterior_.sd["theta"] < 0.85 * corrected(vi)  # q's own would be seen


def test_a_regression_without_latents_is_exact():
    """The precision of (a, b) is 1 / 10^2 + (1, x)'(1, x); q's sds are of one given the other."""
    x = np.linspace(4.0, 6.0, 20)
    vi = FactorizedVI(Line()).fit(np.column_stack([x, 1 + 2 * x]))
    design = np.column_stack([np.ones(20), x])
    exact = np.linalg.inv(np.eye(2) / 100 + design.T @ design)
    found = vi.global_posterior_
    np.testing.assert_allclose(found.corrected_sd["ab"], np.sqrt(np.diag(exact)), rtol=EXACT)
    draws = found.sample(20_000, random_state=0, corrected=True)["ab"]
    assert np.corrcoef(draws.T)[0, 1] == pytest.approx(
        exact[0, 1] / np.sqrt(exact[0, 0] * exact[1, 1]), abs=0.005
    )
    assert "times" in found.note


@pytest.mark.parametrize("way", WAYS)
def test_weights_count_as_copies_and_rows_of_weight_zero_not_at_all(way):
    weights = np.r_[np.zeros(10), np.full(20, 2.0)]
    vi = WAYS[way](Conjugate()).fit(COLUMN, sample_weight=weights)
    assert corrected(vi) == pytest.approx((1 / 4 + 40 / 3.25) ** -0.5, rel=EXACT)


@pytest.mark.parametrize(
    ("model", "X"),
    [
        (RandomEffects(centred=False), SCHOOLS),
        (NonlinearModel(), COLUMN),
        (FactorAnalysis(1), TABLE),
        (FactorAnalysis(2, "diagonal"), TABLE),
    ],
    ids=["two globals", "one global", "compressed rows", "compressed rows, variances"],
)
def test_a_fit_keeps_what_linear_response_gives(model, X):
    """Transformed globals, and rows that a model replaced by fewer, included."""
    vi = FactorizedVI(model, random_state=0).fit(X)
    response = linear_response(vi, X)
    kept = vi.global_posterior_
    for name, sd in response.global_sd.items():
        # linear_response solves the rows afresh, to about 1e-9 nats.
        np.testing.assert_allclose(kept.corrected_sd[name], sd, rtol=1e-4)
    covariance = response.unconstrained_global_covariance
    flat = [np.ravel(sd) for sd in kept.unconstrained_corrected_sd.values()]
    np.testing.assert_allclose(np.concatenate(flat), np.sqrt(np.diag(covariance)), rtol=1e-4)


def chain(n_rows, seed=0):
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(size=(n_rows, 1)), 0) + rng.normal(size=(n_rows, 1))


@pytest.mark.filterwarnings("ignore::skavi.models.CouplingBiasWarning")
def test_a_chains_band_gives_what_one_dense_matrix_gives():
    vi, X = FactorizedVI(LocalLevel()).fit(chain(12)), chain(12)
    here = vi._fitted_model.at(vi._rows(X))
    problem = here.problem
    band = respond(problem, here.raw, here.raw_globals)
    dense = _from_dense(replace(problem, frozen_globals=False), here.raw, here.raw_globals)
    # Both invert the same numbers; sums are rounded in another order.
    torch.testing.assert_close(band.of_globals, dense.of_globals, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(band.of_rows(), dense.of_rows(), rtol=1e-8, atol=1e-12)
    assert band.suboptimality == pytest.approx(dense.suboptimality, rel=1e-4, abs=1e-12)


# Why there is none


def reason(vi):
    posterior = vi.global_posterior_
    assert posterior.corrected_sd is None and posterior.unconstrained_corrected_sd is None
    with pytest.raises(ValueError, match="there is no linear response"):
        posterior.sample(3, corrected=True)
    return posterior.corrected_reason


@pytest.mark.filterwarnings("ignore:FactorizedVI did not converge")
def test_a_fit_that_did_not_converge_has_none():
    assert "did not converge" in reason(FactorizedVI(RandomEffects(), max_iter=2).fit(SCHOOLS))


@pytest.mark.filterwarnings("ignore:FactorizedVI did not converge")
def test_fresh_draws_have_none():
    solver = Adam(learning_rate=0.1)
    vi = FactorizedVI(NonlinearModel(), noise=MonteCarlo(8), solver=solver, max_iter=3000, tol=0.1)
    vi.fit(COLUMN[:5])
    assert ("draws afresh" if vi.converged_ else "did not converge") in reason(vi)


def test_a_stream_has_none():
    vi = FactorizedVI(LinearModel()).partial_fit(COLUMN[:20])
    assert vi.global_posterior_.corrected_sd is not None  # the first call is a fit
    assert "keeps no earlier rows" in reason(vi.partial_fit(COLUMN[20:]))


def test_many_globals_have_none():
    counts = RNG.poisson(1.0, size=(12, 251)).astype(float)
    said = reason(FactorizedVI(TopicModel(2), random_state=0, n_init=1).fit(counts))
    assert "502 globals" in said and "up to 500" in said


def test_a_rotation_that_nothing_holds_has_none():
    """With full q(z_n) and many rows the ELBO is nearly the same for all rotations of loadings."""
    X = RNG.normal(size=(400, 2)) @ RNG.normal(size=(2, 6)) + 0.5 * RNG.normal(size=(400, 6))
    vi = FactorizedVI(FactorAnalysis(2), family=FullNormal(), random_state=0).fit(X)
    assert "flat in some direction" in reason(vi)


def test_a_function_that_leaves_a_gap_has_none():
    vi = AmortizedVI(LinearModel(), Constant()).fit(COLUMN)
    assert "nats below the optimum of factorized VI" in reason(vi)


def test_a_function_that_is_nearly_right_has_sds_that_are_nearly_right():
    """Rows 1e-4 nats off in the mean: sds to a per cent."""
    X = np.random.default_rng(1).normal(1.0, 3.0, size=(300, 1))
    vi = AmortizedVI(LinearModel(1.2, 0.8), MLP((4,)), solver=LBFGS(), tol=1e-4, random_state=0)
    vi.fit(X)
    assert corrected(vi) == pytest.approx(np.hypot(1.2, 0.8) / np.sqrt(300), rel=1e-2)


def test_a_model_without_globals_has_nothing_to_correct():
    vi = FactorizedVI(LocalLevel(level_sd=1.0, noise_sd=1.0)).fit(chain(5))
    assert vi.global_posterior_.corrected_sd == {}


def test_a_fit_judged_by_its_second_derivatives_keeps_those_of_all_rows():
    """Sixty rows of one latent are four to the closed form, but not to nodes of a user's choice.

    The other response is found anew, nearer to the optimum: the fit ends 1e-8 nats a row below it,
    or sqrt(60 * 2e-8) = 1e-3 sds, by which curvatures vary a tenth of that at most.
    """
    vi = FactorizedVI(FactorAnalysis(1), noise=QuasiMonteCarlo(64), solver=Newton(), random_state=0)
    vi.fit(TABLE)
    assert vi.global_posterior_.corrected_reason is None
    kept, anew = vi.global_posterior_.corrected_sd, linear_response(vi, TABLE).global_sd
    for name, sd in anew.items():
        np.testing.assert_allclose(kept[name], sd, rtol=1e-4)
