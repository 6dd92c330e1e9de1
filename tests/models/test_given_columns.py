"""Covariates and offsets in the models to use: closed forms, references, and what they take out."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import halfcauchy, multivariate_normal
from torch.distributions import Normal

import skavi
from skavi import AmortizedVI, FactorizedVI, Imputer
from skavi.distributions import Flat
from skavi.families import DiagonalNormal, FullNormal, Point
from skavi.models import BayesianDecoder, FactorAnalysis, RandomEffects
from skavi.noise import GaussHermite
from skavi.solvers import LBFGS


def table(likelihood="normal", n=80, d=4, seed=0, holes=False):
    """Columns c0, x0, ..., c1, offset; covariates far from 0 and of unlike sizes."""
    rng = np.random.default_rng(seed)
    c, offset = rng.normal(size=(n, 2)), 0.5 * rng.normal(size=n)
    eta = rng.normal(size=(n, 1)) @ rng.normal(size=(1, d)) + c @ rng.normal(size=(2, d))
    eta = 0.5 * eta + offset[:, None]
    x = eta + 0.3 * rng.normal(size=(n, d)) if likelihood == "normal" else rng.poisson(np.exp(eta))
    x = np.where(rng.random((n, d)) < 0.1, np.nan, x) if holes else x
    return np.column_stack([5 + c[:, 0], x, 3 * c[:, 1], offset])


def model(likelihood="normal", d=4, k=1, **kwargs):
    return FactorAnalysis(k, likelihood=likelihood, covariates=[0, d + 1], offset=d + 2, **kwargs)


@pytest.mark.parametrize("likelihood", ["normal", "poisson"])
def test_an_empty_list_names_no_columns(likelihood):
    X = np.random.default_rng(0).poisson(3.0, size=(12, 3)).astype(float)
    none = FactorAnalysis(1, likelihood=likelihood, trials=[], offset=[], covariates=[])
    empty = FactorizedVI(none, random_state=0).fit(X)
    plain = FactorizedVI(FactorAnalysis(1, likelihood=likelihood), random_state=0).fit(X)
    assert empty.elbo_ == plain.elbo_
    assert np.array_equal(empty.sample(4, random_state=1)[0], plain.sample(4, random_state=1)[0])


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("likelihood", ["normal", "poisson"])
def test_sweeps_end_at_the_optimum_of_another_solver(likelihood, holes):
    X = table(likelihood, holes=holes)
    ours = FactorizedVI(model(likelihood), random_state=0).fit(X)
    other = FactorizedVI(model(likelihood), solver=LBFGS(), random_state=0).fit(X)
    assert ours.converged_
    assert ours.elbo_ == pytest.approx(other.elbo_, abs=1e-4)
    assert ours.n_iter_ < 60  # latents and covariates are told apart by second-order steps


@pytest.mark.parametrize("family", [DiagonalNormal(), FullNormal()])
@pytest.mark.parametrize("global_family", [DiagonalNormal(), FullNormal(), Point()])
@pytest.mark.parametrize("likelihood", ["normal", "poisson"])
def test_closed_forms_are_those_of_nodes(likelihood, family, global_family):
    """Of z by Gauss-Hermite; what is integrated given z and the noise is normal in eta.

    A point stands for the noise, which nodes of z leave alone, and for all globals there.
    """
    if likelihood == "normal" and not isinstance(global_family, Point):
        pytest.skip("nodes of the noise as well: see the fits")
    X = torch.tensor(table(likelihood, 5, 3))
    here = FactorizedVI(model(likelihood, 3, 2), global_family=global_family, max_iter=1)
    with pytest.warns(UserWarning):
        here.fit(X.numpy())
    here = here.model_
    generator = torch.Generator().manual_seed(0)
    size = here.global_space(X).size

    def factors(kind, n_numbers, *shape):
        draw = {"generator": generator, "dtype": X.dtype}
        raw = 0.3 * torch.randn(*shape, kind.n_parameters(n_numbers), **draw)
        raw[..., n_numbers : 2 * n_numbers] -= 1.5  # sds near 0.2
        return kind.factors(raw, n_numbers)

    q_z, q_theta = factors(family, 2, 5), factors(global_family, size)
    closed = here.expected_log_local(q_z, q_theta, X)
    nodes = GaussHermite(24).nodes(0, 2, 1, None).to(X)
    theta = here.global_space(X).constrain(q_theta.mean)
    values = [here.half_expected_terms(theta, z, q_z, q_theta, X) for z in q_z.draw(nodes.locals_)]
    torch.testing.assert_close(closed, nodes.weights @ torch.stack(values), atol=1e-7, rtol=1e-9)


def test_with_offset_size_is_not_counted_twice():
    """A column of log exposures: rates are exp(offset + eta), whatever the rows' totals are."""
    X = table("poisson")
    vi = FactorizedVI(model("poisson"), random_state=0).fit(X)
    assert vi.model_.log_exposure(torch.tensor(X)) == 0.0
    ten = X.copy()
    ten[:, -1] += np.log(10)  # ten times the exposure at the same counts: a tenth of the rates
    other = FactorizedVI(model("poisson"), random_state=0).fit(ten)
    drawn, _ = vi.sample(3, random_state=0, covariates=X[:3, [0, 5]])
    assert not drawn[:, -1].any()  # new rows have an offset of 0
    alone = FactorizedVI(FactorAnalysis(1, likelihood="poisson", offset=4), random_state=0)
    drawn, _ = alone.fit(X[:, [1, 2, 3, 4, 6]]).sample(3, random_state=0)
    assert drawn.shape == (3, 5) and not drawn[:, -1].any()
    shift = other.global_posterior_.mean["mean"] - vi.global_posterior_.mean["mean"]
    np.testing.assert_allclose(shift, -np.log(10), atol=0.05)


