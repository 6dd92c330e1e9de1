"""Missing cells: marginalised exactly, for every model of cells, and filled by `impute`."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.special import gammaln

from closed_forms import ppca_log_evidence, ppca_posterior_missing
from skavi import AmortizedVI, FactorizedVI
from skavi._data.missing_cells import Cells
from skavi.distributions import defaults_of
from skavi.families import FullNormal
from skavi.inference_functions import MLP, Polynomial
from skavi.models import BayesianDecoder, FactorAnalysis, LinearModel
from skavi.noise import QuasiMonteCarlo
from skavi.solvers import LBFGS, CoordinateAscent

rng = np.random.default_rng(0)
W, MEAN, PSI = rng.normal(size=(4, 2)), rng.normal(size=4), np.array([0.3, 0.5, 0.7, 0.9])
COMPLETE = rng.normal(size=(60, 2)) @ W.T + MEAN + np.sqrt(PSI) * rng.normal(size=(60, 4))


def with_holes(X, share=0.3, seed=1):
    X = np.array(X, dtype=float)
    X[np.random.default_rng(seed).random(X.shape) < share] = np.nan
    return X


HOLES = with_holes(COMPLETE)
HOLES[3] = np.nan  # a row of which nothing is known


def known_globals(**arguments):
    """Return a fit whose q(theta) has been put on one point: sds of exp(-20) = 2e-9."""
    model = FactorAnalysis(2, "diagonal")
    vi = FactorizedVI(model, max_iter=3, tol=1e9, **arguments).fit(HOLES)
    space = vi.model_.global_space(torch.zeros(1, 4).double())
    theta = {"loadings": W, "mean": MEAN, "noise_variance": PSI}
    u = space.unconstrain({name: torch.as_tensor(value) for name, value in theta.items()})
    vi._raw_globals = torch.cat([u, torch.full_like(u, -20)]).numpy()
    return vi


def test_latents_with_known_globals_are_the_exact_conditional():
    """Source: Bishop (2006), eq. 2.116 on each row's observed cells; q(theta) adds 1e-9 or so."""
    vi = known_globals(family=FullNormal())
    exact = ppca_posterior_missing(HOLES, W, MEAN, PSI)
    posterior = vi.posterior(HOLES)
    covariance = posterior.scale @ posterior.scale.swapaxes(1, 2)
    np.testing.assert_allclose(posterior.mean, exact.mean, atol=1e-6)
    np.testing.assert_allclose(covariance, exact.cov, atol=1e-6)
    np.testing.assert_allclose(posterior.mean[3], 0, atol=1e-12)  # the prior
    np.testing.assert_allclose(covariance[3], np.eye(2), atol=1e-6)
    evidence = ppca_log_evidence(HOLES, W, MEAN, PSI)
    np.testing.assert_allclose(vi.score_samples(HOLES), evidence, atol=1e-6)


def test_filled_cells_with_known_globals_are_the_exact_conditional():
    """x_d | observed is normal, of mean W_d E[z] + m_d and variance W_d Cov(z) W_d' + psi_d."""
    vi = known_globals(family=FullNormal())
    filled, sd = vi.impute(HOLES, return_sd=True)
    exact = ppca_posterior_missing(HOLES, W, MEAN, PSI)
    missing = np.isnan(HOLES)
    mean = exact.mean @ W.T + MEAN
    variance = np.einsum("di,nij,dj->nd", W, exact.cov, W) + PSI
    np.testing.assert_allclose(filled, np.where(missing, mean, HOLES), atol=1e-6)
    np.testing.assert_allclose(sd, np.where(missing, np.sqrt(variance), 0), atol=1e-6)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_coordinate_ascent_reaches_the_optimum_that_gradients_reach(noise):
    """LBFGS knows the ELBO alone, not the updates: same optimum to its tolerance."""
    model, start = FactorAnalysis(1, noise), {"random_state": 0}
    ascent = FactorizedVI(model, solver=CoordinateAscent(), tol=1e-10, **start).fit(HOLES)
    assert (np.diff(ascent.elbo_curve_) > -1e-9).all()
    climb = FactorizedVI(model, solver=LBFGS(), tol=1e-10, **start).fit(HOLES)
    assert ascent.elbo_ == pytest.approx(climb.elbo_, abs=1e-5)


