"""Latents in a chain integrated out, against normal densities, sums over all paths and grids."""

import warnings
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm, poisson
from torch.distributions import LogNormal, MultivariateNormal, Normal, Poisson

from skavi import FactorizedVI
from skavi._estimators.fitted_estimator import position_on
from skavi.families import Categorical, DiagonalNormal
from skavi.models import HiddenMarkovModel, LocalLevel, MarkovModel
from skavi.objective import bind
from skavi.objective._integrals import EXACT, SAMPLING

LEVEL = LocalLevel(level_sd=0.7, noise_sd=1.2, initial_mean=0.5, initial_sd=2.0)


def integrated(model, X, n_draws=3, family=None):
    """Return the integral of a series, globals drawn near the prior's centre, and its values."""
    X = torch.as_tensor(X)
    model = model.adapted(X, X.new_ones(len(X)))
    objective = bind(model, family, DiagonalNormal(), X)
    generator = torch.Generator().manual_seed(0)
    centre, _ = objective.space.start(generator)
    noise = torch.randn(n_draws, objective.space.size, generator=generator, dtype=X.dtype)
    u = centre.to(X) + 0.3 * noise
    raw = torch.zeros(len(X), objective.n_outputs, dtype=X.dtype)
    integral = objective.integral(X, objective.local_factors(raw), u)
    return integral, u, integral.at(u)


def test_a_local_level_has_the_kalman_filters_likelihood():
    """The whole series is normal: variances s0^2 + q^2 min(i, j), plus r^2 on the diagonal."""
    n = 40
    X = np.random.default_rng(0).normal(size=(n, 1)).cumsum(0)
    X[7] = np.nan
    integral, _, values = integrated(LEVEL, X)
    i, seen = np.arange(n), ~np.isnan(X[:, 0])
    covariance = 2.0**2 + 0.7**2 * np.minimum.outer(i, i) + 1.2**2 * np.eye(n)
    normal = multivariate_normal(np.full(n - 1, 0.5), covariance[seen][:, seen])
    assert list(integral.how) == [EXACT]
    np.testing.assert_allclose(values[:, 0], normal.logpdf(X[seen, 0]), atol=1e-8)


class Planar(MarkovModel):
    """z_n ~ N(A z_{n-1}, I) of two latents, x_n ~ N(z_n, s^2 I) with s unknown."""

    n_latents = 2
    A = torch.tensor([[0.8, 0.3], [-0.2, 0.7]], dtype=torch.float64)

    def global_prior(self, n_features):
        return {"s": LogNormal(0.0, 1.0)}

    def initial_prior(self, theta):
        return Normal(torch.zeros(2), 1.0)

    def transition(self, z_previous, theta):
        eye = torch.eye(2, dtype=z_previous.dtype)
        return MultivariateNormal(z_previous @ self.A.mT.to(z_previous), eye)

    def likelihood(self, z, theta):
        return Normal(z, theta["s"])


def test_several_latents_and_an_unknown_scale():
    n = 12
    X = np.random.default_rng(0).normal(size=(n, 2)).cumsum(0)
    integral, u, values = integrated(Planar(), X)
    A, covariance = Planar.A.numpy(), np.zeros((n, n, 2, 2))
    own = np.eye(2)
    for i in range(n):
        covariance[i, i], ahead = own, own
        for j in range(i + 1, n):
            ahead = A @ ahead
            covariance[j, i], covariance[i, j] = ahead, ahead.T
        own = A @ own @ A.T + np.eye(2)
    flat = covariance.transpose(0, 2, 1, 3).reshape(2 * n, 2 * n)
    for draw, value in zip(u, values, strict=True):
        s = float(integral.objective.space.constrain(draw)["s"])
        exact = multivariate_normal(np.zeros(2 * n), flat + s**2 * np.eye(2 * n)).logpdf(X.ravel())
        assert float(value[0]) == pytest.approx(exact, abs=1e-8)
    assert list(integral.how) == [EXACT]


@pytest.mark.parametrize("family", [None, Categorical()])
def test_states_are_summed_over_all_paths(family):
    """Two series of a hidden Markov model: sums over 3^5 and 3^4 paths."""
    rng = np.random.default_rng(0)
    series = np.repeat([0.0, 1.0], [5, 4])
    X = np.column_stack([rng.normal(scale=2, size=9), series])
    vi = FactorizedVI(HiddenMarkovModel(3, series=1), family=family, max_iter=2, n_init=1)
    with warnings.catch_warnings(action="ignore"):  # where it stops does not matter
        here = position_on(vi.fit(X), X)
    noise = torch.randn(2, here.objective.space.size, generator=torch.Generator().manual_seed(0))
    u = here.objective.global_factor(here.raw_globals).draw(noise.to(here.raw_globals))
    integral = here.objective.integral(here.rows.X, here.factors(), u)
    values = integral.at(u)
    assert list(integral.how) == [EXACT, EXACT]
    for draw, found in zip(u, values, strict=True):
        logs = integral.objective.log_joints_at(
            integral.objective.space.constrain(draw), integral.X
        )
        first, moves, rows = logs[0].numpy(), logs[1:4].numpy(), logs[4:].numpy()
        for own, value in zip((rows[:5], rows[5:]), found, strict=True):
            paths = [
                first[path[0]]
                + sum(moves[i, j] for i, j in pairwise(path))
                + sum(row[s] for row, s in zip(own, path, strict=True))
                for path in product(range(3), repeat=len(own))
            ]
            assert float(value) == pytest.approx(np.logaddexp.reduce(paths), abs=1e-10)


class Counts(MarkovModel):
    """A random walk of the log rate of counts."""

    n_latents = 1

    def global_prior(self, n_features):
        return {}

    def initial_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def transition(self, z_previous, theta):
        return Normal(z_previous, 0.5)

    def likelihood(self, z, theta):
        return Poisson(z.exp())


def test_counts_are_sampled_within_their_error():
    """Against the filter on a grid of 600 levels, whose steps are far below the walk's sd."""
    n, grid = 30, np.linspace(-6, 6, 600)
    X = np.random.default_rng(0).poisson(2.0, size=(n, 1)).astype(float)
    integral, u, values = integrated(Counts(), X)
    moves = norm.pdf(grid[:, None], grid[None], 0.5) * (grid[1] - grid[0])
    message, exact = norm.pdf(grid) * (grid[1] - grid[0]), 0.0
    for i, x in enumerate(X[:, 0]):
        message = (message if i == 0 else moves @ message) * poisson.pmf(x, np.exp(grid))
        exact += np.log(message.sum())
        message /= message.sum()
    logs = integral.log_weights(u[0])
    weights = (logs - logs.amax()).exp()
    error = float(weights.std() / weights.mean()) / len(logs) ** 0.5
    assert list(integral.how) == [SAMPLING]
    assert 0 < error < 0.06
    assert float(values[0, 0]) == pytest.approx(exact, abs=3 * error)
