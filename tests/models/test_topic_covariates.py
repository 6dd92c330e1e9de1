"""Topics whose shares move with covariates: closed forms, references, what carries them along."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from scipy.optimize import linear_sum_assignment, minimize
from scipy.special import logsumexp, softmax
from scipy.stats import norm
from sklearn.linear_model import Ridge
from torch.distributions import Normal

import skavi
from seeds import seeds
from skavi import AmortizedVI, FactorizedVI, can_close_gap
from skavi._data.column_roles import ColumnRoles, GivenColumn
from skavi.distributions import Flat
from skavi.families import DiagonalFactors, DiagonalNormal, FullNormal
from skavi.models import TopicModel
from skavi.noise import GaussHermite
from skavi.solvers import LBFGS

V, K = 6, 3
WORDS = np.log(np.array([[8, 4, 1, 1, 1, 1], [1, 1, 8, 4, 1, 1], [1, 1, 1, 1, 8, 4.0]]))


def with_roles(p, **arguments):
    """Return a model of V words whose rows end with p covariates, far from 0 as a fit sees them."""
    names = [f"c{i}" for i in range(p)]
    model = TopicModel(K, topic_loc=np.zeros(V), covariates=names, **arguments)
    model.columns_ = ColumnRoles(
        {"covariates": tuple(GivenColumn(V + i, name) for i, name in enumerate(names))}, V + p
    )
    return model


def rows(n=8, p=2, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.poisson(softmax(WORDS, 1)[rng.integers(0, K, n)] * 20).astype(float)
    return np.column_stack([X, rng.normal(size=(n, p)) * 2 + 5])


def adapted(X, p=2, **arguments):
    X = torch.as_tensor(X)
    return with_roles(p, **arguments).adapted(X, X.new_ones(len(X)))


def known_topics(p=2):
    """Return q(theta) with the topics known, and the coefficients at 0 with sds of 1."""
    mean = torch.cat([torch.as_tensor(WORDS).reshape(-1), torch.zeros((K - 1) * p)])
    sd = torch.cat([torch.full((K * V,), 1e-9), torch.ones((K - 1) * p)]).double()
    return DiagonalFactors(mean, sd)


def climbed(model, q_theta, X, weights, n_sweeps):
    """Alternate documents and coefficients, the topics held."""
    factors, n_topics = None, K * V
    for _ in range(n_sweeps):
        factors = model.local_optimum(q_theta, X, DiagonalNormal(), factors)
        best = model.global_optimum(q_theta, factors, X, weights)
        mean, sd = (
            torch.cat([held[:n_topics], new[n_topics:]])
            for held, new in ((q_theta.mean, best.mean), (q_theta.sd, best.sd))
        )
        q_theta = DiagonalFactors(mean, sd)
    return q_theta, factors


def elbo(model, q_theta, factors, X, weights):
    space = model.global_space(X)
    own = space.expected_log_prior(q_theta) + q_theta.entropy()
    return float(
        weights @ (model.expected_log_local(factors, q_theta, X) + factors.entropy()) + own
    )


# --- closed forms -------------------------------------------------------------------------------


def test_coefficients_end_where_another_optimiser_does():
    """Topics known. Blei & Lafferty's bound of documents with z_n ~ N(B c_n, s^2), in numpy.

    All factors at once by scipy's L-BFGS: of z_n, and of B = Q u with another orthonormal basis Q
    (of a QR decomposition) than ours. For u_jp ~ N(b_jp, v_jp) and prior N(0, t^2), with m_n and
    r_n^2 the means and variances of z_n:

        sum_nk E log N(z_nk; (Q u c_n)_k, s^2) = -1/2 sum_n [|m_n - Q b c_n|^2 + sum_k r_nk^2
                                                 + sum_jp v_jp c_np^2] / s^2 + constant.
    """
    s, t, p, table = 1.3, 0.7, 2, rows()
    n, x = len(table), table[:, :V]
    c = table[:, V:] - table[:, V:].mean(0)
    words = softmax(WORDS, 1).T
    Q = np.linalg.qr(np.column_stack([np.ones(K), np.eye(K)[:, :2]]))[0][:, 1:]

    def loss(u):
        m, log_r, b, log_v = np.split(u, np.cumsum([n * K, n * K, (K - 1) * p]))
        m, r2, b, v = m.reshape(n, K), np.exp(2 * log_r), b.reshape(K - 1, p), np.exp(2 * log_v)
        r2, v = r2.reshape(n, K), v.reshape(K - 1, p)
        share = m - logsumexp(m + r2 / 2, 1, keepdims=True)
        fit = (x * logsumexp(share[:, None] + np.log(words), 2)).sum()
        away = ((m - c @ (Q @ b).T) ** 2).sum() + r2.sum() + (c**2 @ v.T).sum()
        prior = -((b**2 + v).sum() / t**2) / 2 - away / s**2 / 2
        return -(fit + prior + log_r.sum() + log_v.sum())

    end = minimize(
        loss, np.zeros(2 * n * K + 2 * (K - 1) * p), options={"maxiter": 2000, "gtol": 1e-7}
    )
    expected = Q @ end.x[2 * n * K : 2 * n * K + (K - 1) * p].reshape(K - 1, p)
    X, weights = torch.as_tensor(table), torch.ones(n).double()
    model = adapted(table, proportion_scale=s, coefficient_scale=t)
    q_theta, _ = climbed(model, known_topics(), X, weights, 400)
    mean, _ = model.global_space(X).moments("coefficients", q_theta)
    np.testing.assert_allclose(mean, expected, atol=1e-5)  # BFGS's gradient: 1e-7 of unit curvature
    np.testing.assert_allclose(mean.sum(0), 0, atol=1e-12)


def test_coefficients_are_ridge_regressions_less_their_mean():
    """With documents' factors given, B_k is a ridge regression of E z_k, less the topics' mean.

    A normal prior on all of R^K splits into one of the topics' mean and one of the rest, and so
    does the sum of squares: each is regressed alone, with the same precision A = C'WC / s^2 + I /
    t^2. Independent factors of the free numbers have variances 1 / A_pp, and a centred coefficient
    (K - 1) / K of that.
    """
    s, t, table = 1.3, 0.7, rows(12)
    X, rng = torch.as_tensor(table), np.random.default_rng(0)
    z, weights = rng.normal(size=(12, K)), rng.uniform(0.5, 2, 12)
    model = adapted(table, proportion_scale=s, coefficient_scale=t)
    factors = DiagonalFactors(torch.as_tensor(z), torch.ones(12, K).double())
    best = model.global_optimum(known_topics(), factors, X, torch.as_tensor(weights))
    mean, sd = model.global_space(X).moments("coefficients", best)
    c = table[:, V:] - table[:, V:].mean(0)
    ridge = Ridge(s**2 / t**2, fit_intercept=False).fit(c, z, weights).coef_
    np.testing.assert_allclose(mean, ridge - ridge.mean(0), atol=1e-12)
    precision = (weights @ c**2) / s**2 + 1 / t**2
    np.testing.assert_allclose(sd, np.broadcast_to(((K - 1) / K / precision) ** 0.5, (K, 2)))


@pytest.mark.parametrize("family", [DiagonalNormal(), FullNormal()])
def test_expected_priors_of_documents_are_those_of_nodes(family):
    """(z - B c)^2 is a polynomial of degree 2 in the free numbers: three nodes each are exact."""
    model, X = adapted(rows(4)), torch.as_tensor(rows(4))
    generator = torch.Generator().manual_seed(0)
    size = model.global_space(X).size
    raw = 0.5 * torch.randn(family.n_parameters(size), generator=generator, dtype=torch.float64)
    raw[: K * V] = torch.as_tensor(WORDS).reshape(-1)
    q_theta = family.factors(raw, size)
    mean, sd = torch.randn(2, 4, K, generator=generator, dtype=torch.float64)
    factors = DiagonalFactors(mean, sd.exp())
    plain = TopicModel(K, topic_loc=np.zeros(V))
    zeros = torch.cat([X[:, :V], X[:, V:] * 0], 1)
    topics = DiagonalFactors(q_theta.mean[: K * V], q_theta.sd[: K * V])
    alone = plain.expected_log_local(factors, topics, zeros[:, :V])
    moved = model.expected_log_local(factors, q_theta, X) - alone
    # Of the free numbers' own factor, whatever the topics are: it is normal.
    nodes = GaussHermite(3).nodes((K - 1) * 2, 0, 1, None).to(X)
    covariance = q_theta.covariance()[K * V :, K * V :]
    free = q_theta.mean[K * V :] + nodes.globals_ @ torch.linalg.cholesky(covariance).mT
    values = []
    for u in free:
        theta = model.global_space(X).constrain(torch.cat([q_theta.mean[: K * V], u]))
        here = model.log_prior(theta, mean, X)
        values.append(here - plain.log_prior(theta, mean, X[:, :V]))
    loc = (X[:, V:] - X[:, V:].mean(0)) @ theta["coefficients"].mT
    np.testing.assert_allclose(here, norm.logpdf(mean, loc, model.proportion_scale).sum(1))
    torch.testing.assert_close(moved, nodes.weights @ torch.stack(values))


def test_covariates_of_zeros_change_nothing_but_the_priors_terms():
    """With c = 0 the best q(u) is the prior, which adds nothing to the ELBO: to rounding."""
    table = rows()
    table[:, V:] = 0
    X, weights = torch.as_tensor(table), torch.ones(8).double()
    plain = TopicModel(K, topic_loc=np.zeros(V))
    model = with_roles(2, coefficient_scale=0.7)
    q_topics = DiagonalFactors(*(t[: K * V] for t in (known_topics().mean, known_topics().sd)))
    q_theta = known_topics()
    for _ in range(5):
        factors = model.local_optimum(q_theta, X, DiagonalNormal())
        q_theta = model.global_optimum(q_theta, factors, X, weights)
        without = plain.local_optimum(q_topics, X[:, :V], DiagonalNormal())
        q_topics = plain.global_optimum(q_topics, without, X[:, :V], weights)
    found = elbo(model, q_theta, factors, X, weights)
    assert found == pytest.approx(elbo(plain, q_topics, without, X[:, :V], weights), abs=1e-10)


@pytest.mark.parametrize("scale", [0.7, np.array([0.5, 2.0]), Normal(0.0, 0.5), Flat()])
def test_coefficients_take_the_priors_of_one_vocabulary(scale):
    """The density of B = H u is that of u, as H is a rotation: normal in K - 1 directions."""
    model, X = adapted(rows(), coefficient_scale=scale), torch.as_tensor(rows())
    space = model.global_space(X)
    u = torch.randn(space.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    B = space.constrain(u)["coefficients"].numpy()
    of_topics = norm.logpdf(u[: K * V].numpy(), 0, 2).sum()
    sds = 0.5 if isinstance(scale, Normal) else scale
    expected = 0.0
    if not isinstance(scale, Flat):
        # N(0, t^2) in K numbers, over that of their scaled mean, a standard direction.
        along = norm.logpdf(B.sum(0) / np.sqrt(K), 0, sds).sum()
        expected = norm.logpdf(B, 0, sds).sum() - along
    assert float(space.log_prior(u)) == pytest.approx(of_topics + expected, abs=1e-10)


@pytest.mark.parametrize("family", [DiagonalNormal(), FullNormal()])
def test_moments_and_quantiles_of_coefficients_are_exact(family):
    """Against 200,000 draws, to 5 standard errors."""
    model, X = adapted(rows()), torch.as_tensor(rows())
    space, generator = model.global_space(X), torch.Generator().manual_seed(0)
    raw = 0.3 * torch.randn(family.n_parameters(space.size), generator=generator).double()
    q_theta = family.factors(raw, space.size)
    noise = torch.randn(200_000, space.size, generator=generator, dtype=torch.float64)
    draws = space.draws(q_theta.draw(noise))["coefficients"].numpy()
    mean, sd = (moment.numpy() for moment in space.moments("coefficients", q_theta))
    np.testing.assert_allclose(draws.sum(1), 0, atol=1e-12)
    assert (np.abs(draws.mean(0) - mean) < 5 * sd / np.sqrt(200_000)).all()
    np.testing.assert_allclose(draws.std(0), sd, rtol=5 / np.sqrt(400_000))
    quantiles = space.quantiles("coefficients", q_theta, np.array([0.05, 0.9]))
    np.testing.assert_allclose(quantiles, mean + sd * norm.ppf([0.05, 0.9])[:, None, None])


# --- fits ---------------------------------------------------------------------------------------


def trend(seed, n=300, n_words=40, length=80):
    """Documents of three topics, the first of which grows with c, a unit a unit of c."""
    rng = np.random.default_rng(seed)
    topics, c = softmax(3 * rng.normal(size=(K, n_words)), 1), 3 + rng.normal(size=n)
    B = np.array([1.0, -0.5, -0.5])
    z = (c - c.mean())[:, None] * B + rng.normal(size=(n, K))
    X = np.stack([rng.multinomial(length, row) for row in softmax(z, 1) @ topics])
    return np.column_stack([X, c]).astype(float), topics, B


def matched(vi, topics):
    """Return the fitted topics' order: that of the true ones."""
    found = vi.model_.word_probabilities(vi.global_posterior_)
    return linear_sum_assignment(np.abs(topics[:, None] - found).sum(-1))[1]