def test_closed_forms_agree_with_nodes():
    model = FactorAnalysis(1, "diagonal")
    vi = FactorizedVI(model, tol=1e-9).fit(HOLES)
    rows = vi._rows(HOLES)
    here = vi._fitted_model.at(rows)
    exact = here.problem.row_terms(here.raw, here.raw_globals)
    nodes = here.problem.with_noise(QuasiMonteCarlo(4096)).row_terms(here.raw, here.raw_globals)
    # Only the noise is drawn: a smooth function of 5 numbers under 4,096 points.
    torch.testing.assert_close(nodes, exact, rtol=0, atol=2e-3)


FITS = [
    (FactorizedVI, FactorAnalysis(1)),
    (FactorizedVI, FactorAnalysis(1, likelihood="poisson")),
    (AmortizedVI, FactorAnalysis(1)),
]


@pytest.mark.parametrize(("estimator", "model"), FITS)
def test_without_holes_nothing_changes_by_a_bit(estimator, model, monkeypatch):
    """The same fit by a library that never looks for holes."""
    X = np.random.default_rng(0).poisson(2.0, size=(20, 3)).astype(float)
    function = {"inference_function": Polynomial(1)} if estimator is AmortizedVI else {}
    here = estimator(model, random_state=0, tol=1e-6, **function).fit(X)
    monkeypatch.setattr(Cells, "of", classmethod(lambda cls, X: cls(X, None)))
    there = estimator(model, random_state=0, tol=1e-6, **function).fit(X)
    assert here.elbo_ == there.elbo_
    assert np.array_equal(here.transform(X), there.transform(X))
    assert np.array_equal(here.score_samples(X), there.score_samples(X))


@pytest.mark.parametrize("estimator", [FactorizedVI, AmortizedVI])
@pytest.mark.parametrize("model", [None, FactorAnalysis(1, "diagonal")], ids=["default", "fa"])
def test_both_estimators_take_holes(estimator, model):
    vi = estimator(model, random_state=0, tol=1e-6, max_iter=300).fit(HOLES)
    assert np.isfinite(vi.elbo_)
    assert np.isfinite(vi.transform(HOLES)).all() and np.isfinite(vi.score_samples(HOLES)).all()
    assert np.isfinite(vi.transform(COMPLETE)).all()  # rows without holes
    filled = vi.impute(pd.DataFrame(HOLES))
    assert np.isfinite(filled).all()
    assert np.array_equal(filled[~np.isnan(HOLES)], HOLES[~np.isnan(HOLES)])


def test_rows_are_read_alone():
    vi = AmortizedVI(FactorAnalysis(1), Polynomial(1), random_state=0).fit(HOLES)
    whole = vi.transform(HOLES)
    assert np.array_equal(vi.transform(HOLES[5:9]), whole[5:9])


def test_the_function_reads_zero_and_the_mask():
    """A line through all cells and masks: moving a missing cell's value cannot change anything."""
    vi = AmortizedVI(FactorAnalysis(1), Polynomial(1), random_state=0).fit(HOLES)
    assert len(vi.inference_function_.input_mean_) == 8
    np.testing.assert_allclose(vi.inference_function_.input_mean_[:4], np.nanmean(HOLES, 0))
    np.testing.assert_allclose(vi.inference_function_.input_mean_[4:], (~np.isnan(HOLES)).mean(0))
    inputs = torch.as_tensor(HOLES)
    features = vi.inference_function_.standardised(vi.inference_function_.with_mask(inputs))
    assert (features[:, :4][inputs.isnan()] == 0).all()


def test_holes_that_a_function_never_saw_are_solved_row_by_row():
    amortized = AmortizedVI(FactorAnalysis(1), MLP((8,)), random_state=0, tol=1e-6).fit(COMPLETE)
    row = COMPLETE[:2].copy()
    row[1, 2] = np.nan
    factorized = FactorizedVI(FactorAnalysis(1), init=amortized, tol=1e-6).fit(COMPLETE)
    factorized._raw_globals = amortized._raw_globals
    assert np.array_equal(amortized.transform(row)[0], amortized.transform(row[:1])[0])
    np.testing.assert_allclose(
        amortized.transform(row)[1], factorized.transform(row)[1], rtol=1e-12
    )
    some = COMPLETE.copy()
    some[:20, 0] = np.nan  # only the first column's holes are learned
    partly = AmortizedVI(FactorAnalysis(1), MLP((8,)), random_state=0, tol=1e-6).fit(some)
    unknown = COMPLETE[:1].copy()
    unknown[0, 1] = np.nan
    factorized._raw_globals = partly._raw_globals
    factorized.model_ = partly.model_
    solved = factorized.transform(unknown)
    np.testing.assert_allclose(partly.transform(unknown), solved, rtol=1e-12)


