"""Models without latents: everything that speaks of latents has zero columns."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.linear_model import LogisticRegression
from torch.distributions import Bernoulli, Normal

from skavi import AmortizedVI, FactorizedVI, amortization_gap, can_close_gap
from skavi.diagnostics import calibration, linear_response, psis_khat
from skavi.displays import LatentPosteriorDisplay
from skavi.families import DiagonalNormal, FullNormal, Point
from skavi.inference_functions import MLP, Constant, Polynomial, Table
from skavi.models import (
    HierarchicalModel,
    LatentVariableModel,
    MarkovModel,
    TimeSeriesModel,
)
from skavi.noise import FixedDraws, GaussHermite, MonteCarlo, QuasiMonteCarlo
from skavi.solvers import LBFGS, Adam, Newton

X = np.random.default_rng(0).normal(2.0, 2.0, size=(50, 1))
ESTIMATORS = [FactorizedVI, AmortizedVI]
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


class Mean(HierarchicalModel):
    """x_n ~ N(mu, 2), mu ~ N(1, 3): the posterior is normal, so the ELBO is the evidence."""

    n_latents = 0

    def global_prior(self, n_features):
        return {"mu": Normal(1.0, 3.0)}

    def likelihood(self, z, theta):
        return Normal(theta["mu"].expand(len(z), 1), 2.0)


class MeanOfSeries(TimeSeriesModel):
    """The same, given by its log likelihood alone."""

    n_latents = 0

    def global_prior(self, n_features):
        return {"mu": Normal(1.0, 3.0)}

    def log_likelihood(self, theta, z, X):
        return Normal(theta["mu"], 2.0).log_prob(X).sum(-1)


class MeanOfAll(LatentVariableModel):
    """The same, given by one log joint of all rows."""

    def n_latents(self, n_features):
        return 0

    def global_prior(self, n_features):
        return {"mu": Normal(1.0, 3.0)}

    def log_joint(self, theta, z, X):
        return Normal(theta["mu"], 2.0).log_prob(X).sum()


class Logit(HierarchicalModel):
    """Logistic regression: the last column on the others."""

    n_latents = 0

    def global_prior(self, n_features):
        return {"b": Normal(torch.zeros(n_features - 1), 1.0)}

    def log_likelihood(self, theta, z, X):
        return Bernoulli(logits=X[:, :-1] @ theta["b"]).log_prob(X[:, -1])


def log_evidence(X):
    n = len(X)
    covariance = 4 * np.eye(n) + 9 * np.ones((n, n))
    return multivariate_normal.logpdf(X[:, 0], np.ones(n), covariance)


def posterior(X):
    precision = 1 / 9 + len(X) / 4
    return (1 / 9 + X.sum() / 4) / precision, precision**-0.5


@each_estimator
@pytest.mark.parametrize("model", [Mean(), MeanOfSeries(), MeanOfAll()], ids=repr)
@pytest.mark.parametrize("global_family", [DiagonalNormal(), FullNormal()], ids=repr)
def test_a_conjugate_mean_has_the_evidence_for_elbo(estimator, model, global_family):
    vi = estimator(model, global_family=global_family, random_state=0).fit(X)
    mean, sd = posterior(X)
    assert vi.converged_
    assert vi.elbo_ == pytest.approx(log_evidence(X), abs=1e-8)
    assert float(vi.global_posterior_.mean["mu"]) == pytest.approx(mean, abs=1e-8)
    assert float(vi.global_posterior_.sd["mu"]) == pytest.approx(sd, abs=1e-8)
    assert vi.transform(X).shape == (50, 0)


@each_estimator
@pytest.mark.parametrize(
    "arguments",
    [
        {"solver": Newton()},
        {"solver": LBFGS()},
        {"noise": QuasiMonteCarlo(64)},
        {"noise": GaussHermite(5), "family": FullNormal()},
        {"noise": FixedDraws(400), "tol": 1e-2},
        {
            "noise": MonteCarlo(8),
            "solver": Adam(batch_size=25),
            "max_iter": 4000,
            "tol": 1e-4,
        },
    ],
    ids=repr,
)
def test_every_solver_and_noise_reaches_the_evidence(estimator, arguments):
    vi = estimator(Mean(), random_state=0, **arguments).fit(X)
    # Draws, fixed or fresh, shift the optimum: by 1/400 and by Adam's last steps.
    drawn = isinstance(vi.noise_, FixedDraws | MonteCarlo)
    assert vi.elbo_ == pytest.approx(log_evidence(X), abs=2e-2 if drawn else 1e-8)


@pytest.mark.parametrize("function", [None, Constant(), Polynomial(2), MLP((4,))], ids=repr)
def test_no_function_is_fitted_where_no_row_has_a_factor(function):
    vi = AmortizedVI(Mean(), function).fit(X)
    assert isinstance(vi.inference_function_, Table)
    assert vi.elbo_ == pytest.approx(log_evidence(X), abs=1e-8)


def test_a_point_is_the_maximum_a_posteriori():
    vi = FactorizedVI(Mean(), global_family=Point()).fit(X)
    assert float(vi.global_posterior_.mean["mu"]) == pytest.approx(posterior(X)[0], abs=1e-6)


def test_logistic_regression_is_near_its_penalised_maximum():
    rng = np.random.default_rng(1)
    A = rng.normal(size=(400, 3))
    y = (rng.random(400) < 1 / (1 + np.exp(-A @ [1.0, -2.0, 0.5]))) * 1.0
    vi = FactorizedVI(Logit(), random_state=0).fit(np.c_[A, y])
    best = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-8).fit(A, y).coef_[0]
    # The mean is not the mode: a tenth of an sd (0.13 to 0.17) at this number of rows.
    np.testing.assert_allclose(vi.global_posterior_.mean["b"], best, atol=0.03)
    assert vi.converged_


def test_rows_have_no_work_of_their_own(monkeypatch):
    """A step evaluates all rows once at each length of theta's step, and none in `transform`."""
    calls, written = [], Mean.likelihood

    def counted(*arguments):
        calls.append(arguments)
        return written(*arguments)

    vi, start = FactorizedVI(Mean()).fit(X), FactorizedVI(Mean()).fit(X - 1)
    monkeypatch.setattr(Mean, "likelihood", counted)
    vi.transform(X)
    assert not calls
    again = FactorizedVI(Mean(), noise=GaussHermite(3), init=start).fit(X)
    # Checks, then derivatives and values of each step: 23; with steps of rows there were 53.
    assert again.n_iter_ == 2
    assert len(calls) <= 30


