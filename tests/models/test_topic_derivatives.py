"""Second derivatives of topic models' bounds beside automatic ones."""

import numpy as np
import torch

from skavi._data.column_roles import ColumnRoles, GivenColumn
from skavi.families import DiagonalNormal
from skavi.models import TopicModel
from skavi.objective import bind


def documents(n, n_words, k, seed=0):
    rng = np.random.default_rng(seed)
    topics, shares = rng.dirichlet(np.full(n_words, 0.3), k), rng.dirichlet(np.full(k, 0.3), n)
    return np.stack([rng.multinomial(30, p) for p in shares @ topics]).astype(float)


def bound(n=5, n_words=7, k=3, **given):
    """Return the ELBO's rows' terms, as a function, with raw parameters and weights."""
    X = torch.as_tensor(documents(n, n_words, k))
    X[0] = 0  # a document without words
    weights = torch.linspace(0.5, 2, n, dtype=torch.float64)
    model = TopicModel(k, proportion_scale=1.5).adapted(X, weights)
    objective = bind(model, DiagonalNormal(), DiagonalNormal(), X)
    generator = torch.Generator().manual_seed(0)
    raw, raw_globals = (
        0.7 * torch.randn(size, generator=generator, dtype=torch.float64)
        for size in ((n, 2 * k), (2 * k * n_words,))
    )
    return objective, raw, raw_globals, X, weights


def test_derivatives_are_automatic_ones():
    """In all parameters at once, far from any optimum; to rounding."""
    objective, raw, raw_globals, X, weights = bound()
    n, p = raw.shape

    def rows(flat):
        there = flat[: n * p].reshape(n, p), flat[n * p :]
        return weights @ objective.row_terms(*there, X, None)

    at = torch.cat([raw.reshape(-1), raw_globals])
    slope = torch.autograd.functional.jacobian(rows, at)
    hessian = torch.autograd.functional.hessian(rows, at)
    g, H, C, g_globals, H_globals = objective.row_derivatives(
        raw, raw_globals, X, None, weights, False
    )
    torch.testing.assert_close(torch.cat([g.reshape(-1), g_globals]), slope)
    torch.testing.assert_close(torch.block_diag(*H), hessian[: n * p, : n * p])
    torch.testing.assert_close(C.reshape(n * p, -1), hessian[: n * p, n * p :])
    torch.testing.assert_close(H_globals, hessian[n * p :, n * p :])


def test_held_topics_leave_the_rows_derivatives():
    objective, *given = bound()
    held = objective.row_derivatives(*given[:3], None, given[3], True)
    free = objective.row_derivatives(*given[:3], None, given[3], False)
    assert held[2:] == (None, None, None)
    torch.testing.assert_close(held[:2], free[:2])


def test_covariates_move_the_rows_priors_and_leave_coefficients_to_automatic_derivatives():
    """Coefficients are globals that meet the documents in another way than topics do."""
    X = np.column_stack([documents(5, 7, 3), np.linspace(-1, 2, 5)])
    X, weights = torch.as_tensor(X), torch.linspace(0.5, 2, 5, dtype=torch.float64)
    model = TopicModel(3, covariates=[7])
    model.columns_ = ColumnRoles({"covariates": (GivenColumn(7, "c"),)}, 8)
    model = model.adapted(X, weights)
    objective = bind(model, DiagonalNormal(), DiagonalNormal(), X)
    raw = 0.7 * torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    raw_globals = torch.linspace(-1, 1, 2 * objective.space.size, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(
        lambda raw: weights @ objective.row_terms(raw, raw_globals, X, None), raw
    )
    known = objective.row_derivatives(raw, raw_globals, X, None, weights, True)
    torch.testing.assert_close(known[0], slope)
    assert objective.row_derivatives(raw, raw_globals, X, None, weights, False) is None