def test_weights_of_zero_leave_rows_with_holes_out():
    kept = np.arange(60) >= 20
    model = FactorAnalysis(1, loading_scale=1.0, mean_loc=0.0, mean_scale=5.0, noise_scale=0.1)
    left = FactorizedVI(model, tol=1e-9).fit(HOLES, sample_weight=kept.astype(float))
    right = FactorizedVI(model, tol=1e-9).fit(HOLES[kept])
    assert left.elbo_ == pytest.approx(right.elbo_, abs=1e-6)


def test_a_column_without_a_cell_is_refused():
    X = HOLES.copy()
    X[:, 2] = np.nan
    with pytest.raises(ValueError, match=r"1 columns without .* cell .first column 2.: leave"):
        FactorizedVI(FactorAnalysis(1)).fit(X)
    weights = np.ones(60)
    weights[~np.isnan(HOLES[:, 1])] = 0  # there, but of no weight
    with pytest.raises(ValueError, match=r"columns without a single observed cell .first column 1"):
        FactorizedVI(FactorAnalysis(1)).fit(HOLES, sample_weight=weights)


@pytest.mark.parametrize("estimator", [FactorizedVI, AmortizedVI])
def test_infinity_is_still_refused(estimator):
    X = HOLES.copy()
    X[0, 0] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        estimator(FactorAnalysis(1)).fit(X)


def test_models_that_marginalise_nothing_refuse_holes():
    advice = r"Input X contains NaN\. LinearModel takes no missing cells: leave these rows out"
    with pytest.raises(ValueError, match=advice) as caught:
        FactorizedVI(LinearModel()).fit([[1.0], [np.nan]])
    assert "HistGradientBoosting" not in str(caught.value)


# Exposure: the total of a row over what mean_loc expects of the cells that are there

COUNTS = np.array([[40.0, 80.0, 30.0], [2.0, 1.0, 3.0], [np.nan, 9.0, 1.0], [0.0, 0.0, 0.0]])
EXPECTED = np.array([1.0, 2.0, 3.0])  # by the prior's centre: 6 a row, 5 without the first cell
EXPOSURE = np.array([[150 / 6], [6 / 6], [10 / 5], [0.5 / 6]])
BIAS, LATENT = np.array([0.3, -0.2, 0.8]), np.array([[0.5], [-1.0], [0.0], [1.0]])
COUNT_MODELS = {
    "factor analysis": (
        FactorAnalysis(1, loading_scale=1.0, mean_loc=np.log(EXPECTED), mean_scale=1.0),
        {"loadings": torch.ones(3, 1), "mean": torch.as_tensor(BIAS)},
    ),
    "decoder": (  # the loc is added to the output
        BayesianDecoder(1, (), output_loc=np.log(EXPECTED)),
        {
            "weight_0": torch.ones(1, 3),
            "bias_0": torch.as_tensor(BIAS - np.log(EXPECTED)),
        },
    ),
}


def count_model(name, likelihood, exposure):
    model, theta = COUNT_MODELS[name]
    model = type(model)(**(model.get_params() | {"likelihood": likelihood, "exposure": exposure}))
    theta = {name: value.double() for name, value in theta.items()}
    return model, theta | {"dispersion": torch.tensor(0.4).double()}


def distribution_of_counts(likelihood, rate):
    """Of mean `rate`; negative binomial: of variance rate + 0.4 rate^2."""
    if likelihood == "poisson":
        return stats.poisson(rate)
    return stats.nbinom(1 / 0.4, 1 / (1 + 0.4 * rate))


@pytest.mark.parametrize("exposure", [None, "total", "unit"])
@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial"])
@pytest.mark.parametrize("name", COUNT_MODELS)
def test_rates_are_the_exposure_times_exp_eta(name, likelihood, exposure):
    """In densities, moments and replicated rows; not in `observation`, which has seen no row."""
    model, theta = count_model(name, likelihood, exposure)
    z, X = torch.as_tensor(LATENT), torch.as_tensor(COUNTS)
    rate = np.exp(BIAS + LATENT)
    alone = distribution_of_counts(likelihood, rate)
    truth = distribution_of_counts(likelihood, rate if exposure == "unit" else rate * EXPOSURE)
    density = np.nansum(truth.logpmf(COUNTS), axis=1)
    np.testing.assert_allclose(model.log_likelihood(theta, z, X), density, rtol=1e-6)
    mean, variance = model.cell_moments(theta, z, X)
    np.testing.assert_allclose(mean, truth.mean(), rtol=1e-6)
    np.testing.assert_allclose(variance, truth.var(), rtol=1e-6)
    np.testing.assert_allclose(model.observation(z, theta).mean, alone.mean(), rtol=1e-6)
    np.testing.assert_allclose(model.predicted_mean(theta, z), alone.mean(), rtol=1e-6)
    n = 4000
    with torch.random.fork_rng(devices=[]), defaults_of(X):
        torch.manual_seed(0)
        drawn = model.replicate(theta, z.repeat(n, 1), X.repeat(n, 1)).numpy().reshape(n, 4, 3)
        rows, Z = model.simulate(theta, n, 3)
    error = (drawn.mean(0) - truth.mean()) / (truth.std() / n**0.5)
    assert np.abs(error).max() < 4.5  # of 12 numbers
    rate = np.exp(BIAS + Z.numpy())
    left = (rows.numpy() - rate) / distribution_of_counts(likelihood, rate).std()
    assert np.abs(left.mean(0)).max() < 4.5 / n**0.5