def model(**arguments):
    return TopicModel(K, proportion_scale=1.0, covariates=[-1], **arguments)


@pytest.fixture(scope="module")
def fitted():
    X, topics, B = trend(0)
    return FactorizedVI(model(), random_state=0).fit(X), X, topics, B


def n_of_trends(numbers):
    """Count in how many corpora the planted topic's trend is within two corrected sds."""
    within = 0
    for seed in numbers:
        X, topics, B = trend(seed, length=200)
        vi = FactorizedVI(model(), random_state=seed).fit(X)
        q, order = vi.global_posterior_, matched(vi, topics)
        away = (q.mean["coefficients"][order, 0] - B) / q.corrected_sd["coefficients"][order, 0]
        within += abs(away[0]) < 2
    return within


@pytest.mark.slow
def test_a_planted_trend_is_found():
    assert n_of_trends(range(3)) >= 2


@pytest.mark.nightly
def test_planted_trends_are_found():
    assert n_of_trends(range(20)) >= 16


def test_another_solver_ends_there(fitted):
    """L-BFGS on the same ELBO, from the same start, knows no closed form."""
    vi, X, *_ = fitted
    other = FactorizedVI(model(), solver=LBFGS(), random_state=0).fit(X)
    assert other.elbo_ == pytest.approx(vi.elbo_, abs=0.01)
    found = (each.global_posterior_.mean["coefficients"] for each in (vi, other))
    np.testing.assert_allclose(*found, atol=0.01)


