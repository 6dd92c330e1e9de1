"""Factor analysis' change of the latents between sweeps: what it gains, and what that saves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer

from skavi import FactorizedVI
from skavi._data.missing_cells import Cells
from skavi.families import DiagonalFactors, DiagonalNormal, FullFactors, FullNormal
from skavi.models import FactorAnalysis
from skavi.models._factor_analysis_expansion import LatentFrame
from skavi.objective import bind

FAMILIES = [DiagonalNormal(), FullNormal()]


@pytest.fixture(params=[False, True], ids=["complete", "holes"])
def table(request):
    """Return 12 rows of 5 columns of unlike scales."""
    rng = np.random.default_rng(3)
    X = (rng.normal(size=(12, 2)) @ rng.normal(size=(2, 5)) + rng.normal(size=(12, 5))) * [
        *(1, 3, 0.3, 1, 5)
    ]
    if request.param:
        X[rng.random(X.shape) < 0.2] = np.nan
    return torch.tensor(X)


def frame_of(X, family):
    """Return a frame away from its optimum; rows weigh 0.5 to 2."""
    rng = torch.Generator().manual_seed(1)
    z, loadings = (torch.randn(n, 2, generator=rng, dtype=X.dtype) for n in (len(X), 5))
    weights = torch.linspace(0.5, 2, len(X), dtype=X.dtype)
    precision = torch.linspace(0.3, 3, 5, dtype=X.dtype).unsqueeze(-1)
    prior = torch.full((5, 1), 0.7, dtype=X.dtype)
    diagonal = isinstance(family, DiagonalNormal)
    spread = torch.rand(5, 2, generator=rng, dtype=X.dtype) * 0.1 + 0.02
    return LatentFrame(Cells.of(X), weights, precision, prior, diagonal, z, loadings, spread)


def elbo(frame, mean, X, family):
    """Return the ELBO of the frame's factors, with the covariances of z that are optimal."""
    width = frame.precision.log()[:, 0]  # of noise known to 1e-3 in log
    model = FactorAnalysis(
        2, "diagonal", loading_scale=0.7**-0.5, mean_loc=0.0, mean_scale=2.0, noise_scale=1.0
    )
    sd = torch.cat([torch.full_like(width, 1e-3), frame.spread.sqrt().reshape(-1), 0.1 + 0 * mean])
    centre = torch.cat([0.5e-6 - width, frame.loadings.reshape(-1), mean])
    covariance = frame._covariance()
    factors = FullFactors(frame.z, torch.linalg.cholesky(covariance))
    if frame.diagonal:
        factors = DiagonalFactors(frame.z, covariance.diagonal(dim1=-2, dim2=-1).sqrt())
    objective = bind(model, family, DiagonalNormal(), X)
    raw = objective.family.raw(factors)
    raw_globals = objective.global_family.raw(DiagonalFactors(centre, sd))
    terms = objective.row_terms(raw, raw_globals, X, None)
    return float(objective.summed(terms, raw_globals, frame.weights))


def shifted(frame, mean):
    """Return the frame after the best shift, and the mean, of a prior sd of 2 about 0."""
    known = torch.ones(len(frame.z), 1, dtype=mean.dtype)
    frame, slopes = frame.shifted(known, mean.unsqueeze(-1), torch.full((5, 1), 0.25).to(mean))
    return frame, slopes[:, 0]


def test_the_shift_along_covariates_is_the_best_one():
    """z_n - b g_n, slopes + W b: of -1/2 (sum_n r_n z_n^2 + sum_dj p_j B_dj^2) the highest."""
    generator = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    start = frame_of(normal(12, 5), DiagonalNormal())
    known = torch.cat([normal(12, 2), torch.ones(12, 1, dtype=torch.float64)], 1)
    slopes, precision = normal(5, 3), 0.1 + normal(5, 3) ** 2

    def value(b):
        z, moved = start.z - known @ b.mT, slopes + start.loadings @ b
        return -0.5 * ((start._row_weights * z**2).sum() + (precision * moved**2).sum())

    frame, there = start.shifted(known, slopes, precision)
    b = torch.linalg.lstsq(known, start.z - frame.z).solution.mT
    torch.testing.assert_close(there, slopes + start.loadings @ b)
    slope = torch.func.grad(value)(b)
    assert float(slope.abs().max()) < 1e-10
    assert float(value(b) - value(torch.zeros_like(b))) > 0.1


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_what_a_change_gains_is_what_the_elbo_gains(table, family):
    """F leaves out only what no change of the latents moves: differences agree to rounding."""
    frame, mean = frame_of(table, family), torch.linspace(-1, 1, 5, dtype=table.dtype)
    frame, mean = shifted(frame, mean)
    change = torch.tensor([[0.2, -0.3], [0.1, -0.15]], dtype=table.dtype)
    turned = frame._changed(change)
    gain = float(turned._value() - frame._value())
    before, after = (elbo(f, mean, table, family) for f in (frame, turned))
    assert gain == pytest.approx(after - before, abs=1e-10) and abs(gain) > 0.1


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_shift_is_the_best_one(table, family):
    """No shift of the latents by 1e-3, predictors unmoved, leads higher; sds of (W, m) are kept.

    A shift changes no covariance, so the ELBO is quadratic in b and its maximum unique.
    """
    start, mean = frame_of(table, family), torch.linspace(-1, 1, 5, dtype=table.dtype)
    frame, centre = shifted(start, mean)
    predictors = [f.z @ f.loadings.mT + m for f, m in ((start, mean), (frame, centre))]
    assert torch.allclose(*predictors, atol=1e-12)
    best = elbo(frame, centre, table, family)
    assert best > elbo(start, mean, table, family)
    for b in 1e-3 * torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]).to(table):
        moved = replace(frame, z=frame.z - b)
        assert elbo(moved, centre + frame.loadings @ b, table, family) < best


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_turns_climb_to_where_no_change_gains(table, family):
    """Every turn raises the ELBO; where they end, F's gradient in A is 0 (autograd).

    With all covariances of z, only W's sds resist a rotation, and its last part is slow.
    """
    frame, mean = frame_of(table, family), torch.zeros(5, dtype=table.dtype)
    values = [elbo(frame, mean, table, family)]
    slope = torch.func.grad(lambda T, frame: frame._changed(T)._value())
    zero = torch.zeros(2, 2).to(table)
    first = float(slope(zero, frame).abs().max())
    for turn in range(100):
        frame = frame.turned()
        if turn % 10 == 0:
            values.append(elbo(frame, mean, table, family))
    assert min(np.diff(values)) > -1e-11 and values[-1] > values[0] + 0.1
    assert float(slope(zero, frame).abs().max()) < (1e-5 if frame.diagonal else 1e-2) * first


