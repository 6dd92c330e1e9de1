"""Latents of finitely many values in a chain: forward-backward, and independent factors."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import norm
from torch.distributions import Bernoulli, Beta, Categorical, Normal

from skavi import FactorizedVI
from skavi.families import Categorical as Independent
from skavi.families import Chain
from skavi.models import CouplingBiasWarning, MarkovModel

INITIAL = np.array([0.7, 0.3])
MOVES = np.array([[0.8, 0.2], [0.3, 0.7]])
CENTRES, SD = np.array([-0.5, 0.6]), 0.9


class Known(MarkovModel):
    """Two states with known parameters."""

    n_latents = 1

    def __init__(self, moves=MOVES):
        self.moves = moves

    def global_prior(self, n_features):
        return {}

    def initial_prior(self, theta):
        return Categorical(torch.as_tensor(INITIAL))

    def transition(self, z_previous, theta):
        return Categorical(torch.as_tensor(self.moves)[z_previous[:, 0].long()])

    def likelihood(self, z, theta):
        return Normal(torch.as_tensor(CENTRES)[z.long()], SD)


class Learned(Known):
    """The same with unknown centres and persistence: a regime-switching model of ten lines."""

    def global_prior(self, n_features):
        return {"centres": Normal(torch.tensor([-1.0, 1.0]), 1.0), "stay": Beta(5.0, 2.0)}

    def transition(self, z_previous, theta):
        stay = theta["stay"].expand(2)
        moves = torch.diag(2 * stay - 1) + (1 - stay).unsqueeze(-1)
        return Categorical(moves[z_previous[:, 0].long()])

    def likelihood(self, z, theta):
        return Normal(theta["centres"][z.long()], SD)


def series(n, seed=0):
    rng = np.random.default_rng(seed)
    state = [0]
    for _ in range(n - 1):
        state.append(int(rng.random() < MOVES[state[-1], 1]))
    return CENTRES[state][:, np.newaxis] + SD * rng.normal(size=(n, 1))


def log_densities(X, centres=CENTRES):
    density = norm.logpdf(X, centres, SD)
    return np.where(np.isnan(density), 0.0, density)


def forward_backward(X, moves=MOVES, densities=None):
    """The textbook recursions: log likelihood and probabilities of the states."""
    density = log_densities(X) if densities is None else densities
    n, before = len(X), [np.log(INITIAL) + density[0]]
    with np.errstate(divide="ignore"):
        logs = np.log(moves)
    for row in range(1, n):
        before.append(logsumexp(before[-1][:, np.newaxis] + logs, axis=0) + density[row])
    after = [np.zeros(2)]
    for row in range(n - 1, 0, -1):
        after.insert(0, logsumexp(logs + density[row] + after[0], axis=1))
    joint = np.array(before) + np.array(after)
    return logsumexp(before[-1]), np.exp(joint - logsumexp(joint, axis=1, keepdims=True))


@pytest.mark.parametrize("holes", [False, True])
def test_known_globals_give_the_forward_algorithm_and_forward_backward(holes):
    X = series(200)
    if holes:
        X[50:60] = np.nan
    vi = FactorizedVI(Known()).fit(X)
    exact, chances = forward_backward(X)
    assert vi.family_.get_params() == Chain().get_params()
    assert isinstance(vi.family_, Chain)
    assert abs(vi.elbo_ - exact) < 1e-8
    np.testing.assert_allclose(vi.transform(X), chances, atol=1e-6)
    assert abs(vi.score_samples(X).sum() - exact) < 1e-8
    np.testing.assert_array_equal(vi.predict(X), chances.argmax(1))


def test_states_that_are_never_left_are_no_trouble():
    moves = np.array([[0.9, 0.1], [0.0, 1.0]])
    X = series(60)
    vi = FactorizedVI(Known(moves)).fit(X)
    exact, chances = forward_backward(X, moves)
    assert abs(vi.elbo_ - exact) < 1e-8
    np.testing.assert_allclose(vi.transform(X), chances, atol=1e-6)


def swept(q, X):
    """Coordinate ascent on independent factors, row by row, of many starts (S, n, 2) at once."""
    logs, density = np.log(MOVES), log_densities(X)
    for _ in range(300):
        for n in range(len(X)):
            own = density[n] + (q[:, n - 1] @ logs if n else np.log(INITIAL))
            own = own + (q[:, n + 1] @ logs.T if n + 1 < len(X) else 0.0)
            q[:, n] = np.exp(own - logsumexp(own, axis=-1, keepdims=True))
    return q


def mean_field(q, X):
    """The ELBO of independent factors (S, n, 2), written out."""
    value = (q * log_densities(X)).sum((1, 2)) + q[:, 0] @ np.log(INITIAL)
    value += np.einsum("sni,ij,snj->s", q[:, :-1], np.log(MOVES), q[:, 1:])
    return value - (q * np.log(np.maximum(q, 1e-300))).sum((1, 2))


def test_independent_factors_reach_the_best_of_200_dense_starts():
    X, rng = series(6), np.random.default_rng(1)
    vi = FactorizedVI(Known(), family=Independent()).fit(X)
    starts = rng.dirichlet([0.5, 0.5], size=(200, 6))
    assert abs(vi.elbo_ - mean_field(swept(starts, X), X).max()) < 1e-8
    q = vi.transform(X)
    np.testing.assert_allclose(swept(q[np.newaxis].copy(), X)[0], q, atol=1e-8)
    assert vi.elbo_ < forward_backward(X)[0] - 1e-3


def test_the_elbo_of_unknown_globals_is_a_bound_and_chains_are_nearer():
    """Beside the evidence by quadrature over the three globals."""
    X = series(40)
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    share, chance = np.polynomial.legendre.leggauss(20)
    a, b, stay = (g.reshape(-1, 1) for g in np.meshgrid(nodes, nodes, 0.5 * (share + 1)))
    mass = np.einsum("i,j,k->ijk", weights, weights, chance).ravel() / (4 * np.pi)
    prior = Beta(5.0, 2.0).log_prob(torch.as_tensor(stay[:, 0])).numpy()
    message = np.log(INITIAL) + norm.logpdf(X[0], np.hstack([a - 1, b + 1]), SD)
    for x in X[1:]:
        to_first = np.logaddexp(message[:, :1] + np.log(stay), message[:, 1:] + np.log1p(-stay))
        to_second = np.logaddexp(message[:, :1] + np.log1p(-stay), message[:, 1:] + np.log(stay))
        message = np.hstack([to_first, to_second]) + norm.logpdf(x, np.hstack([a - 1, b + 1]), SD)
    evidence = logsumexp(logsumexp(message, axis=1) + np.log(mass) + prior)
    chain = FactorizedVI(Learned()).fit(X)
    with pytest.warns(CouplingBiasWarning):
        independent = FactorizedVI(Learned(), family=Independent()).fit(X)
    assert chain.converged_
    assert independent.converged_
    assert independent.elbo_ + 0.1 < chain.elbo_ < evidence


def test_draws_of_paths_follow_the_chain():
    """Moves drawn as often as they should be: 20,000 draws, 4 standard errors."""
    X = series(8)
    vi = FactorizedVI(Known()).fit(X)
    posterior = vi.posterior(X)
    draws = posterior.sample(20_000, random_state=0)[..., 0]
    paths = np.array(list(itertools.product(range(2), repeat=8)))
    logs = np.log(INITIAL)[paths[:, 0]] + log_densities(X)[np.arange(8), paths].sum(1)
    logs = logs + np.log(MOVES)[paths[:, :-1], paths[:, 1:]].sum(1)
    chance = np.exp(logs - logsumexp(logs))
    stays = chance @ (paths[:, :-1] == paths[:, 1:])
    found = (draws[:, :-1] == draws[:, 1:]).mean(0)
    assert (np.abs(found - stays) < 4 * np.sqrt(stays * (1 - stays) / 20_000)).all()


def test_a_forecast_follows_the_states_exactly():
    X = series(30)
    mean, sd = FactorizedVI(Known()).fit(X).forecast(X, 4)
    chance = forward_backward(X)[1][-1]
    for step in range(4):
        chance = chance @ MOVES
        centre = chance @ CENTRES
        np.testing.assert_allclose(mean[step], centre, atol=1e-9)
        second = chance @ (CENTRES**2 + SD**2)
        np.testing.assert_allclose(sd[step] ** 2, second - centre**2, atol=1e-9)


def test_a_transition_to_other_states_than_the_first_ones_is_refused():
    class Mixed(Known):
        def transition(self, z_previous, theta):
            return Categorical(torch.full((len(z_previous), 3), 1 / 3))

    with pytest.raises(ValueError, match=r"Mixed.transition has 3 values, but initial_prior 2"):
        FactorizedVI(Mixed()).fit(series(5))


def test_switches_of_several_latents():
    """Two binary latents a row are four states."""

    class Switches(MarkovModel):
        n_latents = 2

        def global_prior(self, n_features):
            return {}

        def initial_prior(self, theta):
            return Bernoulli(torch.full((2,), 0.5))

        def transition(self, z_previous, theta):
            return Bernoulli(0.1 + 0.8 * z_previous)

        def likelihood(self, z, theta):
            return Normal(z @ torch.tensor([[1.0], [2.0]], dtype=z.dtype), 0.3)

    X = np.array([[0.1], [0.9], [1.1], [2.9], [3.1]])
    vi = FactorizedVI(Switches()).fit(X)
    atoms = np.array(list(itertools.product([0, 1], repeat=2)))
    assert atoms[vi.predict(X)].tolist() == [[0, 0], [1, 0], [1, 0], [1, 1], [1, 1]]