def test_sparse_tables_are_the_same(fitted, tmp_path):
    vi, X, *_ = fitted
    table = scipy.sparse.csr_array(X)
    sparse = FactorizedVI(model(), random_state=0).fit(table)
    assert sparse.elbo_ == vi.elbo_
    np.testing.assert_array_equal(sparse.transform(table[:9]), vi.transform(X[:9]))
    skavi.save(sparse, tmp_path / "fit.skavi")
    back = skavi.load(tmp_path / "fit.skavi")
    np.testing.assert_array_equal(back.score_samples(table[:9]), vi.score_samples(X[:9]))


def test_rows_of_one_text_differ_by_their_covariates(fitted):
    """The same words at either end of c: the planted topic has more of the later document."""
    vi, X, topics, _ = fitted
    first = matched(vi, topics)[0]
    same = np.repeat(X[:1], 2, axis=0)
    same[:, -1] = 1.0, 5.0
    assert np.diff(vi.transform(same)[:, first]) > 0.02
    empty = np.zeros((2, X.shape[1]))
    empty[:, -1] = 1.0, 5.0
    moved = np.diff(vi.posterior(empty).logits.mean, axis=0)[0]
    np.testing.assert_allclose(
        moved, 4 * vi.global_posterior_.mean["coefficients"][:, 0], atol=1e-6
    )


