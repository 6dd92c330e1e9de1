"""Rows' latents integrated out, against closed forms and dense sums."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from skavi import FactorizedVI
from skavi._estimators.fitted_estimator import position_on
from skavi.families import DiagonalNormal
from skavi.models import (
    BayesianDecoder,
    FactorAnalysis,
    MixedEffects,
    MixtureModel,
    NonlinearModel,
    RandomEffects,
    SawTimeSeries,
)
from skavi.objective import bind
from skavi.objective._integrals import AGREEMENT, EXACT, QUADRATURE, SAMPLING, climbed

N_ROWS = 12


def integrated(model, X, n_draws=5, spread=0.3, agreement=AGREEMENT):
    """Return the integral of rows, globals drawn near the prior's centre, and its values there."""
    X = torch.as_tensor(X)
    model = model.adapted(X, X.new_ones(len(X)))
    objective = bind(model, None, DiagonalNormal(), X)
    generator = torch.Generator().manual_seed(0)
    centre, _ = objective.space.start(generator)
    noise = torch.randn(n_draws, objective.space.size, generator=generator, dtype=X.dtype)
    u = centre.to(X) + spread * noise
    raw = torch.zeros(len(X), objective.n_outputs, dtype=X.dtype)
    integral = objective.integral(X, objective.local_factors(raw), u, agreement)
    return integral, u, integral.at(u)


def dense(integral, u, half_width=9.0, n=2001):
    """Return log integrals over a grid by the trapezoidal rule, which for the analytic integrands
    here errs by less than 1e-9 (it doubles the digits as the step halves).
    """
    k = integral.centre.shape[1]
    n = n if k == 1 else 241
    line = torch.linspace(-half_width, half_width, n, dtype=u.dtype)
    grid = torch.cartesian_prod(*[line] * k).reshape(-1, k)
    logs = []
    for row in integral.X:
        X = row.expand(len(grid), -1)
        logs.append(torch.logsumexp(integral.objective.log_terms_at(u[:1], grid[None], X)[0], 0))
    return torch.stack(logs) + k * math.log(2 * half_width / (n - 1))


