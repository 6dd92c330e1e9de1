"""Second derivatives of cells whose predictors are taken to be normal, and the steps they give."""

import numpy as np
import pytest
import torch

from skavi import FactorizedVI
from skavi._data.missing_cells import Cells
from skavi._fit.problem import Problem
from skavi.models import FactorAnalysis
from skavi.models._likelihoods import LIKELIHOODS
from skavi.models._linear_cells import LinearCells
from skavi.models._noise_factors import NoiseFactors
from skavi.models._poisson_rates import Side

N, D, K = 3, 2, 2
BENT = ["bernoulli", "negative_binomial", "student_t"]


def numbers(likelihood):
    """Cells of three rows, one missing, and raw numbers: means, then log sds, of every part."""
    rng, cell = np.random.default_rng(0), LIKELIHOODS[likelihood]
    observed = torch.ones(N, D, dtype=torch.bool)
    observed[1, 0] = False
    x = torch.as_tensor(rng.integers(0, 2, (N, D)) * 1.0)
    known, offset, weights = (torch.as_tensor(rng.normal(size=s)) for s in ((N, 1), (N, 1), N))
    known = torch.cat([known, torch.ones_like(known)], -1)
    cells = LinearCells(cell, Cells(x, observed), known, offset, weights.abs())
    sizes = (N, K), (D, K + 2), (D, len(cell.own_globals))
    raw = [torch.as_tensor(rng.normal(-0.5, 0.5, (n, 2 * size))) for n, size in sizes]
    return cells, raw


def parts(cells, rows, columns, own):
    """Read raw numbers as factors of the rows, of the columns, and of their noise."""
    sides = [Side(mean, (2 * log).exp()) for mean, log in (rows.chunk(2, -1), columns.chunk(2, -1))]
    mean, log = own.chunk(2, -1)
    return *sides, NoiseFactors(mean, log.exp(), cells.likelihood.n_noise_nodes)


def expected(cells, *raw):
    """Return the weighted sum of F(M, V): E eta = u'm + known, Var eta as the sum of products.

    For independent z and w, Var zw = s^2 u^2 + t^2 m^2 + s^2 t^2.
    """
    rows, columns, own = parts(cells, *raw)
    u, t2 = columns.mean[:, :K], columns.variance[:, :K]
    mean = rows.mean @ u.mT + cells.known @ columns.mean[:, K:].mT + cells.offset
    variance = rows.variance @ (u**2).mT + rows.mean**2 @ t2.mT + rows.variance @ t2.mT
    variance = variance + cells.known**2 @ columns.variance[:, K:].mT
    found = cells.likelihood.expected_rows_over_noise(cells.cells, mean, variance, own)
    return cells.weights @ found


@pytest.mark.parametrize("likelihood", BENT)
def test_derivatives_are_those_of_normal_predictors(likelihood):
    """All of the arrow, against the dense Hessian of automatic differentiation."""
    cells, raw = numbers(likelihood)
    found = cells.derivatives(*parts(cells, *raw), None, None)
    at = torch.cat([each.flatten() for each in raw])
    sizes = [each.numel() for each in raw]

    def value(flat):
        split = flat.split(sizes)
        return expected(cells, *(p.reshape(each.shape) for p, each in zip(split, raw, strict=True)))

    slope = torch.autograd.functional.jacobian(value, at)
    hessian = torch.autograd.functional.hessian(value, at)
    of_rows = torch.arange(sizes[0]).reshape(N, -1)
    of_columns = sizes[0] + torch.arange(sizes[1]).reshape(D, -1)
    of_columns = torch.cat([of_columns, sum(sizes[:2]) + torch.arange(sizes[2]).reshape(D, -1)], 1)
    weights = cells.weights[:, None]
    each = weights[..., None]
    wanted = [
        slope[of_rows],
        torch.stack([hessian[i][:, i] for i in of_rows]),
        hessian[of_rows][..., of_columns],
        slope[of_columns],
        torch.stack([hessian[i][:, i] for i in of_columns]),
    ]
    slopes, block, border, *rest = found  # those of rows are not weighed yet
    weighed = [weights * slopes, each * block, each[..., None] * border, *rest]
    for got, want in zip(weighed, wanted, strict=True):
        torch.testing.assert_close(got, want)
    alone = cells.derivatives_of_rows(*parts(cells, *raw), None, None)
    torch.testing.assert_close(list(alone), [slopes, block])


def answers(likelihood, n_rows):
    rng = np.random.default_rng(0)
    eta = rng.normal(size=(n_rows, 2)) @ rng.normal(size=(2, 12)) + rng.normal(size=12)
    if likelihood == "bernoulli":
        return (rng.random(eta.shape) < 1 / (1 + np.exp(-eta))) * 1.0
    return eta + 0.5 * rng.standard_t(4, size=eta.shape)


@pytest.mark.parametrize("likelihood", ["bernoulli", "student_t"])
def test_fits_end_where_the_models_own_second_derivatives_lead(likelihood, monkeypatch):
    """Slopes are exact: both ends are within tol, 1e-8 nats a row, of one optimum."""
    X, model = answers(likelihood, 200), FactorAnalysis(2, likelihood=likelihood)
    quick = FactorizedVI(model, random_state=0).fit(X)
    monkeypatch.setattr(Problem, "for_steps", lambda self: self)
    own = FactorizedVI(model, random_state=0).fit(X)
    assert quick.converged_ and own.converged_
    assert quick.elbo_ == pytest.approx(own.elbo_, abs=2 * len(X) * 1e-8)
    assert quick.elbo_curve_[1] != own.elbo_curve_[1]