@pytest.mark.parametrize("likelihood", ["normal", "poisson"])
def test_covariates_that_say_the_same_share_what_they_explain(likelihood):
    """Their priors are alike, so that their coefficients are: beside none of the other's."""
    X = table(likelihood)
    twice = np.column_stack([X, X[:, 0]])
    kind = FactorAnalysis(1, likelihood=likelihood, covariates=[0, 7, 5], offset=6)
    vi = FactorizedVI(kind, random_state=0).fit(twice)
    assert vi.converged_
    alone = FactorizedVI(model(likelihood), random_state=0).fit(X)
    found, expected = (each.global_posterior_.mean["coefficients"] for each in (vi, alone))
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-6)
    np.testing.assert_allclose(found[:, 0] + found[:, 1], expected[:, 0], atol=0.05)


@pytest.mark.parametrize("likelihood", ["normal", "poisson"])
def test_a_latent_that_dies_out_beside_equal_covariates_leaves_a_fit(likelihood):
    """Of what latents and covariates could exchange nothing is left then, in two directions."""
    x = [[3, 3, 3, 6, 2, 6, 1, 6, 7, 2, 0, 7, 2], [2, 0, 2, 6, 4, 0, 3, 1, 2, 3, 3, 1, 3]]
    x = np.array([*x, [3, 2, 4, 1, 3, 5, 5, 4, 1, 0, 3, 2, 5]], dtype=float).T
    even = np.arange(13) % 2 == 0
    kind = FactorAnalysis(1, likelihood=likelihood, covariates=[3, 4])
    assert FactorizedVI(kind, random_state=0).fit(np.column_stack([x, even, even])).converged_


def test_coefficients_take_any_prior_of_one_vocabulary():
    X = table()
    by_number = FactorizedVI(model(coefficient_scale=1e6), random_state=0).fit(X)
    flat = FactorizedVI(model(coefficient_scale=Flat()), random_state=0).fit(X)
    name = "coefficients"
    found = [vi.global_posterior_.mean[name] for vi in (by_number, flat)]
    np.testing.assert_allclose(*found, atol=1e-6)
    tight = FactorizedVI(model(coefficient_scale=Normal(0.0, 1e-3)), random_state=0).fit(X)
    assert np.abs(tight.global_posterior_.mean[name]).max() < 0.2 * np.abs(found[0]).max()
    with pytest.raises(ValueError, match="coefficient_scale must be positive numbers"):
        FactorizedVI(model(coefficient_scale=-1.0)).fit(X)


def test_imputed_tables_keep_what_is_given():
    X = pd.DataFrame(table(), columns=["age", "x0", "x1", "x2", "x3", "size", "offset"])
    X["age"] = np.where(X["age"] > 5, "old", "young")
    vi = FactorizedVI(FactorAnalysis(1, covariates=["age", "size"], offset="offset")).fit(X)
    holes = X.copy()
    holes.loc[3, "x1"] = np.nan
    filled, sd = vi.impute(holes, return_sd=True)
    assert list(filled[:, 0]) == list(X["age"])
    assert abs(filled[3, 2] - X.loc[3, "x1"]) < 4 * sd[3, 2]
    assert np.count_nonzero(sd) == 1
    assert vi.model_.columns_.labels("covariates") == ["age_young", "size"]
    for imputer in vi.set_output(transform="pandas"), Imputer(vi).fit(holes):
        impute = (
            getattr(imputer, "impute", None) or imputer.set_output(transform="pandas").transform
        )
        frame = impute(holes)
        assert list(frame.dtypes) == list(X.dtypes)  # text is text, and numbers are numbers
        assert frame.drop(index=3).equals(X.drop(index=3))
    assert [str(t) for t in vi.set_output(transform="polars").impute(holes).dtypes] == [
        "String",
        *6 * ["Float64"],
    ]


#: Colditz et al. (1994): deaths or cases of tuberculosis in 13 trials of the BCG vaccine (treated
#: with and without, untreated with and without), and the trials' absolute latitudes.
BCG = np.array(
    [
        *([4, 119, 11, 128, 44], [6, 300, 29, 274, 55], [3, 228, 11, 209, 42]),
        *([62, 13536, 248, 12619, 52], [33, 5036, 47, 5761, 13], [180, 1361, 372, 1079, 44]),
        *([8, 2537, 10, 619, 19], [505, 87886, 499, 87892, 13], [29, 7470, 45, 7232, 27]),
        *([17, 1699, 65, 1600, 42], [186, 50448, 141, 27197, 18], [5, 2493, 3, 2338, 33]),
        *([27, 16886, 29, 17825, 33],),
    ],
    dtype=float,
)