@pytest.mark.parametrize("far", [1e3, 1e5, 1e9, 1e20])
def test_a_covariate_far_away_leaves_the_words_little_to_say(fitted, far):
    """A document's logits are at the prior's mean there, but for what its words can pull.

    The slope of a bound in its logits is e - n_words p - (m - loc) / s^2, with shares p and
    e words explained by each topic: |m - loc| <= n_words s^2, and s = 1 here.
    """
    vi, X, *_ = fitted
    row = X[:1].copy()
    row[:, -1] = far
    loc = vi.global_posterior_.mean["coefficients"][:, 0] * (far - X[:, -1].mean())
    away = vi.posterior(row).logits.mean[0] - loc
    assert np.abs(away).max() <= X[0, :-1].sum() + 1e-12 * far
    np.testing.assert_allclose(vi.transform(row)[0], np.eye(K)[loc.argmax()], atol=1e-12)


def test_new_documents_are_drawn_for_covariates(fitted):
    vi, X, topics, _ = fitted
    first = matched(vi, topics)[0]
    drawn, shares = vi.sample(covariates=np.repeat([1.0, 5.0], 500)[:, None], random_state=0)
    assert drawn.shape == (1000, X.shape[1])
    np.testing.assert_array_equal(drawn[:, -1], np.repeat([1.0, 5.0], 500))
    assert shares[500:, first].mean() > shares[:500, first].mean() + 0.3
    expected = vi.inverse_transform(shares[:3], covariates=[[1.0]] * 3)
    np.testing.assert_allclose(expected.sum(1), 1)
    with pytest.raises(ValueError, match=r"pass covariates=..."):
        vi.sample(3)
    theta = {"topics": torch.as_tensor(vi.global_posterior_.mean["topics"])}
    with torch.random.fork_rng(devices=[]):
        again = vi.model_.replicate(theta, torch.zeros(5, K).double(), torch.as_tensor(X[:5]))
    np.testing.assert_array_equal(again[:, -1], X[:5, -1])
    np.testing.assert_array_equal(again[:, :-1].sum(1), X[:5, :-1].sum(1))