def test_effects_are_integrated_exactly():
    """x_n ~ N(mu, tau^2 + s_n^2)."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=N_ROWS), rng.uniform(0.5, 2.0, N_ROWS)])
    integral, u, values = integrated(RandomEffects(centred=False), X)
    mu, tau = u[:, :1].numpy(), u[:, 1:].exp().numpy()
    expected = stats.norm(mu, np.sqrt(tau**2 + X[:, 1] ** 2)).logpdf(X[:, 0])
    assert set(integral.how) == {EXACT}
    np.testing.assert_allclose(values, expected, atol=1e-12)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("log_tau", [-300.0, -25.0, 0.0, 25.0, 150.0])
def test_extreme_globals_give_no_rounding_for_evidence(centred, log_tau):
    """x_n ~ N(mu, tau^2 + s_n^2): never above it, and at it unless a latent's sd is below rounding.

    What a Newton step promises, squares of 1e40 there, is rounding beside the terms it mends.
    """
    X = np.array([[28.0, 15.0], [-3.0, 16.0], [7.0, 11.0]])
    integral, _, _ = integrated(RandomEffects(5.0, 5.0, centred=centred), X)
    values = integral.at(torch.tensor([[4.0, log_tau]], dtype=torch.float64))[0].numpy()
    expected = stats.norm(4.0, np.hypot(np.exp(log_tau), X[:, 1])).logpdf(X[:, 0])
    assert (values <= expected + 1e-6).all()
    if (not centred and log_tau < 0) or abs(log_tau) < 1:
        np.testing.assert_allclose(values, expected, atol=1e-9)


def test_factors_are_integrated_exactly():
    """x_n ~ N(m, W W' + noise variances), with missing cells left out."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_ROWS, 7))
    X[0, :3] = np.nan
    integral, u, values = integrated(FactorAnalysis(6, "diagonal"), X)
    assert set(integral.how) == {EXACT}
    for draw, logs in zip(u, values, strict=True):
        theta = {k: v.numpy() for k, v in integral.objective.space.constrain(draw).items()}
        covariance = theta["loadings"] @ theta["loadings"].T + np.diag(theta["noise_variance"])
        for x, log in zip(X, logs, strict=True):
            seen = np.isfinite(x)
            normal = stats.multivariate_normal(theta["mean"][seen], covariance[seen][:, seen])
            np.testing.assert_allclose(log, normal.logpdf(x[seen]), atol=1e-9)


SIX = {
    "counts": (lambda: FactorAnalysis(1, likelihood="poisson"), "counts"),
    "counts of two factors": (lambda: FactorAnalysis(2, likelihood="poisson"), "counts"),
    "wide counts": (lambda: FactorAnalysis(1, likelihood="negative_binomial"), "counts"),
    "answers": (lambda: FactorAnalysis(2, likelihood="bernoulli"), "answers"),
    "outliers": (lambda: FactorAnalysis(1, likelihood="student_t"), "numbers"),
    "several modes": (NonlinearModel, "column"),
}


@pytest.mark.parametrize("name", SIX)
def test_one_or_two_latents_are_integrated_by_quadrature(name):
    """To 1e-4 nats a row, and where rows have several modes about the prior."""
    model, kind = SIX[name]
    rng = np.random.default_rng(0)
    X = {
        "counts": rng.poisson(2.0, size=(N_ROWS, 4)).astype(float),
        "answers": (rng.random((N_ROWS, 4)) < 0.5).astype(float),
        "numbers": rng.standard_t(3, size=(N_ROWS, 4)),
        "column": rng.normal(scale=2.0, size=(N_ROWS, 1)),
    }[kind]
    integral, u, values = integrated(model(), X)
    assert set(integral.how) == {QUADRATURE}
    assert bool(integral.about_prior.any()) == (name in ("several modes", "outliers"))
    np.testing.assert_allclose(values[0], dense(integral, u), atol=1e-4)


def test_kinks_are_integrated_as_finely_as_is_asked():
    """A decoder of kinked units: rules gain a digit or so as nodes double, against a dense sum."""
    X = (np.random.default_rng(0).random((N_ROWS, 30)) < 0.5).astype(float)
    decoder = BayesianDecoder(2, (8,), likelihood="bernoulli")
    fine, _, _ = integrated(decoder, X, 1, spread=1.0)
    loose, u, values = integrated(decoder, X, 1, spread=1.0, agreement=0.01)
    assert SAMPLING in fine.how and set(loose.how) == {QUADRATURE}
    np.testing.assert_allclose(values[0], dense(loose, u), atol=0.01)


def test_many_latents_are_sampled():
    """Loadings that let each column read a latent of its own: a row is a product of integrals."""
    k, rng = 5, np.random.default_rng(0)
    X = rng.poisson(2.0, size=(N_ROWS, k)).astype(float)
    integral, u, _ = integrated(FactorAnalysis(k, likelihood="poisson", exposure="unit"), X)
    theta = {n: torch.as_tensor(v) for n, v in integral.objective.space.constrain(u[0]).items()}
    theta["loadings"] = torch.eye(k, dtype=u.dtype)
    diagonal = integral.objective.space.unconstrain(theta)[None]
    expected = 0.0
    line = torch.linspace(-9, 9, 2001, dtype=u.dtype)[:, None]
    for i in range(len(X)):
        grid = line.repeat(1, k)  # all latents at once: cell j reads latent j alone
        rows = integral.X[i].expand(len(grid), -1)
        cells = torch.distributions.Poisson((theta["mean"] + grid).exp())
        logs = cells.log_prob(rows) + torch.distributions.Normal(0.0, 1.0).log_prob(grid)
        expected = expected + (torch.logsumexp(logs, 0) + math.log(18 / 2000)).sum()
    assert set(integral.how) == {SAMPLING}
    weights = integral.log_weights(diagonal[0]).exp()
    variances = weights.var(0) / weights.mean(0).square() / len(weights)
    error = 3 * float(variances.sum().sqrt()) + 1e-3
    assert abs(float(integral.at(diagonal).sum()) - float(expected)) < error
    assert error < 0.5


def test_steps_are_halved_until_they_do_not_descend():
    """-z^2 from 1: ten times the way to the top is halved thrice, downhill there is no part."""
    z, step = torch.ones(2, 2, 1), torch.tensor([[[-1.0], [-10.0]], [[1.0], [0.0]]])
    asked = []

    def values_at(index, to):
        asked.append(len(index))
        return -to[..., 0].square()

    there, rose = climbed(values_at, z, -torch.ones(2, 2), step)
    torch.testing.assert_close(there[..., 0], torch.tensor([[0.0, -0.25], [1.0, 1.0]]))
    assert rose.tolist() == [[True, True], [False, False]]
    assert asked[:5] == [2, 2, 2, 2, 1]  # a draw whose values have all been served is left alone


def test_states_are_summed():
    X = np.random.default_rng(0).normal(size=(N_ROWS, 2))
    integral, u, values = integrated(MixtureModel(3), X)
    theta = integral.objective.space.constrain(u[0])
    logs = [
        theta["weights"][s].log()
        + torch.distributions.Normal(theta["means"][s], theta["variances"][s].sqrt())
        .log_prob(torch.as_tensor(X))
        .sum(-1)
        for s in range(3)
    ]
    assert set(integral.how) == {EXACT}
    np.testing.assert_allclose(values[0], torch.logsumexp(torch.stack(logs), 0), atol=1e-12)


def test_rows_of_a_series_are_integrated_together():
    X = np.random.default_rng(0).normal(size=(N_ROWS, 1))
    integral, u, values = integrated(SawTimeSeries(), X)
    line = torch.linspace(-12, 12, 801, dtype=u.dtype)
    logs = torch.stack(
        [
            integral.objective.log_terms_at(u[:1], z.expand(1, N_ROWS, 1), integral.X)[0]
            for z in line
        ]
    )
    expected = torch.logsumexp(logs, 0) + math.log(24 / 800)
    assert set(integral.how) == {EXACT}
    np.testing.assert_allclose(values[0], expected, atol=1e-9)


def test_groups_are_integrated_exactly():
    """Responses of a group ~ N(F beta, sigma^2 I + tau^2 1 1'), groups of different sizes."""
    rng = np.random.default_rng(0)
    label, x = np.array([0, 1, 0, 2, 1, 0]), rng.normal(size=6)
    X = np.column_stack([rng.normal(size=6), x, label])
    vi = FactorizedVI(MixedEffects(fixed=[1], groups=2, response=0, centred=True)).fit(X)
    here = position_on(vi, X)
    u = here.objective.global_factor(here.raw_globals).mean[None]
    integral = here.objective.integral(here.rows.X, here.factors(), u)
    theta = {k: v.numpy() for k, v in here.objective.space.constrain(u[0]).items()}
    expected = []
    for group in range(3):
        own = label == group
        mean = theta["fixed"][0] + theta["fixed"][1] * x[own]
        covariance = theta["noise_sd"] ** 2 * np.eye(own.sum()) + theta["random_sd"][0] ** 2
        expected.append(stats.multivariate_normal(mean, covariance).logpdf(X[own, 0]))
    assert set(integral.how) == {EXACT}
    np.testing.assert_allclose(integral.at(u)[0], expected, atol=1e-9)


def test_without_latents_the_likelihood_is_the_model_s():
    from test_no_latents import Logit

    X = np.array([[-2.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [2.0, 1.0]])
    integral, u, values = integrated(Logit(), X)
    expected = integral.objective.log_terms_at(u, torch.zeros(len(u), len(X), 0), integral.X)
    np.testing.assert_allclose(values, expected, atol=1e-12)
