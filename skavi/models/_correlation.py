"""Correlation matrices: their prior, and the map from numbers without constraint."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, LKJCholesky, Transform, biject_to, constraints
from torch.nn import functional as F

from skavi._numerics.positive_definite import root_or_nan
from skavi._numerics.quadrature import hermite_nodes

#: Gauss-Hermite nodes: E log(1 - tanh(u)^2) to 1e-9 at an sd of 1.
_N_NODES = 40


def expected_log_squares(mean: Tensor, sd: Tensor) -> Tensor:
    """E log(1 - tanh(u)^2) of each of some normal numbers: they add up to E log det C."""
    nodes, weights = hermite_nodes(_N_NODES, mean)
    return log_squares(mean + sd * nodes.unsqueeze(-1)).mT @ weights


def log_squares(u: Tensor) -> Tensor:
    """Return log(1 - tanh(u)^2)."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


class _CorrelationMatrix(constraints.Constraint):
    """Positive definite with ones on the diagonal."""

    event_dim = 2

    def check(self, value):
        ones = (value.diagonal(dim1=-2, dim2=-1) - 1).abs().amax(-1) < 1e-6
        return ones & (torch.linalg.eigvalsh(value) > 0).all(-1)


correlation_matrix = _CorrelationMatrix()


class CorrelationTransform(Transform):
    """Map partial correlations tanh(u), row by row, to a correlation matrix.

    Its Jacobian is that of the matrix's Cholesky factor, as is the density of `LKJ`.
    """

    domain = constraints.real_vector
    codomain = correlation_matrix
    bijective = True

    def cholesky(self, u: Tensor) -> Tensor:
        """Return the lower Cholesky factor of the matrix, shape (..., k, k)."""
        rows, partial, k = [], u.tanh(), _order(u.shape[-1])
        for i in range(k):
            left, entries = torch.ones_like(u[..., 0]), []
            for j in range(i):
                y = partial[..., i * (i - 1) // 2 + j]
                entries.append(y * left)
                left = left * (1 - y**2).sqrt()
            zeros = [torch.zeros_like(left)] * (k - 1 - i)
            rows.append(torch.stack([*entries, left, *zeros], -1))
        return torch.stack(rows, -2)

    def _call(self, x):
        lower = self.cholesky(x)
        return lower @ lower.mT

    def _inverse(self, y):
        lower, found = torch.linalg.cholesky(y), []
        for i in range(1, y.shape[-1]):
            left = torch.ones_like(lower[..., 0, 0])
            for j in range(i):
                partial = lower[..., i, j] / left.sqrt()
                found.append(partial.clamp(-1 + 1e-7, 1 - 1e-7).atanh())
                left = left - lower[..., i, j] ** 2
        return torch.stack(found, -1)

    def log_abs_det_jacobian(self, x, y):
        squares = log_squares(x)
        k, total = _order(x.shape[-1]), torch.zeros_like(x[..., 0])
        for i in range(1, k):
            of_row = squares[..., i * (i - 1) // 2 : i * (i + 1) // 2]
            after = torch.arange(i - 1, -1, -1).to(x)
            total = total + (of_row * (1 + 0.5 * after)).sum(-1)
        return total

    def forward_shape(self, shape):
        k = _order(shape[-1])
        return torch.Size([*shape[:-1], k, k])

    def inverse_shape(self, shape):
        return torch.Size([*shape[:-2], shape[-1] * (shape[-1] - 1) // 2])


@biject_to.register(_CorrelationMatrix)
def _(constraint):
    return CorrelationTransform()


def _order(n_numbers: int) -> int:
    """Return the order of a matrix with so many numbers below its diagonal."""
    return int((1 + math.isqrt(1 + 8 * n_numbers)) // 2)


class LKJ(Distribution):
    """The prior of a correlation matrix with density proportional to det(C)^(concentration - 1).

    Source: Lewandowski, Kurowicka & Joe (2009). The density is that of the Cholesky factor.
    """

    arg_constraints: dict = {}
    support = correlation_matrix

    def __init__(self, order: int, concentration: float):
        self._of_cholesky = LKJCholesky(order, concentration, validate_args=False)
        self._power = 2.0 * (concentration - 1)
        at_identity = self._of_cholesky.log_prob(torch.eye(order, dtype=torch.float64))
        self._at_identity = float(at_identity)
        super().__init__(event_shape=torch.Size([order, order]), validate_args=False)

    def log_prob(self, value):
        return self._of_cholesky.log_prob(root_or_nan(value))

    def expected_log_prob(self, mean: Tensor, sd: Tensor) -> Tensor:
        """E log density of the numbers of `CorrelationTransform` for normal ones, a scalar.

        It is a sum of log(1 - tanh(u)^2) with known factors: quadrature in one dimension each.
        """
        k = self.event_shape[0]
        powers = [
            0.5 * (self._power + k - i - 1) + 1 + 0.5 * (i - 1 - j)
            for i in range(1, k)
            for j in range(i)
        ]
        return self._at_identity + mean.new_tensor(powers) @ expected_log_squares(mean, sd)

    def sample(self, sample_shape=()):
        lower = self._of_cholesky.sample(torch.Size(sample_shape))
        return lower @ lower.mT
