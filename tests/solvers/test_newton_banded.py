"""Newton's banded system of Markov models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal, Poisson

from skavi import AmortizedVI, FactorizedVI
from skavi._curvature import band_derivatives, dense_derivatives
from skavi.families import Chain, DiagonalNormal
from skavi.inference_functions import Polynomial
from skavi.models import LocalLevel, MarkovModel
from skavi.noise import GaussHermite
from skavi.solvers import LBFGS, Newton
from skavi.solvers._newton_banded import BandedSystem
from skavi.solvers._newton_dense import DenseSystem

pytestmark = pytest.mark.filterwarnings("ignore::skavi.models.CouplingBiasWarning")


class Counts(MarkovModel):
    """A Poisson rate that wanders, around a latent level."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {"level": Normal(0.0, 2.0)}

    def initial_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def transition(self, z_previous, theta):
        return Normal(0.9 * z_previous, 0.3)

    def likelihood(self, z, theta):
        return Poisson((theta["level"] + z).exp())


def _counts(n):
    rng, z = np.random.default_rng(0), np.zeros(n)
    for i in range(1, n):
        z[i] = 0.9 * z[i - 1] + 0.3 * rng.normal()
    return rng.poisson(np.exp(0.5 + z)).astype(float)[:, None]


@pytest.mark.parametrize("n_rows", [2, 3, 7])
def test_the_band_holds_the_dense_hessian(n_rows):
    """One Newton step, by three colours and a band, is the step of the whole dense matrix."""
    X = _counts(n_rows)
    vi = FactorizedVI(
        Counts(), family=DiagonalNormal(), noise=GaussHermite(5), max_iter=1, tol=1e9
    ).fit(X)
    rows = vi._rows(X)
    problem = replace(vi._fitted_model.frozen_problem(rows), frozen_globals=False)
    raw = torch.tensor(np.random.default_rng(1).normal(0, 0.1, (n_rows, 2)))
    globals_ = vi._fitted_model.raw_globals_like(rows.weights)
    banded, dense = (
        BandedSystem(problem).step(raw, globals_),
        DenseSystem(problem).step(raw, globals_),
    )
    torch.testing.assert_close(banded.unknowns, dense.unknowns, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(banded.raw_globals, dense.raw_globals, rtol=1e-7, atol=1e-9)
    assert banded.decrement == pytest.approx(dense.decrement, rel=1e-8)
    assert banded.gradient_norm == pytest.approx(dense.gradient_norm, rel=1e-12)


@pytest.mark.parametrize("n_rows", [2, 3, 7])
def test_the_band_of_linked_factors_is_the_dense_hessian(n_rows):
    """A row's link reads the row before alone, so that the band has no more blocks for it."""
    X = _counts(n_rows)
    vi = FactorizedVI(Counts(), noise=GaussHermite(5), max_iter=1, tol=1e9).fit(X)
    rows = vi._rows(X)
    problem = replace(vi._fitted_model.frozen_problem(rows), frozen_globals=False)
    raw = torch.tensor(np.random.default_rng(1).normal(0, 0.5, (n_rows, Chain().n_parameters(1))))
    globals_ = vi._fitted_model.raw_globals_like(rows.weights)
    d = band_derivatives(problem, raw, globals_)
    gradient, hessian, _, _ = dense_derivatives(problem, raw, globals_)
    size, upper = raw.numel(), len(d.H) - 1
    dense = torch.zeros(size, size, dtype=torch.float64)
    for distance in range(min(upper, size - 1) + 1):
        dense += torch.diag(d.H[upper - distance, distance:], distance)
    torch.testing.assert_close(dense, hessian[:size, :size].triu(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(d.C, hessian[:size, size:], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(d.g, gradient[:size], rtol=1e-9, atol=1e-9)


def test_newton_and_lbfgs_agree_on_a_chain_of_counts():
    """Two solvers, one optimum: 1e-6 nats a row, what L-BFGS leaves; Newton takes fewer steps."""
    X, noise = _counts(400), GaussHermite(3)
    newton = FactorizedVI(Counts(), noise=noise).fit(X)
    lbfgs = FactorizedVI(Counts(), noise=noise, solver=LBFGS()).fit(X)
    assert isinstance(newton.solver_, Newton)
    assert newton.converged_
    assert newton.n_iter_ < lbfgs.n_iter_
    assert newton.elbo_ == pytest.approx(lbfgs.elbo_, abs=400 * 1e-6)
    assert newton.elbo_ >= lbfgs.elbo_ - 1e-6


def test_newton_and_coordinate_ascent_agree_on_a_local_level():
    """Another solver with closed-form updates: 1e-7 nats a row."""
    y = np.cumsum(np.random.default_rng(0).normal(size=300))[:, None]
    newton = FactorizedVI(LocalLevel(), solver=Newton()).fit(y)
    ascent = FactorizedVI(LocalLevel()).fit(y)
    assert newton.elbo_ == pytest.approx(ascent.elbo_, abs=300 * 1e-7)


@pytest.mark.filterwarnings("ignore:No function of a window")
def test_newton_refuses_inference_functions_of_chains():
    vi = AmortizedVI(Counts(), Polynomial(1), solver=Newton(), noise=GaussHermite(3))
    with pytest.raises(ValueError, match=r"Counts couples its rows: use solver=LBFGS"):
        vi.fit(_counts(20))