@pytest.mark.parametrize("exposure", ["total", "unit"])
def test_scores_of_counts_with_everything_linear_integrated_out(exposure):
    """By Gauss-Hermite quadrature of z alone: given z, eta_d is normal under q(W_d, m_d).

    E log p(x_d | z) = x_d (a_d + log e) - e exp(a_d + v_d / 2) - log x_d!, with a_d = E[W_d] z +
    E[m_d], v_d = sd(W_d)^2 z^2 + sd(m_d)^2 and the row's exposure e.
    """
    rng = np.random.default_rng(0)
    X = rng.poisson(EXPECTED * np.exp(rng.normal(size=(30, 1)))).astype(float)
    scales = {"loading_scale": 1.0, "mean_loc": np.log(EXPECTED), "mean_scale": 1.0}
    model = FactorAnalysis(1, likelihood="poisson", exposure=exposure, **scales)
    vi = FactorizedVI(model, tol=1e-5, random_state=0).fit(X)
    q, z = vi.global_posterior_, vi.posterior(X)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    at = z.mean + z.sd * nodes  # (row, node)
    a = at[..., None] * q.mean["loadings"][:, 0] + q.mean["mean"]
    v = (at[..., None] * q.sd["loadings"][:, 0]) ** 2 + q.sd["mean"] ** 2
    e = np.maximum(X.sum(1), 0.5) / 6 if exposure == "total" else np.ones(30)
    fit = X[:, None] * (a + np.log(e)[:, None, None]) - gammaln(X + 1)[:, None]
    fit = (fit - e[:, None, None] * np.exp(a + v / 2)).sum(-1) @ (weights / weights.sum())
    divergence = 0.5 * (z.mean**2 + z.sd**2 - 1)[:, 0] - np.log(z.sd[:, 0])
    # The fit's own few nodes for z, refined to 1e-7 of the ELBO.
    np.testing.assert_allclose(vi.score_samples(X), fit - divergence, atol=1e-4)


@pytest.mark.parametrize("likelihood", ["poisson", "bernoulli", "negative_binomial"])
def test_predictive_moments_of_filled_cells_agree_with_draws(likelihood):
    """Against x drawn from q(theta), q(z) and the likelihood, 40,000 times."""
    X = with_holes(np.random.default_rng(0).poisson(0.7, size=(40, 3)).clip(0, 1), 0.2)
    vi = FactorizedVI(FactorAnalysis(1, likelihood=likelihood), tol=1e-6).fit(X)
    filled, sd = vi.impute(X, return_sd=True)
    row, column = np.argwhere(np.isnan(X))[0]
    n_draws = 40_000
    z = vi.posterior(X[[row]]).sample(n_draws, random_state=0)[:, 0]
    theta = vi.global_posterior_.sample(n_draws, random_state=1)
    eta = (theta["loadings"][:, column] * z).sum(1) + theta["mean"][:, column]
    eta += float(np.squeeze(vi.model_.log_exposure(torch.as_tensor(X[[row]]))))
    r = np.random.default_rng(2)
    draws = {
        "poisson": lambda: r.poisson(np.exp(eta)),
        "bernoulli": lambda: r.random(n_draws) < 1 / (1 + np.exp(-eta)),
        "negative_binomial": lambda: r.poisson(
            np.exp(eta) * r.gamma(1 / theta["dispersion"], theta["dispersion"])
        ),
    }[likelihood]()
    error = draws.std() / n_draws**0.5
    assert abs(filled[row, column] - draws.mean()) < 4.5 * error
    assert sd[row, column] == pytest.approx(draws.std(), rel=0.05)  # 256 nodes; heavy right tails
