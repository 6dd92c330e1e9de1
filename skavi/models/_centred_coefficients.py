"""Coefficients that sum to zero over topics, since shares depend on differences alone.

A topic's share of a document is one of softmax(z), which stays the same where the same number is
added to every logit. What covariates add to all topics alike is then known from the prior only, and
would hide behind the prior's width what they do to a topic. So it is left out: the coefficients of
a covariate are an orthonormal basis times free numbers, one fewer than topics.
"""

from functools import lru_cache

import torch
from scipy.linalg import helmert
from torch import Tensor
from torch.distributions import Distribution, Independent, TransformedDistribution, biject_to
from torch.distributions import constraints as torch_constraints
from torch.distributions.transforms import Transform

from skavi._numerics.aligned import aligned
from skavi.distributions import innermost


@lru_cache(maxsize=64)
def _basis(k: int) -> Tensor:
    return aligned(helmert(k).T)


def basis(k: int, like: Tensor) -> Tensor:
    """Return orthonormal columns (k, k - 1), each with a sum of zero."""
    return _basis(k).to(like)


class _Centred(torch_constraints.Constraint):
    """Matrices with columns that sum to zero."""

    event_dim = 2

    def check(self, value):
        size = value.abs().amax((-2, -1)).clamp_min(1.0)
        return (value.sum(-2).abs() <= 1e-5 * size.unsqueeze(-1)).all(-1)


centred = _Centred()


class CentringTransform(Transform):
    """Map free numbers (k - 1, p) to a matrix (k, p) with columns that sum to zero: a rotation."""

    domain = torch_constraints.independent(torch_constraints.real, 2)
    codomain = centred
    bijective = True

    def _call(self, x):
        return basis(x.shape[-2] + 1, x) @ x

    def _inverse(self, y):
        return basis(y.shape[-2], y).mT @ y

    def log_abs_det_jacobian(self, x, y):
        return x.new_zeros(x.shape[:-2])

    def forward_shape(self, shape):
        return torch.Size([*shape[:-2], shape[-2] + 1, shape[-1]])

    def inverse_shape(self, shape):
        return torch.Size([*shape[:-2], shape[-2] - 1, shape[-1]])


@biject_to.register(_Centred)
def _(constraint):
    return CentringTransform()


class CentredCoefficients(TransformedDistribution):
    """The prior of a matrix with columns that sum to zero, by that of its free numbers.

    Parameters
    ----------
    free : Distribution of shape (k - 1, p)
        Normal about 0 with an sd a column, so that all topics have the same prior, or flat.
    """

    def __init__(self, free: Distribution):
        self.free = free
        super().__init__(Independent(free, 2), [CentringTransform()], validate_args=False)


def free_prior(prior: Distribution) -> Distribution:
    """Return the prior of each of a global's numbers, of the free ones where they are centred."""
    base = innermost(prior)
    return base.free if isinstance(base, CentredCoefficients) else base


def centred_moments(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and sds (k, p) for means (k - 1, p) of free numbers, and covariances.

    The latter are those of a column's numbers, (p, k - 1, k - 1).
    """
    directions = basis(len(mean) + 1, mean)
    spread = torch.einsum("kj,pjl,kl->kp", directions, covariance, directions)
    return directions @ mean, spread.clamp_min(0).sqrt()
