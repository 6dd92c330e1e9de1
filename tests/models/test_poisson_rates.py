import math

import numpy as np
import pytest
import torch

from skavi._data.missing_cells import Cells
from skavi.models._poisson_rates import Counts, Side, curvature, log_expected, log_expected_full


@pytest.fixture(autouse=True)
def in_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def side(n, k, seed, largest=0.5):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(n, k, generator=generator)
    return Side(mean, largest * torch.rand(n, k, generator=generator) + 1e-3)


def by_quadrature(m, s, u, t):
    """E exp(z w), the integral over w by 200 Gauss-Hermite nodes, that over z known."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    w = u + t * nodes
    return float(weights @ np.exp(m * w + 0.5 * (s * w) ** 2) / weights.sum())


@pytest.mark.parametrize(
    ("m", "s", "u", "t"),
    [(0.3, 0.4, -1.2, 0.5), (-2.0, 0.1, 0.7, 0.02), (1.0, 1.0, 0.5, 0.6), (0.5, 0.0, 2.0, 0.3)],
)
def test_expectation_is_that_of_quadrature(m, s, u, t):
    own, other = (
        Side(torch.tensor([[mean]]), torch.tensor([[sd**2]])) for mean, sd in ((m, s), (u, t))
    )
    found = math.exp(float(log_expected(own, other)))
    assert found == pytest.approx(by_quadrature(m, s, u, t), rel=1e-10)


def test_components_multiply_and_sides_are_alike():
    own, other = side(3, 2, 0), side(4, 2, 1)
    apart = [
        log_expected(*(Side(one.mean[:, k : k + 1], one.variance[:, k : k + 1]) for one in pair))
        for k, pair in enumerate([(own, other)] * 2)
    ]
    torch.testing.assert_close(log_expected(own, other), apart[0] + apart[1])
    torch.testing.assert_close(log_expected(own, other), log_expected(other, own).mT)


@pytest.mark.parametrize("product", [1.0, 1.3])
def test_expectation_is_infinite_from_one_on(product):
    own = Side(torch.zeros(1, 2), torch.tensor([[0.1, 2.0], [2.0, 2.0]])[:1])
    other = Side(torch.zeros(2, 2), torch.tensor([[0.1, product / 2], [0.1, 0.4]]))
    found = log_expected(own, other)
    assert torch.isinf(found[0, 0])
    assert torch.isfinite(found[0, 1])
    both = Side(torch.zeros(1, 2), torch.full((1, 2), 2.0))  # two negative factors: not a product
    assert torch.isinf(log_expected(both, both))


def test_full_factors_that_are_independent_are_the_plain_ones():
    own, other = side(3, 2, 2), side(4, 2, 3)
    full = log_expected_full(
        own.mean,
        torch.diag_embed(own.variance),
        other.mean,
        torch.diag_embed(other.variance.sqrt()),
    )
    torch.testing.assert_close(full, log_expected(own, other))


def test_full_expectation_is_that_of_quadrature():
    generator = torch.Generator().manual_seed(5)
    lower, root = (0.4 * torch.randn(2, 2, generator=generator).tril() for _ in range(2))
    m, u = torch.tensor([[0.4, -0.6]]), torch.tensor([[1.1, 0.3]])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    e = torch.tensor(np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2))
    weight = torch.tensor(np.outer(weights, weights).reshape(-1) / weights.sum() ** 2)
    w = u + e @ root.mT
    inner = w @ m[0] + 0.5 * ((w @ lower) ** 2).sum(-1)
    found = log_expected_full(m, (lower @ lower.mT)[None], u, root[None])
    assert float(found) == pytest.approx(math.log(float(weight @ inner.exp())), abs=1e-10)


def test_full_expectation_is_infinite_where_an_eigenvalue_is_one():
    covariance = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])  # eigenvalues 0.1 and 1.9
    zero, root = torch.zeros(1, 2), 0.75 * torch.eye(2)[None]
    assert torch.isinf(log_expected_full(zero, covariance, zero, root))
    assert torch.isfinite(log_expected_full(zero, covariance, zero, 0.9 * root))


@pytest.mark.parametrize("n_known", [0, 2])
def test_curvature_is_that_of_autograd(n_known):
    k, n = 2, 3
    own, other = side(n, k + n_known, 6), side(5, k, 7)
    known = torch.stack([torch.linspace(-1.0, 2.0, 5), torch.ones(5)], -1)[:, :n_known]

    def log_rates(there):
        fixed = there.mean[:, k:] @ known.mT + 0.5 * there.variance[:, k:] @ (known**2).mT
        return log_expected(there.first(k), other) + fixed

    def total(raw):
        return log_rates(own.moved(raw)).exp().sum(-1)

    at = torch.zeros(n, 2 * (k + n_known))
    slope = torch.autograd.functional.jacobian(lambda raw: total(raw).sum(), at)
    bent = torch.autograd.functional.hessian(lambda raw: total(raw).sum(), at)
    gradient, hessian = curvature(log_rates(own).exp(), own, other, known if n_known else None)
    torch.testing.assert_close(gradient, slope)
    torch.testing.assert_close(hessian, bent[range(n), :, range(n)])


def test_missing_cells_have_no_rate():
    rows, columns = side(2, 1, 8), side(3, 2, 9)
    X = torch.tensor([[1.0, math.nan, 2.0], [0.0, 1.0, math.nan]])
    counts = Counts(Cells.of(X), torch.tensor([[0.0], [1.0]]), torch.ones(2))
    rates = counts.rates(rows, columns)
    assert (rates == 0).tolist() == X.isnan().tolist()
    offset = columns.mean[:, 1] + 0.5 * columns.variance[:, 1]
    expected = log_expected(rows, columns.first(1))[1, 0] + offset[0] + 1.0
    torch.testing.assert_close(rates[1, 0].log(), expected)