# What is said of latents


@pytest.fixture(scope="module", params=ESTIMATORS)
def fitted(request):
    return request.param(Mean(), random_state=0).fit(X)


def test_posteriors_have_no_columns(fitted):
    found = fitted.posterior(X)
    assert found.mean.shape == found.sd.shape == found.cdf(found.mean).shape == (50, 0)
    assert found.scale.shape == (50, 0, 0)
    assert found.sample(5, random_state=0).shape == (5, 50, 0)
    assert found.quantile([0.1, 0.5]).shape == (2, 50, 0)
    assert found.to_frame().shape == (50, 0)
    assert "50 rows, 0 latents" in found._repr_html_()
    assert list(fitted.get_feature_names_out()) == []


def test_frames_have_an_index_and_no_columns(fitted):
    frame = pd.DataFrame(X, columns=["x"], index=np.arange(50) + 7)
    vi = pickle.loads(pickle.dumps(fitted)).set_output(transform="pandas")
    vi.fit(frame)
    Z = vi.transform(frame)
    assert Z.shape == (50, 0)
    assert list(Z.index) == list(vi.posterior(frame).to_frame().index) == list(frame.index)
    assert type(fitted)(Mean(), output="mean_sd").fit_transform(X).shape == (50, 0)


def test_scores_are_those_of_the_globals(fitted):
    """ELBO - E log prior - entropy of q(theta), by hand."""
    mean, sd = posterior(X)
    rows = -0.5 * ((X[:, 0] - mean) ** 2 + sd**2) / 4 - 0.5 * np.log(2 * np.pi * 4)
    np.testing.assert_allclose(fitted.score_samples(X), rows, atol=1e-8)
    assert fitted.score(X) == pytest.approx(rows.mean(), abs=1e-8)
    predictive = -0.5 * (X[:, 0] - mean) ** 2 / (4 + sd**2) - 0.5 * np.log(2 * np.pi * (4 + sd**2))
    # 1,024 antithetic quasi-random draws: within 1e-3 nats.
    np.testing.assert_allclose(fitted.score_samples(X, n_draws=1024), predictive, atol=1e-3)


def test_generation_takes_and_gives_no_columns(fitted):
    mean, _ = posterior(X)
    np.testing.assert_allclose(fitted.inverse_transform(np.empty((4, 0))), np.full((4, 1), mean))
    rows, Z = fitted.sample(2000, random_state=0)
    assert rows.shape == (2000, 1)
    assert Z.shape == (2000, 0)
    # One draw of mu (sd 0.28), then 2,000 rows of sd 2.
    assert abs(rows.mean() - mean) < 1.2
    assert rows.std() == pytest.approx(2, abs=0.12)
    with pytest.raises(ValueError, match="0 latents a row"):
        fitted.inverse_transform(np.zeros((4, 1)))


def test_arviz_has_latents_of_size_zero(fitted):
    pytest.importorskip("arviz_base", reason="arviz is optional")
    tree = fitted.to_arviz(X, n_draws=10, random_state=0)
    assert dict(tree["posterior"]["z"].sizes) == {"chain": 1, "draw": 10, "row": 50, "latent": 0}
    assert tree["posterior_predictive"]["x"].shape == (1, 10, 50, 1)