def test_an_open_scale_is_taken_from_the_covariate(fitted):
    vi, X, *_ = fitted
    np.testing.assert_allclose(vi.model_.coefficient_scale, 2.5 * 1.0 / X[:, -1].std())


def test_a_function_reads_words_and_covariates(fitted):
    factorized, X, topics, _ = fitted
    vi = AmortizedVI(model(), random_state=0).fit(X)
    assert vi.elbo_ > factorized.elbo_ - 40  # nats of 24,000 words
    same = np.repeat(X[:1], 2, axis=0)
    same[:, -1] = 2.0, 4.0
    assert np.diff(vi.transform(same)[:, matched(vi, topics)[0]]) > 0.01
    assert can_close_gap(model(), X, random_state=0).closable


def test_streams_go_on(fitted):
    """Halves, one after the other: near the fit to all at once, in its sds."""
    whole, X, topics, _ = fitted
    vi = FactorizedVI(model(), random_state=0)
    for part in (X[:150], X[150:]):
        vi.partial_fit(part)
    order = [matched(each, topics) for each in (vi, whole)]
    found = [
        each.global_posterior_.mean["coefficients"][o, 0]
        for each, o in zip((vi, whole), order, strict=True)
    ]
    np.testing.assert_allclose(*found, atol=0.15)


def test_text_and_names_of_columns():
    X, *_ = trend(1, n=60, n_words=12)
    frame = pd.DataFrame(X[:, :-1]).add_prefix("w")
    frame.insert(0, "source", np.where(X[:, -1] > 3, "new", "old"))
    frame["year"] = X[:, -1]
    coarse = TopicModel(2, covariates=["year", "source"], resolution=0.1)
    vi = FactorizedVI(coarse, random_state=0).fit(frame)
    assert vi.model_.columns_.labels("covariates") == ["year", "source_old"]
    assert vi.global_posterior_.mean["coefficients"].shape == (2, 2)
    assert list(vi.get_feature_names_out()) == ["topic0", "topic1"]
    with pytest.raises(ValueError, match="column 'source' holds 'other'"):
        vi.transform(frame.assign(source="other"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_components": 1}, "at least 2 with covariates"),
        ({"coefficient_scale": -1.0}, "coefficient_scale must be positive"),
        ({"coefficient_scale": Normal(1.0, 1.0)}, "a normal about 0"),
        ({"coefficient_scale": [1.0, 2.0]}, "coefficient_scale has 2 numbers"),
        ({"covariates": "year"}, "X has no column names"),
    ],
)
def test_what_cannot_be_used(arguments, message):
    X, *_ = trend(0, n=12)
    with pytest.raises(ValueError, match=message):
        FactorizedVI(TopicModel(**({"n_components": 2, "covariates": [-1]} | arguments))).fit(X)


@pytest.mark.parametrize("seed", seeds(0, 1))
def test_sweeps_never_lower_the_elbo(seed):
    table = rows(20, seed=seed)
    X, weights = torch.as_tensor(table), torch.ones(20).double()
    here, q_theta, factors, values = adapted(table), known_topics(), None, []
    for _ in range(25):
        factors = here.local_optimum(q_theta, X, DiagonalNormal(), factors)
        values.append(elbo(here, q_theta, factors, X, weights))
        q_theta = here.global_optimum(q_theta, factors, X, weights)
        values.append(elbo(here, q_theta, factors, X, weights))
    assert (np.diff(values) > -1e-9).all()
