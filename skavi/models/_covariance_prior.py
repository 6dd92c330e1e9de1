"""Covariance matrices by regressions of each column on those before it, and their prior.

Sigma^-1 = B' diag(e^-l) B, with B unit lower triangular: column j has the residual variance e^{l_j}
given the columns before it, and the slopes b_j = -B_{j,<j} on them (Pourahmadi 1999, "Joint
mean-covariance models with applications to longitudinal data", section 2.1). All numbers of l and b
are free, and quadratic forms in Sigma^-1 have closed-form expectations under a normal q.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
from scipy.special import gammaincinv, stdtrit
from torch import Tensor
from torch.distributions import Distribution, Gamma, biject_to, constraints
from torch.distributions.transforms import Transform
from torch.nn import functional as F

from skavi._numerics.aligned import aligned
from skavi.families import LOG_2PI

#: Draws for sds and quantiles, 2 % off with 1,024; fewer of large matrices, for time. Not measured.
_FEWEST_DRAWS, _MOST_DRAWS, _NUMBERS = 64, 1024, 4_000_000


def n_free(d: int) -> int:
    """Count the free numbers of a covariance matrix of d columns."""
    return d * (d + 1) // 2


@lru_cache(maxsize=64)
def _places(d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows and columns of the slopes, and 1 + each entry's place among them, or 0."""
    row, column = torch.tril_indices(d, d, -1)
    place = torch.zeros(d, d, dtype=torch.long)
    place[row, column] = torch.arange(1, len(row) + 1)
    return row, column, place.reshape(-1)


