"""States with Student t and negative binomial cells, beside scipy's densities and dense rules."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp
from sklearn.metrics import adjusted_rand_score

from skavi import FactorizedVI
from skavi._numerics.quadrature import hermite_rule
from skavi._platform.forks_and_threads import seeded
from skavi.families import DiagonalNormal
from skavi.models import HiddenMarkovModel, MixtureModel
from skavi.models._emissions_noisy import _quartiles
from skavi.models._likelihoods import LIKELIHOODS
from skavi.objective import bind

NOISY = ["student_t", "negative_binomial"]


def log_density(likelihood, x, eta, *logs):
    """Return log p of a cell by scipy: `logs` are those of nu and the squared scale, or of d.

    A negative binomial of size r = 1 / d and mean m has the chance of success r / (r + m).
    """
    if likelihood == "student_t":
        return stats.t.logpdf(x, np.exp(logs[0]), eta, np.exp(0.5 * logs[1]))
    size, mean = np.exp(-logs[0]), np.exp(eta)
    return stats.nbinom.logpmf(x, size, size / (size + mean))


def bound(likelihood, X, k=2):
    model = MixtureModel(k, likelihood).adapted(X, torch.ones(len(X)).double())
    return bind(model, None, DiagonalNormal(), X)


def rows(n=12, holes=True):
    X = torch.as_tensor(np.random.default_rng(0).poisson(4.0, (n, 3)).astype(float))
    if holes:
        X[0, 1] = X[1] = torch.nan
    return X


def by_scipy(likelihood, theta, X, k):
    """Return log p of every cell in state k, zeros where it is missing."""
    theta = {name: value.numpy() for name, value in theta.items()}
    t = likelihood == "student_t"
    centre = theta["means"][k] if t else np.log(theta["means"][k])
    names = ["degrees_of_freedom", "variances"] if t else ["dispersion"]
    cells = log_density(likelihood, X.numpy(), centre, *(np.log(theta[name][k]) for name in names))
    return np.where(np.isnan(X.numpy()), 0, cells)


@pytest.mark.parametrize("likelihood", NOISY)
def test_probabilities_are_those_of_bayes_rule_where_theta_is_known(likelihood):
    """log p(x) = log sum_k w_k prod_d p(x_d | k): the ELBO to 1e-8 nats, probabilities to 1e-6."""
    X = rows()
    objective = bound(likelihood, X)
    space = objective.space
    generator = torch.Generator().manual_seed(1)
    u = 0.7 * torch.randn(space.size, generator=generator, dtype=torch.float64)
    theta = space.constrain(u)
    each = [by_scipy(likelihood, theta, X, k).sum(1) for k in range(2)]
    joint = np.stack(each, 1) + theta["weights"].log().numpy()
    raw = torch.cat([u, torch.full((space.size,), -20.0).double()])
    terms = objective.row_terms(X[:, :0], raw, X, None)
    np.testing.assert_allclose(terms, logsumexp(joint, 1), rtol=0, atol=1e-8)
    _, factors, _ = objective.optimum(raw, X, None)
    expected = np.exp(joint - logsumexp(joint, 1, keepdims=True))
    np.testing.assert_allclose(factors.mean, expected, rtol=0, atol=1e-6)
    density = objective.model.log_likelihood(theta, torch.zeros(12, 1).double(), X)
    np.testing.assert_allclose(density, each[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("likelihood", NOISY)
def test_expectations_are_those_of_a_dense_rule(likelihood):
    """E log p(x) for normal eta and logs, by scipy's density at 30 nodes each: to 1e-6 nats.

    At sds up to 0.2; at 0.3 the nine nodes for eta of a Student t cell are 3e-6 off.
    """
    X = rows(6, holes=False)
    objective = bound(likelihood, X)
    space, generator = objective.space, torch.Generator().manual_seed(2)
    mean = 0.5 * torch.randn(space.size, generator=generator, dtype=torch.float64)
    sd = 0.05 + 0.15 * torch.rand(space.size, generator=generator, dtype=torch.float64)
    n = space.slices["weights"].stop
    found = objective.model.emissions.expected_log_likelihoods(mean[n:], sd[n:], X)
    names = ["degrees_of_freedom", "variances"] if likelihood == "student_t" else ["dispersion"]
    nodes, weights = hermite_rule(30)
    for k in range(2):
        total = np.zeros(6)
        for column in range(3):
            grid = []
            for name in ("means", *names):
                shape = space.raw_shapes[name]
                place = (k, column) if len(shape) == 2 else (k,)
                m, s = (each[space.slices[name]].reshape(shape)[place] for each in (mean, sd))
                grid.append(float(m) + float(s) * nodes)
            points = np.meshgrid(*grid, indexing="ij")
            whole = np.array([1.0])
            for _ in grid:
                whole = np.multiply.outer(whole, weights)
            for i, x in enumerate(X[:, column].numpy()):
                total[i] += (whole[0] * log_density(likelihood, x, *points)).sum()
        np.testing.assert_allclose(found[:, k], total, rtol=0, atol=1e-6)


@pytest.mark.parametrize("likelihood", NOISY)
def test_states_change_their_order_with_all_that_they_have(likelihood):
    X = rows()
    objective = bound(likelihood, X, 3)
    emissions, n = objective.model.emissions, objective.space.slices["weights"].stop
    u = torch.randn(objective.space.size - n, generator=torch.Generator().manual_seed(0)).double()
    order = torch.tensor([2, 0, 1])
    whole = emissions.expected_log_likelihoods(u, u.abs(), X)
    moved = (emissions.permuted(each, order, 3) for each in (u, u.abs()))
    found = emissions.expected_log_likelihoods(*moved, X)
    torch.testing.assert_close(found, whole[:, order])


@pytest.mark.parametrize("likelihood", NOISY)
def test_draws_have_the_moments_that_predictions_show(likelihood):
    """Of 20,000 rows of one state: means and variances to 5 standard errors."""
    model = MixtureModel(1, likelihood).adapted(rows(holes=False), torch.ones(12).double())
    theta = {"weights": torch.ones(1), "means": torch.tensor([[2.0, 9.0]])}
    theta |= {"dispersion": torch.tensor([[0.3, 1.0]]), "variances": torch.tensor([[1.0, 4.0]])}
    theta |= {"degrees_of_freedom": torch.tensor([12.0])}
    with seeded(0):
        x, z = model.simulate(theta, 20_000)
    mean, variance = model.cell_moments(theta, z, x)
    x = x.double()
    assert ((x.mean(0) - mean[0]).abs() < 5 * x.std(0) / len(x) ** 0.5).all()
    squares = (x - mean[0]) ** 2
    assert ((squares.mean(0) - variance[0]).abs() < 5 * squares.std(0) / len(x) ** 0.5).all()


@pytest.mark.parametrize("likelihood", NOISY)
def test_priors_are_those_of_factor_analysis(likelihood):
    objective = bound(likelihood, rows(holes=False))
    for name, prior in LIKELIHOODS[likelihood].global_prior((), None).items():
        x = torch.tensor(3.0, dtype=torch.float64)
        found = objective.space.prior[name].log_prob(x).flatten()
        known = prior.log_prob(x).expand_as(found)
        torch.testing.assert_close(found, known, rtol=1e-6, atol=0, check_dtype=False)


def outlying():
    """Return rows of two clusters with heavy tails, a few of them far out, and the clusters."""
    rng = np.random.default_rng(0)
    kinds = rng.random(120) < 0.4
    X = np.where(kinds[:, None], [0, 3.0], [5.0, 0]) + rng.standard_t(3, (120, 2))
    X[:4] += 60
    return X, kinds


def test_cells_far_out_do_not_make_a_cluster():
    """Normal components spend one of two on four rows."""
    X, kinds = outlying()
    found = {}
    for likelihood in ("normal", "student_t"):
        vi = FactorizedVI(MixtureModel(2, likelihood), random_state=0).fit(X)
        assert vi.converged_
        found[likelihood] = adjusted_rand_score(kinds[4:], vi.predict(X)[4:])
    assert found["normal"] < 0.1
    assert found["student_t"] > 0.8
    np.testing.assert_allclose(vi.global_posterior_.mean["means"], [[5, 0], [0, 3]], atol=0.5)
    filled = X.copy()
    filled[5, 0] = np.nan
    assert abs(vi.impute(filled)[5, 0] - (0 if kinds[5] else 5)) < 0.6


def test_dispersion_is_found():
    """Counts of dispersion 0.5: within 4 sds; Poisson components are 4 nats a row worse."""
    rng = np.random.default_rng(0)
    kinds = rng.random(150) < 0.4
    rates = np.where(kinds[:, None], [3.0, 40.0], [30.0, 4.0])
    X = rng.poisson(rates * rng.gamma(2, 0.5, rates.shape)).astype(float)
    X[0, 0] = np.nan
    vi, poisson = (
        FactorizedVI(MixtureModel(2, name), n_init=1, random_state=0).fit(X)
        for name in ("negative_binomial", "poisson")
    )
    assert vi.converged_
    mean, sd = vi.global_posterior_.mean["dispersion"], vi.global_posterior_.sd["dispersion"]
    assert (np.abs(mean - 0.5) < 4 * sd).all()
    assert sd.max() < 0.3
    assert vi.elbo_ > poisson.elbo_ + 4 * len(X)
    assert adjusted_rand_score(kinds, vi.predict(X)) > 0.8


def test_a_table_of_all_kinds_of_numbers():
    """Its density is the product of scipy's densities; each kind has names of its own."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=20), rng.standard_t(3, 20), rng.poisson(5, (20, 2))])
    kinds = {"normal": [0], "student_t": [1], "poisson": [2], "negative_binomial": [3]}
    vi = FactorizedVI(MixtureModel(2, kinds), n_init=1, max_iter=3, random_state=0)
    with pytest.warns(UserWarning, match="max_iter"):
        vi.fit(X)
    theta = vi.global_posterior_.mean
    own = {"centres", "squared_scales", "degrees_of_freedom", "mean_counts", "dispersion"}
    assert own | {"weights", "means", "variances", "rates"} == set(theta)
    tensors = {name: torch.as_tensor(value) for name, value in theta.items()}
    found = vi.model_.log_likelihood(tensors, torch.ones(20, 1).double(), torch.as_tensor(X))
    cells = [
        stats.norm.logpdf(X[:, 0], theta["means"][1], np.sqrt(theta["variances"][1])),
        log_density(
            "student_t",
            X[:, 1],
            theta["centres"][1],
            np.log(theta["degrees_of_freedom"][1]),
            np.log(theta["squared_scales"][1]),
        ),
        stats.poisson.logpmf(X[:, 2], theta["rates"][1]),
        log_density(
            "negative_binomial",
            X[:, 3],
            np.log(theta["mean_counts"][1]),
            np.log(theta["dispersion"][1]),
        ),
    ]
    np.testing.assert_allclose(found, np.sum(cells, 0), rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", NOISY)
def test_regimes_may_have_such_cells(likelihood):
    rng = np.random.default_rng(0)
    states = np.repeat([0, 1, 0, 1], 25)
    if likelihood == "student_t":
        X = 5.0 * states + rng.standard_t(3, 100)
    else:
        X = rng.poisson(np.where(states, 30, 4) * rng.gamma(2, 0.5, 100)).astype(float)
    vi = FactorizedVI(HiddenMarkovModel(2, likelihood), n_init=1, random_state=0).fit(X[:, None])
    assert vi.converged_
    assert adjusted_rand_score(states, vi.predict(X[:, None])) > 0.8


def test_quartiles_count_weights_and_leave_missing_cells_out():
    X = torch.tensor([[3.0, 1.0], [1.0, torch.nan], [2.0, 5.0], [9.0, 4.0]], dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 1.0, 3.0], dtype=torch.float64)
    again = X.repeat_interleave(weights.long(), 0).numpy()
    found = torch.stack(_quartiles(X, weights)).numpy()
    known = np.nanquantile(again, [0.25, 0.5, 0.75], axis=0, method="inverted_cdf")
    np.testing.assert_array_equal(found, known)