def test_at_rest_turns_are_still_taken(table):
    """Else rounding alone would choose between two kinds of sweep, which mixing cannot combine."""
    frame = frame_of(table, DiagonalNormal())
    for _ in range(100):
        frame = frame.turned()
    for _ in range(20):
        turned = frame.turned()
        assert turned is not frame
        assert torch.allclose(turned.loadings, frame.loadings, rtol=0, atol=1e-12)
        frame = turned


def test_the_step_follows_the_gradient(table):
    """Solved by pairs, the step's right-hand side is F's gradient: by autograd, to rounding."""
    frame = frame_of(table, DiagonalNormal())
    gradient = torch.func.grad(lambda T: frame._changed(T)._value())(torch.zeros(2, 2).to(table))
    step = frame._newton_step()
    assert float((gradient * step).sum()) > 0
    # Along the diagonal no other entry is coupled: the step is the gradient over a curvature.
    assert (torch.sign(step.diagonal()) == torch.sign(gradient.diagonal())).all()


def test_components_that_are_zero_stay_where_they_are(table):
    frame = frame_of(table, DiagonalNormal())
    zero = torch.tensor([1.0, 0.0], dtype=table.dtype)
    frame = replace(frame, z=frame.z * zero, loadings=frame.loadings * zero)
    turned = frame.turned()
    assert bool(torch.isfinite(turned.z).all()) and turned._value() > frame._value()
    assert float(turned.loadings[:, 1].abs().max()) == float(turned.z[:, 1].abs().max()) == 0


#: Sweeps. 23 to 37 were seen; 108 where rounding decided which turns were taken.
FEW = 60


def standardised(X):
    """Return the table in standard deviations of its columns."""
    return (X - X.mean(0)) / X.std(0)


def test_breast_cancer_takes_tens_of_sweeps_and_the_better_optimum():
    """8,101 sweeps before, to an optimum at -12,872.54; two columns are nearly equal (D1).

    The value is that of 1,000 sweeps without mixing from the same start (CoordinateAscent(0)).
    """
    X = standardised(load_breast_cancer().data)
    vi = FactorizedVI(FactorAnalysis(3, noise="diagonal"), random_state=0).fit(X)
    assert vi.converged_ and vi.n_iter_ <= FEW
    assert vi.elbo_ == pytest.approx(-12405.699431, abs=1e-5)


def test_one_column_and_wide_tables_with_holes_take_tens_of_sweeps():
    """One column: the component dies out, W = 0. 30 x 300: 6,600 sweeps before (D1)."""
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(30, 5)) @ rng.normal(size=(5, 300)) + rng.normal(size=(30, 300))
    wide[rng.random(wide.shape) < 0.2] = np.nan
    for X, k in ((wide, 3), (rng.normal(size=(200, 1)), 1)):
        vi = FactorizedVI(FactorAnalysis(k, noise="diagonal"), random_state=0).fit(X)
        assert vi.converged_ and vi.n_iter_ <= FEW


@pytest.mark.parametrize("n_components", [1, 2])
def test_one_column_takes_tens_of_sweeps_whatever_its_noise_is_called(n_components):
    """Of one column "isotropic" and "diagonal" are one model: 357 sweeps before, and 12."""
    X = np.random.default_rng(0).normal(size=(200, 1))
    fits = [
        FactorizedVI(FactorAnalysis(n_components, noise)).fit(X)
        for noise in ("isotropic", "diagonal")
    ]
    one, other = (vi.elbo_ for vi in fits)
    assert one == pytest.approx(other, abs=1e-6)
    assert max(vi.n_iter_ for vi in fits) <= FEW


def test_tol_decides_how_many_sweeps_are_made():
    """A fit to 1e-4 nats a row makes fewer sweeps than one to 1e-14, and is as near as it says."""
    X = standardised(load_breast_cancer().data)
    fine, coarse = (
        FactorizedVI(FactorAnalysis(3, noise="diagonal"), tol=tol, random_state=0).fit(X)
        for tol in (1e-14, 1e-4)
    )
    assert fine.n_iter_ >= coarse.n_iter_ + 5
    assert fine.elbo_ - coarse.elbo_ < 1e-4 * len(X)
