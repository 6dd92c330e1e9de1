"""Missing cells: marginalised exactly, for every model of cells, and filled by `impute`."""

import numpy as np
import pandas as pd
import pytest
import torch

from closed_forms import ppca_log_evidence, ppca_posterior_missing
from skavi import AmortizedVI, FactorizedVI
from skavi._data.cells import Cells
from skavi.families import FullNormal
from skavi.inference_functions import MLP, Polynomial
from skavi.models import FactorAnalysis, LinearModel
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
    with pytest.raises(ValueError, match="Input X contains NaN"):
        FactorizedVI(LinearModel()).fit([[1.0], [np.nan]])


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
