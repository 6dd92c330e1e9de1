import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from skavi._data.missing_cells import Cells
from skavi.models._count_start import suggested_log_rates

LEAST = 0.05  # of phi: what columns of Poisson counts without latents have


def table(n=400, seed=0):
    """Counts of two columns, log-linear in one number, with an offset: no latents."""
    rng = np.random.default_rng(seed)
    c, offset = rng.normal(size=n), rng.uniform(-0.5, 0.5, size=(n, 1))
    eta = np.outer(c, [0.6, -0.3]) + np.array([1.0, 2.0]) + offset
    known = torch.tensor(np.column_stack([c, np.ones(n)]))
    return torch.tensor(rng.poisson(np.exp(eta)) * 1.0), known, torch.tensor(offset)


def suggested(X, known, shift, weights=None, precision=1e-8):
    weights = torch.ones(len(X), dtype=X.dtype) if weights is None else weights
    loc = X.new_zeros(X.shape[1], known.shape[1])
    loc[:, -1] = 1.5
    return suggested_log_rates(
        Cells.of(X), weights, known, shift, loc, torch.full_like(loc, precision)
    )


def test_coefficients_are_those_of_quasi_likelihood():
    """The score sum (x - mu) c / (1 + phi mu) is that of a negative binomial count.

    Its log likelihood is x log(mu / (1 + phi mu)) - log(1 + phi mu) / phi, here maximised by scipy;
    phi is at its least, since the counts are Poisson.
    """
    X, known, shift = table()
    _, coefficients = suggested(X, known, shift)

    def loss(beta, d):
        mu = np.exp(known.numpy() @ beta + shift[:, 0].numpy())
        x = X[:, d].numpy()
        return -(x * np.log(mu / (1 + LEAST * mu)) - np.log1p(LEAST * mu) / LEAST).sum()

    for d in range(2):
        best = minimize(loss, [0.0, 1.5], args=(d,), tol=1e-10)
        # Four steps from the prior's centre: 1e-3 of a slope of 0.6, whose standard error is 0.03.
        np.testing.assert_allclose(coefficients[d].numpy(), best.x, atol=2e-3)


def test_a_cell_suggests_the_mode_of_its_log_rate():
    """At log mu + e the slope of x e - mu exp(e) - e^2 / (2 s2) is 0, with s2 = log(1 + phi)."""
    X, known, shift = table()
    cells, coefficients = suggested(X, known, shift)
    e = cells.values - coefficients[:, -1]
    rates = (known @ coefficients.mT + shift + e).exp()
    torch.testing.assert_close(X - rates, e / math.log1p(LEAST), atol=1e-8, rtol=0)


def test_spread_columns_trust_their_cells_more():
    """With phi at its most, 20, a count of 50 suggests its own log but for 0.02 e / log 21."""
    rng = np.random.default_rng(0)
    X = torch.tensor(np.where(rng.uniform(size=(300, 1)) < 0.01, 50.0, 0.0))
    cells, _ = suggested(X, torch.ones(300, 1, dtype=X.dtype), X.new_zeros(1, 1))
    assert float(cells.values.max()) == pytest.approx(math.log(50), abs=0.05)
    assert float(cells.values.min()) < -1.0  # nothing was seen there, but not log(0.5) for all


def test_rows_of_weight_two_are_rows_twice_and_missing_cells_count_for_nothing():
    X, known, shift = table(60)
    weights = torch.ones(60, dtype=X.dtype)
    weights[:20] = 2.0
    twice = [torch.cat([each[:20], each]) for each in (X, known, shift)]
    torch.testing.assert_close(suggested(X, known, shift, weights)[1], suggested(*twice)[1])
    holes = X.clone()
    holes[40:, 1] = math.nan
    cells, coefficients = suggested(holes, known, shift)
    alone, own = suggested(X[:40, 1:], known[:40], shift[:40])
    torch.testing.assert_close(coefficients[1:], own)
    torch.testing.assert_close(cells.values[:40, 1:], alone.values)
    assert cells.observed is not None