def bcg():
    """Return log risk ratios, their standard errors, and latitudes."""
    a, b, c, d, latitude = BCG.T
    variance = 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)
    return np.column_stack([np.log(a / (a + b) / (c / (c + d))), variance**0.5, latitude])


def exact_regression(X, scale, mu_scale=5.0, tau_scale=5.0):
    """Mean and sd of (mu, b) with effects, mu and b integrated out: a sum over a grid of tau.

    estimate ~ N(A u, diag(se^2 + tau^2)) with A = (1, c) and u ~ N(0, diag(mu_scale, scale)^2).
    """
    y, se, A = X[:, 0], X[:, 1], np.column_stack([np.ones(len(X)), X[:, 2]])
    prior = np.diag([mu_scale**2, scale**2])
    logs, means, covariances = [], [], []
    for tau in np.exp(np.linspace(-7, 2, 2000)):
        noise = np.diag(se**2 + tau**2)
        covariances.append(np.linalg.inv(np.linalg.inv(prior) + A.T @ np.linalg.solve(noise, A)))
        means.append(covariances[-1] @ A.T @ np.linalg.solve(noise, y))
        density = multivariate_normal.logpdf(y, np.zeros(len(y)), noise + A @ prior @ A.T)
        logs.append(density + halfcauchy.logpdf(tau, scale=tau_scale) + np.log(tau))
    weights, means = np.exp(logs - logsumexp(logs)), np.array(means)
    mean = weights @ means
    within = np.tensordot(weights, covariances, 1)
    covariance = within + ((means - mean).T * weights) @ (means - mean)
    return mean, np.diag(covariance) ** 0.5


def test_meta_regression_on_latitude():
    X = bcg()
    vi = FactorizedVI(RandomEffects(covariates=[2])).fit(X)
    q = vi.global_posterior_
    mean, sd = exact_regression(X, float(vi.model_.coefficient_scale[0]))
    assert q.mean["coefficients"][0] == pytest.approx(-0.029, abs=0.001)
    assert q.mean["coefficients"][0] == pytest.approx(mean[1], abs=0.1 * sd[1])
    assert q.corrected_sd["coefficients"][0] == pytest.approx(sd[1], rel=0.1)
    amortized = AmortizedVI(RandomEffects(covariates=[2]), random_state=0).fit(X)
    assert amortized.model_.centred == vi.model_.centred


@pytest.mark.parametrize("centred", [False, True])
def test_effects_move_with_covariates_in_either_form(centred):
    X = bcg()
    vi = FactorizedVI(RandomEffects(covariates=[2], centred=centred)).fit(X)
    posterior = vi.posterior(X)
    draws = posterior.sample(20_000, random_state=0)
    np.testing.assert_allclose(posterior.mean, draws.mean(0), atol=0.02)
    np.testing.assert_allclose(posterior.sd, draws.std(0), atol=0.02)
    np.testing.assert_allclose(posterior.mean, vi.transform(X))
    drawn, effects = vi.sample(covariates=[[10.0]] * 500, random_state=0)
    assert drawn.shape == (500, 3)
    assert abs(drawn[:, 0].mean() - effects.mean()) < 0.2


def test_mu_far_from_zero_at_covariates_of_zero_is_told():
    X = bcg()
    X[:, 2] += 2000  # as if it were years
    with pytest.warns(UserWarning, match="subtract from each covariate a usual value"):
        FactorizedVI(RandomEffects(covariates=[2], coefficient_scale=1.0)).fit(X)


@pytest.mark.slow
def test_a_batch_column_takes_a_batch_effect_out(tmp_path):
    """Three types of rows and two batches: latents keep the types and lose the batches."""
    from sklearn.metrics import silhouette_score

    rng = np.random.default_rng(0)
    kind, batch = rng.integers(0, 3, 300), rng.integers(0, 2, 300)
    x = 1.5 * rng.normal(size=(3, 10))[kind] + batch[:, None] * 1.5 * rng.normal(size=10)
    X = pd.DataFrame(x + 0.5 * rng.normal(size=x.shape)).add_prefix("x")
    X["batch"] = np.where(batch, "b", "a")
    decoder = BayesianDecoder(2, (16,), weights="point", covariates="batch")
    vi = AmortizedVI(decoder, random_state=0).fit(X)
    Z = vi.transform(X)
    assert abs(silhouette_score(Z, batch)) < 0.03
    assert silhouette_score(Z, kind) > 0.4
    skavi.save(vi, tmp_path / "fit.skavi")
    np.testing.assert_array_equal(skavi.load(tmp_path / "fit.skavi").transform(X), Z)
    there = vi.inverse_transform(Z[:2], covariates=[["a"], ["b"]])
    assert there.shape == (2, 10)