def split(u: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Return log residual variances, (..., d), and slopes as a strict lower triangle."""
    slopes = F.pad(u[..., d:], (1, 0)).index_select(-1, _places(d)[2].to(u.device))
    return u[..., :d], slopes.reshape(*u.shape[:-1], d, d)


def joined(log_variances: Tensor, slopes: Tensor) -> Tensor:
    """Return the free numbers, (..., d (d + 1) / 2), that `split` takes apart."""
    row, column, _ = _places(log_variances.shape[-1])
    return torch.cat([log_variances, slopes[..., row, column]], -1)


class _Covariance(constraints.Constraint):
    """Positive definite matrices whose free numbers are residual variances and slopes."""

    event_dim = 2

    def check(self, value):
        return constraints.positive_definite.check(value)


#: The support of `PriorOfCovariance`.
COVARIANCE = _Covariance()


class RegressionTransform(Transform):
    """From log residual variances and slopes, (..., d (d + 1) / 2), to covariance matrices."""

    domain = constraints.real_vector
    codomain = COVARIANCE
    bijective = True

    def __eq__(self, other):
        return isinstance(other, RegressionTransform)

    __hash__ = None  # type: ignore[assignment]

    def _call(self, u):
        d = self.forward_shape(u.shape)[-1]
        log_variances, slopes = split(u, d)
        eye = torch.eye(d).to(u)
        root = torch.linalg.solve_triangular(eye - slopes, eye.expand_as(slopes), upper=False)
        root = root * (0.5 * log_variances).exp().unsqueeze(-2)
        return root @ root.mT

    def _inverse(self, value):
        root = torch.linalg.cholesky(value)
        scale = root.diagonal(dim1=-2, dim2=-1)
        eye = torch.eye(value.shape[-1]).to(value)
        unit = torch.linalg.solve_triangular(root, eye.expand_as(root), upper=False)
        return joined(2 * scale.log(), -unit * scale.unsqueeze(-1))

    def log_abs_det_jacobian(self, x, y):
        """Of the lower triangle of y: the product of e^{l_j (d - j + 1)}."""
        d = y.shape[-1]
        return x[..., :d] @ torch.arange(d, 0, -1).to(x)

    def forward_shape(self, shape):
        d = (math.isqrt(8 * shape[-1] + 1) - 1) // 2
        return torch.Size([*shape[:-1], d, d])

    def inverse_shape(self, shape):
        return torch.Size([*shape[:-2], n_free(shape[-1])])


@biject_to.register(_Covariance)
def _regression(constraint):
    return RegressionTransform()


def covariance_draws(mean: Tensor, sd: Tensor) -> Tensor:
    """Return draws of matrices for free numbers u ~ N(mean, sd^2), the same each time."""
    size = max(_FEWEST_DRAWS, min(_MOST_DRAWS, _NUMBERS // mean.numel())) // 2
    noise = np.random.default_rng(0).standard_normal((size, *mean.shape))
    return RegressionTransform()(mean + sd * aligned(np.concatenate([noise, -noise])).to(mean))


def covariance_moments(mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and sds of covariance matrices for free numbers u ~ N(mean, sd^2).

    Means are exact: E Sigma follows from that of the columns before, to which column j adds
    E[b_j] E Sigma_< and E e^{l_j} + E[b_j' Sigma_< b_j]. Sds are taken from draws.
    """
    d = RegressionTransform().forward_shape(mean.shape)[-1]
    (log_variance, slopes), (log_sd, slope_sd) = split(mean, d), split(sd, d)
    residual = (log_variance + 0.5 * log_sd**2).exp()
    centre = residual[..., :1, None]
    for j in range(1, d):
        b, variance = slopes[..., j, :j, None], slope_sd[..., j, :j] ** 2
        cross = centre @ b
        own = (b * cross).sum((-2, -1)) + (variance * centre.diagonal(dim1=-2, dim2=-1)).sum(-1)
        last = torch.cat([cross.mT, (own + residual[..., j])[..., None, None]], -1)
        centre = torch.cat([torch.cat([centre, cross], -1), last], -2)
    away = covariance_draws(mean, sd) - centre
    return centre, away.square().mean(0).sqrt()


class PriorOfCovariance(Distribution):
    """Inverse Wishart distribution on matrices of d columns.

    The variance of column j is inverse gamma of `shape` and ``scale[j, j]``, as `PriorOfVariance`
    has it: 2 shape + d - 1 degrees of freedom, and the scale matrix 2 `scale`. Residual variances
    are inverse gamma of shapes ``shape + j / 2`` (j = 0, 1, ...) and those of `scale`, and the
    slopes given them are normal.

    Parameters
    ----------
    shape : float
    scale : Tensor of shape (d, d)
    batch_shape : tuple of int, default=()

    Examples
    --------
    >>> import torch
    >>> prior = PriorOfCovariance(3.0, torch.tensor([[4.0, 1.0], [1.0, 8.0]]))
    >>> prior.mean
    tensor([[2.0000, 0.5000],
            [0.5000, 4.0000]])
    """

    arg_constraints: dict = {}
    support = COVARIANCE

    def __init__(self, shape, scale, batch_shape=()):
        self.shape, self.scale, d = float(shape), scale, len(scale)
        self.shapes = shape + 0.5 * torch.arange(d).to(scale)
        super().__init__(torch.Size(batch_shape), torch.Size([d, d]), validate_args=False)

    @property
    def mean(self):
        return (self.scale / (self.shape - 1)).expand(*self.batch_shape, *self.event_shape)

    def sample(self, sample_shape=()):
        with torch.no_grad():
            diagonal, inverse = self._roots()
            shape = torch.Size(sample_shape) + self.batch_shape
            variances = 1 / Gamma(self.shapes, diagonal**2).sample(shape)
            noise = torch.randn(*shape, *self.event_shape, dtype=inverse.dtype).tril(-1) @ inverse
            slopes = noise * (0.5 * variances).sqrt().unsqueeze(-1) - diagonal[:, None] * inverse
            return RegressionTransform()(joined(variances.log(), slopes))

    def _roots(self):
        """Return the diagonal of the scale's Cholesky factor, and the factor's inverse."""
        root = torch.linalg.cholesky(self.scale)
        eye = torch.eye(len(root)).to(root)
        return root.diagonal(), torch.linalg.solve_triangular(root, eye, upper=False)

    def free_quartiles(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the quartiles of one matrix's free numbers.

        A residual variance is b over a gamma variable of shape a; a slope, normal given it, is a
        Student t variable of 2 a degrees of freedom.
        """
        diagonal, inverse = self._roots()
        centre = -diagonal[:, None] * inverse
        before = torch.cat([torch.zeros_like(inverse[:1]), (inverse**2).cumsum(0)[:-1]])
        sd = (0.5 * before * (diagonal**2 / self.shapes).unsqueeze(-1)).sqrt()
        shapes, found = self.shapes.cpu().numpy(), []
        for share in (0.25, 0.5, 0.75):
            gamma = torch.as_tensor(gammaincinv(shapes, 1 - share)).to(inverse)
            away = torch.as_tensor(stdtrit(2 * shapes, share)).to(inverse)
            slopes = centre + away.unsqueeze(-1) * sd
            found.append(joined((diagonal**2 / gamma).log(), slopes))
        return found[0], found[1], found[2]

    def log_prob(self, value):
        bijection = RegressionTransform()
        u = bijection.inv(value)
        density = self.expected_log_density(u, torch.zeros_like(u))
        return density - bijection.log_abs_det_jacobian(u, value)

    def expected_log_density(self, mean: Tensor, sd: Tensor) -> Tensor:
        """Return E log density of the free numbers u for u ~ N(mean, sd^2), shape (...,)."""
        return self.expectation(mean)(mean, sd)

    def expectation(self, like: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return `expected_log_density`: what depends on the prior alone is computed once."""
        d, scale = len(self.scale), self.scale.to(like)
        shape, least = self.shapes.to(like), 2 * torch.linalg.cholesky(scale).diagonal().log()
        order, eye = torch.arange(d).to(like), torch.eye(d).to(like)  # slopes of each column
        constant = 0.5 * (least + math.log(2) - LOG_2PI) @ order.flip(0)
        constant = constant + (shape * least - torch.lgamma(shape)).sum()
        return partial(_expected_log_density, constant, shape + 0.5 * order, scale, eye)


def _expected_log_density(constant, power, scale, eye, mean, sd):
    (log_variance, slopes), (log_sd, slope_sd) = (split(each, len(eye)) for each in (mean, sd))
    unit = eye - slopes
    squares = (unit @ scale * unit).sum(-1) + slope_sd**2 @ scale.diagonal()
    rate = squares * (0.5 * log_sd**2 - log_variance).exp()
    return constant - log_variance @ power - rate.sum(-1)