def test_linear_response_has_nothing_to_correct(fitted):
    found = linear_response(fitted, X)
    assert found.covariance.shape == (50, 0, 0)
    assert float(found.global_sd["mu"]) == pytest.approx(posterior(X)[1], abs=1e-8)


@pytest.mark.parametrize("model", [Mean(), MeanOfAll()], ids=repr)
def test_khat_says_that_q_is_the_posterior(model):
    pytest.importorskip("arviz_stats", reason="arviz is optional")
    found = psis_khat(FactorizedVI(model).fit(X), X, n_draws=100, random_state=0)
    assert found.joint == -np.inf
    assert (found.per_row == -np.inf).all()


@pytest.mark.parametrize("model", [Mean(), MeanOfSeries(), MeanOfAll()], ids=repr)
def test_there_is_no_gap(model):
    vi = AmortizedVI(model).fit(X)
    for factorized in (None, FactorizedVI(model).fit(X)):
        gap = amortization_gap(vi, X, factorized)
        assert gap.total == pytest.approx(0, abs=1e-10)
        np.testing.assert_array_equal(gap.per_row, np.zeros(50))
        np.testing.assert_array_equal(gap.gradient_norm, np.zeros(50))
    for rows in (None, X):
        verdict = can_close_gap(model, rows)
        assert verdict.closable
        assert verdict.context == (0, 0)
        assert "no latents" in verdict.reason


def test_calibration_ranks_the_globals():
    found = calibration(FactorizedVI(Mean()), n_simulations=40, n_samples=10, random_state=0)
    assert found.ranks["z"].shape == (40, 0)
    assert found.p_values["z"].shape == (0,)
    assert float(found.p_values["mu"]) > 1e-3
    assert list(found.summary()["name"]) == ["mu"]
    with pytest.raises(ValueError, match="refit=False ranks latents, but Mean has none"):
        calibration(FactorizedVI(Mean()).fit(X), 20, refit=False)


# Other ways to fit


@each_estimator
def test_displays_say_that_there_are_no_latents(estimator):
    pytest.importorskip("matplotlib", reason="matplotlib is optional")
    vi = estimator(Mean()).fit(X)
    with pytest.raises(ValueError, match="latent=0: the model has no latents"):
        LatentPosteriorDisplay.from_estimator(vi, X)


@each_estimator
def test_streams_and_weights_give_the_same_evidence(estimator):
    vi = estimator(Mean()).partial_fit(X[:20]).partial_fit(X[20:])
    assert vi.elbo_ == pytest.approx(log_evidence(X), abs=1e-8)
    weighted = estimator(Mean()).fit(X[:3], sample_weight=[1, 2, 1])
    assert weighted.elbo_ == pytest.approx(log_evidence(X[[0, 1, 1, 2]]), abs=1e-8)


@each_estimator
def test_a_fit_starts_from_another(estimator):
    vi = estimator(Mean(), warm_start=True).fit(X)
    assert vi.fit(X).n_iter_ <= 2
    for other in ESTIMATORS:
        started = other(Mean(), init=vi).fit(X)
        assert started.n_iter_ <= 2
        assert started.elbo_ == pytest.approx(log_evidence(X), abs=1e-8)


def test_many_rows_are_evaluated_in_pieces():
    """200,000 rows have two numbers that matter: their mean, and their mean square."""
    many = np.random.default_rng(1).normal(2.0, 2.0, size=(200_000, 1))
    vi = FactorizedVI(Mean()).fit(many)
    mean, sd = posterior(many)
    assert float(vi.global_posterior_.mean["mu"]) == pytest.approx(mean, abs=1e-8)
    assert float(vi.global_posterior_.sd["mu"]) == pytest.approx(sd, rel=1e-6)


# What is refused


class Nothing(HierarchicalModel):
    """Neither latents nor globals."""

    n_latents = 0

    def global_prior(self, n_features):
        return {}

    def likelihood(self, z, theta):
        return Normal(torch.zeros(len(z), 1), 1.0)


class ChainOfNothing(MarkovModel):
    """A chain without what it is a chain of."""

    n_latents = 0

    def global_prior(self, n_features):
        return {"mu": Normal(0.0, 1.0)}

    def initial_prior(self, theta):
        raise AssertionError("asked for")

    def transition(self, z_previous, theta):
        raise AssertionError("asked for")

    def likelihood(self, z, theta):
        raise AssertionError("asked for")


@each_estimator
def test_models_of_nothing_are_refused(estimator):
    with pytest.raises(ValueError, match=r"Nothing has no latents .* and no globals"):
        estimator(Nothing()).fit(X)
    with pytest.raises(ValueError, match=r"ChainOfNothing.n_latents is 0: .* HierarchicalModel"):
        estimator(ChainOfNothing()).fit(X)
