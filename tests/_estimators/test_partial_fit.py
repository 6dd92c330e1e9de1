"""Streams: what rows that are gone leave behind, beside the fit to all rows."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from benchmarks import streaming
from skavi import AmortizedVI, FactorizedVI
from skavi._estimators import row_inference
from skavi._fit.streaming import Remembered
from skavi.families import DiagonalNormal, FullNormal, Point
from skavi.inference_functions import Polynomial
from skavi.models import FactorAnalysis, LinearModel, LocalLevel, TopicModel
from skavi.models._global_space import GlobalSpace
from skavi.noise import MonteCarlo
from skavi.solvers import LBFGS, Adam, CoordinateAscent, Newton

BOTH = pytest.mark.parametrize("estimator", [FactorizedVI, AmortizedVI])


def drifting(n=300, seed=0):
    """Rows that are low first and high last, so that no part of them stands for all."""
    return np.sort(np.random.default_rng(seed).normal(3.0, 1.5, size=(n, 1)), axis=0)


def table(n=600, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 1)) @ rng.normal(size=(1, 5)) + 0.7 * rng.normal(size=(n, 5))
    return X + 1.0


def streamed(vi, X, n_parts=5, sample_weight=None):
    for index in np.array_split(np.arange(len(X)), n_parts):
        weight = None if sample_weight is None else sample_weight[index]
        vi.partial_fit(X[index], sample_weight=weight)
    return vi


@pytest.mark.parametrize("family", [DiagonalNormal(), FullNormal()])
@pytest.mark.parametrize("solver", [None, LBFGS(), Newton()])
@BOTH
def test_a_stream_of_a_linear_model_is_the_fit_to_all(estimator, solver, family):
    """The ELBO is quadratic in the mean of q(theta) and its sd is the same at any mean.

    So what is remembered of earlier rows is exact, whatever the order they come in.
    """
    X = drifting()
    parts = {"solver": solver, "global_family": family, "tol": 1e-8}
    vi = estimator(LinearModel(), random_state=0, **parts)
    full, stream = clone(vi).fit(X), streamed(vi, X)
    # An optimum is found to 1e-8 nats a row: 3e-6 nats, or sqrt(2 * 3e-6) = 2e-3 sds, a part.
    q, truth = stream.global_posterior_, full.global_posterior_
    assert q.mean["theta"] == pytest.approx(truth.mean["theta"], abs=5e-3 * truth.sd["theta"])
    assert q.sd["theta"] == pytest.approx(truth.sd["theta"], rel=5e-3)
    assert stream.elbo_ == pytest.approx(full.elbo_, abs=1e-3)


@pytest.mark.parametrize("family", [DiagonalNormal(), FullNormal()])
def test_q_itself_is_remembered_as_a_normal_prior(family):
    """Beside torch: E_q log p = -KL(q || p) - H[q]."""
    rng = torch.Generator().manual_seed(0)
    before, q = (
        family.factors(torch.randn(family.n_parameters(3), generator=rng), 3) for _ in range(2)
    )
    p, normal = (MultivariateNormal(f.mean, f.covariance()) for f in (before, q))
    expected = -kl_divergence(normal, p) - normal.entropy()
    space = GlobalSpace({"theta": Normal(torch.zeros(3), 1.0)})
    value = Remembered(space, before, None).expected_log_prior(q)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)  # single precision


def test_without_curvature_early_rows_outvote_later_ones(monkeypatch):
    """Plain streaming VB, in closed form: q(theta) after n rows has precision n / sigma^2.

    The next n rows hold n / (sigma^2 + tau^2) on theta. With sigma = tau they weigh half.
    """
    monkeypatch.setattr("skavi._fit.streaming._MOST_UNKNOWNS", 0)
    X = drifting(200)
    vi = streamed(FactorizedVI(LinearModel(tau=1.0, sigma=1.0)), X, 2)
    first, second = X[:100].mean(), X[100:].mean()
    expected = (2 * first + second) / 3
    assert vi.global_posterior_.mean["theta"] == pytest.approx(expected, abs=1e-4)


@BOTH
def test_a_stream_of_factor_analysis_ends_near_the_fit_to_all(estimator):
    """Globals within their own posterior sds: what is remembered of them is a normal, not exact."""
    X = table()
    scales = {"loading_scale": 2.0, "mean_loc": 0.0, "mean_scale": 10.0, "noise_scale": 0.5}
    vi = estimator(FactorAnalysis(1, **scales), random_state=0)
    full, stream = clone(vi).fit(X), streamed(vi, X)
    q, truth = stream.global_posterior_, full.global_posterior_
    sign = np.sign((q.mean["loadings"] * truth.mean["loadings"]).sum())
    for name, sd in truth.sd.items():
        mean = q.mean[name] * (sign if name == "loadings" else 1)
        assert np.all(np.abs(mean - truth.mean[name]) < sd)
        assert np.allclose(q.sd[name], sd, rtol=0.05)
    # Half a squared departure for each of 11 globals, at most.
    assert abs(stream.elbo_ - full.elbo_) < 5.5
    assert stream.score(X) == pytest.approx(full.score(X), abs=5.5 / len(X))


def test_weights_count_rows_in_a_stream():
    X, weight = drifting(60), np.tile([1.0, 2.0, 0.0], 20)
    weighted = streamed(FactorizedVI(LinearModel()), X, 3, weight)
    repeated = FactorizedVI(LinearModel())
    for part in np.array_split(np.arange(60), 3):
        repeated.partial_fit(np.repeat(X[part], weight[part].astype(int), axis=0))
    q, truth = weighted.global_posterior_, repeated.global_posterior_
    assert q.mean["theta"] == pytest.approx(truth.mean["theta"], abs=1e-5)
    assert weighted.elbo_ == pytest.approx(repeated.elbo_, abs=1e-4)


def test_rows_that_stand_for_all_weigh_as_all():
    """Of more than 2,000 rows some stand for the rest; theta is the weighted mean of all calls'.

    The second call's rows are few, but heavy; their heavy half has another mean.
    """
    first = np.random.default_rng(0).normal(0.0, 1.5, size=(5000, 1))
    second = np.random.default_rng(1).normal(4.0, 1.5, size=(2500, 1))
    weights = np.where(np.arange(2500) % 2, 3.0, 1.0)
    second[1::2] += 2.0
    third = np.full((500, 1), -8.0)
    vi = FactorizedVI(LinearModel()).partial_fit(first)
    vi.partial_fit(second, sample_weight=weights).partial_fit(third)
    X, weight = np.concatenate([first, second, third]), np.r_[np.ones(5000), weights, np.ones(500)]
    full = FactorizedVI(LinearModel()).fit(X, sample_weight=weight).global_posterior_
    assert full.mean["theta"] == pytest.approx(weight @ X[:, 0] / weight.sum(), abs=1e-6)
    q = vi.global_posterior_
    # As above: sqrt(2 * 1e-8 * 10^4) = 0.014 sds a call.
    assert q.mean["theta"] == pytest.approx(full.mean["theta"], abs=0.05 * full.sd["theta"])
    assert q.sd["theta"] == pytest.approx(full.sd["theta"], rel=5e-3)


def test_a_stream_goes_on_after_pickling_and_from_a_plain_fit():
    X = drifting()
    vi = FactorizedVI(LinearModel()).partial_fit(X[:100])
    copied = pickle.loads(pickle.dumps(vi)).partial_fit(X[100:])
    vi.partial_fit(X[100:])
    assert copied.global_posterior_.mean["theta"] == vi.global_posterior_.mean["theta"]
    again = vi.fit(X[:100]).partial_fit(X[100:])  # fit forgets the stream
    fresh = FactorizedVI(LinearModel()).fit(X[:100]).partial_fit(X[100:])
    assert again.global_posterior_.mean["theta"] == fresh.global_posterior_.mean["theta"]


def test_a_stream_in_minibatches_with_fresh_draws():
    """Adam ends within its own noise, a small part of a posterior sd, of the optimum."""
    X = np.random.default_rng(0).permutation(drifting(400)).astype(np.float32)
    solver = Adam(learning_rate=0.02, batch_size=50)
    vi = AmortizedVI(LinearModel(), Polynomial(), noise=MonteCarlo(), solver=solver, random_state=0)
    stream, truth = streamed(vi, X, 2), FactorizedVI(LinearModel()).fit(X).global_posterior_
    assert stream.converged_
    difference = stream.global_posterior_.mean["theta"] - truth.mean["theta"]
    assert abs(difference) < truth.sd["theta"]
    assert stream.elbo_se_ > 0


@pytest.mark.slow
def test_a_stream_stops_by_the_tolerance_of_its_model():
    """Topics ask for 1e-3 nats a word; to tol, 1e-6 nats a row, Adam would take 10,000 steps."""
    rng = np.random.default_rng(0)
    topics, shares = rng.dirichlet(np.full(30, 0.1), 2), rng.dirichlet([0.2] * 2, 60)
    X = np.array([rng.multinomial(40, p @ topics) for p in shares]).astype(float)
    vi = AmortizedVI(TopicModel(2), max_iter=2000, random_state=0)
    stream, full = streamed(clone(vi), X, 2), vi.fit(X)
    assert stream.converged_
    assert stream.n_iter_ <= 1600  # two windows of 200 without a gain, wherever they come
    # Theta of the first 30 documents is remembered as a normal: half a nat a row is lost at most.
    assert stream.score(X) == pytest.approx(full.score(X), abs=0.5)


def test_the_curve_of_a_call_goes_on_from_the_elbo_of_those_before():
    """Exact expectations: what the solver saw last is what is stated."""
    vi = FactorizedVI(LinearModel(), random_state=0).partial_fit(drifting(60))
    first = vi.elbo_
    vi.partial_fit(drifting(40, seed=1))
    assert vi.elbo_curve_[-1] == pytest.approx(vi.elbo_, rel=1e-12)  # rounding
    assert vi.elbo_ < first - 40  # more than a nat a row: the density's constant alone


def test_errors_of_all_calls_add_up_in_squares():
    """A call of a row has a far smaller error than the first of 100, which is not forgotten."""
    arguments = {"noise": MonteCarlo(4), "solver": Adam(), "max_iter": 5, "random_state": 0}
    vi = FactorizedVI(FactorAnalysis(1), **arguments)
    with pytest.warns(UserWarning, match="did not converge"):
        first = vi.partial_fit(table(100)).elbo_se_
        both = vi.partial_fit(table(1)).elbo_se_
        third = vi.partial_fit(table(100)).elbo_se_
    assert 0 < first < both < 1.5 * first
    assert third < 1.7 * first  # 1.4 times, about, and twice if errors themselves added up


@BOTH
def test_scikit_learn_checks_of_partial_fit(estimator):
    vi = estimator(random_state=0)
    estimator_checks.check_estimators_partial_fit_n_features(estimator.__name__, vi)
    estimator_checks.check_n_features_in_after_fitting(estimator.__name__, vi)


@pytest.mark.parametrize(
    ("vi", "message"),
    [
        (FactorizedVI(LocalLevel(1.0, 1.0)), "independent given theta, but LocalLevel couples"),
        (FactorizedVI(LinearModel(), global_family=Point()), r"LinearModel is Point\(\)"),
        (FactorizedVI(FactorAnalysis(1), solver=CoordinateAscent()), "leave solver at None"),
    ],
)
def test_what_cannot_go_on_is_refused_before_any_work(vi, message):
    with pytest.raises(ValueError, match=message):
        vi.partial_fit(table(30))
    with pytest.raises(NotFittedError):
        vi.transform(table(30))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.ones((5, 3)), "3 features"),
        (np.full((5, 5), np.inf), "infinity"),
        (np.full((5, 5), 1e200), "not finite|Overflow|singular|finite"),
    ],
)
@BOTH
def test_a_call_that_fails_leaves_the_estimator_as_it_was(estimator, X, message):
    vi = estimator(FactorAnalysis(1), random_state=0).partial_fit(table())
    before = pickle.dumps(vi)
    with pytest.raises((ValueError, FloatingPointError), match=message):
        vi.partial_fit(X)
    assert pickle.dumps(vi) == before


@BOTH
def test_many_rows_are_transformed_in_pieces(monkeypatch, tmp_path, estimator):
    """Of a file on disk, too; what a row gets does not depend on its piece, but for rounding."""
    X = table(200).astype(np.float32)
    vi = estimator(FactorAnalysis(1), output="mean_sd", random_state=0).fit(X)
    whole, scores = vi.transform(X), vi.score_samples(X)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    monkeypatch.setattr(row_inference, "COPIED_ROWS", 64)
    assert np.allclose(vi.transform(mapped), whole, rtol=1e-6)
    assert np.allclose(vi.score_samples(mapped), scores, rtol=1e-9)


def test_an_error_in_a_later_piece_says_where_its_rows_begin(monkeypatch):
    vi = FactorizedVI(FactorAnalysis(1, likelihood="poisson"), random_state=0)
    X = np.random.default_rng(0).poisson(3.0, size=(200, 4)).astype(float)
    vi.fit(X[:100])
    X[150, 2] = -1.0
    monkeypatch.setattr(row_inference, "COPIED_ROWS", 64)
    with pytest.raises(ValueError, match="row 22") as caught:
        vi.transform(X)
    assert caught.value.__notes__ == ["Rows are counted from row 128 of X."]


@pytest.mark.slow
def test_the_benchmark_streams_a_file_and_finds_the_plane(monkeypatch, tmp_path):
    """Loadings' errors are about sqrt(1 / n) of their size: 0.02 radians for 3,000 rows."""
    monkeypatch.setattr(streaming, "CHUNK", 1000)
    streaming.write(tmp_path / "X.npy", 3000)
    outcome = streaming.measure(tmp_path / "X.npy")
    assert outcome["rows"] == 3000
    assert outcome["shape"] == (3000, 2)
    assert outcome["angle"] < 0.08
    assert streaming.exponent([10, 10**5, 10**6], [9.0, 2.0, 20.0]) == pytest.approx(1.0)
