"""Variational families: the possible shapes of a factor q(z_n), or of q(theta).

A family converts unconstrained numbers to a normal factor and back. All families have the same
methods, so the ELBO and the solvers do not depend on the family.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from skavi._component import Component

#: log(2 pi), the constant of a normal log density (twice, in nats).
LOG_2PI = math.log(2 * math.pi)
#: Natural length of a step of a point, on the unconstrained scale.
_POINT_STEP = 0.1


class Apart(ABC):
    """Factors of rows that know nothing of one another: one that does overrides this."""

    @abstractmethod
    def draw(self, noise: Tensor) -> Tensor:
        """Map standard normals to draws of each row."""

    @abstractmethod
    def log_prob(self, noise: Tensor) -> Tensor:
        """Log density of ``draw(noise)``, in nats."""

    def joint_draw(self, noise: Tensor) -> Tensor:
        """Map standard normals (..., n, k) to draws of all rows together."""
        return self.draw(noise)

    def joint_log_prob(self, noise: Tensor) -> Tensor:
        """Log density of ``joint_draw(noise)``, a term a row, in nats."""
        return self.log_prob(noise)

    def alone(self, noise: Tensor) -> Tensor:
        """Return noise whose joint draw moves only rows that have any, no two of them neighbours.

        Each of them is then drawn given all others at their means.
        """
        return noise


@dataclass(frozen=True)
class NormalFactors(Apart):
    """A batch of normal distributions with means of shape (..., k).

    Examples
    --------
    >>> import torch
    >>> from skavi.families import DiagonalNormal
    >>> factors = DiagonalNormal().factors(torch.zeros(3, 4), 2)  # three rows of two latents
    >>> factors.mean.shape, factors.entropy().shape
    (torch.Size([3, 2]), torch.Size([3]))
    """

    mean: Tensor
    scale: Tensor

    @property
    @abstractmethod
    def sd(self) -> Tensor:
        """Marginal standard deviations, shape (..., k)."""

    @property
    @abstractmethod
    def log_det_scale(self) -> Tensor:
        """Half the log determinant of the covariance, shape (...)."""

    @abstractmethod
    def draw(self, noise: Tensor) -> Tensor:
        """Map standard normal `noise`, broadcast against (..., k), to draws."""

    @abstractmethod
    def covariance(self) -> Tensor:
        """Covariance matrices, shape (..., k, k)."""

    @abstractmethod
    def block_covariance(self, index: Tensor) -> Tensor:
        """Covariances within tuples of coordinates `index` (b, j), shape (..., b, j, j)."""

    @abstractmethod
    def variance_along(self, directions: Tensor, index: Tensor) -> Tensor:
        """Variances of the coordinates `index` (b, j) along `directions` (n, j), shape (n, b)."""

    @abstractmethod
    def whitened(self, departure: Tensor) -> Tensor:
        """Return the noise whose draw is the means plus a departure (..., k)."""

    @abstractmethod
    def relative_spread(self, other: "NormalFactors") -> Tensor:
        """Trace of C^-1 C' for covariances C, and C' of `other` of the same family, (...)."""

    def given_first(self, n: int) -> "NormalFactors":
        """Return the factors conditional on zero noise in the first n coordinates."""
        if n >= self.mean.shape[-1]:
            return type(self)(self.mean, self.scale.new_zeros(()).expand_as(self.scale))
        return type(self)(self.mean, torch.nn.functional.pad(self.scale[..., n:], (n, 0)))

    def size(self) -> Tensor:
        """Return a number a factor, not finite where an sd is 0 or not finite, shape (...)."""
        return (self.sd + self.sd.reciprocal()).sum(-1)

    def neighbour_covariance(self) -> Tensor:
        """Covariances of each row with the row before it, shape (n, k, k); 0 for the first."""
        return self.mean.new_zeros(*self.mean.shape, self.mean.shape[-1])

    def term_draws(self, noise: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """Return draws of all rows, and which rows' terms each of them serves (None: all)."""
        return [(self.draw(noise), None)]

    def entropy(self) -> Tensor:
        """Entropy in nats, shape (...)."""
        return self.log_det_scale + 0.5 * self.mean.shape[-1] * (1 + LOG_2PI)

    def log_prob(self, noise: Tensor) -> Tensor:
        """Log density of ``draw(noise)``, in nats."""
        return -0.5 * (noise**2 + LOG_2PI).sum(-1) - self.log_det_scale


@dataclass(frozen=True)
class DiagonalFactors(NormalFactors):
    """Independent coordinates; `scale` holds the standard deviations, `log_scale` their logs.

    Examples
    --------
    >>> import torch
    >>> from skavi.families import DiagonalFactors
    >>> DiagonalFactors(torch.zeros(2), torch.tensor([1.0, 3.0])).covariance()
    tensor([[1., 0.],
            [0., 9.]])
    """

    log_scale: Tensor | None = None

    @property
    def sd(self) -> Tensor:
        return self.scale

    @property
    def log_det_scale(self) -> Tensor:
        return (self.scale.log() if self.log_scale is None else self.log_scale).sum(-1)

    def draw(self, noise: Tensor) -> Tensor:
        return torch.addcmul(self.mean, self.scale, noise)

    def covariance(self) -> Tensor:
        return torch.diag_embed(self.scale**2)

    def block_covariance(self, index: Tensor) -> Tensor:
        return torch.diag_embed(self.scale[..., index] ** 2)

    def whitened(self, departure):
        return departure / self.scale

    def relative_spread(self, other):
        return ((other.scale / self.scale) ** 2).sum(-1)

    def variance_along(self, directions, index):
        return directions**2 @ (self.scale[index] ** 2).mT


class FullFactors(NormalFactors):
    """Correlated coordinates; `scale` holds lower Cholesky factors.

    Examples
    --------
    >>> import torch
    >>> from skavi.families import FullFactors
    >>> FullFactors(torch.zeros(2), torch.tensor([[1.0, 0.0], [1.0, 2.0]])).covariance()
    tensor([[1., 1.],
            [1., 5.]])
    """

    @property
    def sd(self) -> Tensor:
        return self.scale.square().sum(-1).sqrt()

    @property
    def log_det_scale(self) -> Tensor:
        return self.scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def draw(self, noise: Tensor) -> Tensor:
        return self.mean + (self.scale @ noise.unsqueeze(-1)).squeeze(-1)

    def covariance(self) -> Tensor:
        return self.scale @ self.scale.mT

    def block_covariance(self, index: Tensor) -> Tensor:
        rows = self.scale[..., index, :]
        return rows @ rows.mT

    def whitened(self, departure):
        columns = departure.unsqueeze(-1)
        return torch.linalg.solve_triangular(self.scale, columns, upper=False).squeeze(-1)

    def relative_spread(self, other):
        whitened = torch.linalg.solve_triangular(self.scale, other.scale, upper=False)
        return whitened.square().sum((-2, -1))

    def variance_along(self, directions, index):
        products = directions.unsqueeze(-1) * directions.unsqueeze(-2)
        return torch.tensordot(products, self.block_covariance(index), [(-2, -1), (-2, -1)])


class PointFactors(DiagonalFactors):
    """All mass on the mean: no spread, with an entropy and a log density of 0 by convention.

    Examples
    --------
    >>> import torch
    >>> from skavi.families import PointFactors
    >>> PointFactors(torch.ones(2), torch.zeros(2)).draw(torch.randn(3, 2))
    tensor([[1., 1.],
            [1., 1.],
            [1., 1.]])
    """

    def draw(self, noise: Tensor) -> Tensor:
        return self.mean.expand(*noise.shape[:-1], self.mean.shape[-1])

    def entropy(self) -> Tensor:
        return self.mean.new_zeros(self.mean.shape[:-1])

    def log_prob(self, noise: Tensor) -> Tensor:
        return noise.new_zeros(noise.shape[:-1])


class Family(Component):
    """A parametric family of normal factors over unconstrained numbers.

    Examples
    --------
    >>> from skavi.families import DiagonalNormal, FullNormal, Point
    >>> [family.n_parameters(3) for family in (Point(), DiagonalNormal(), FullNormal())]
    [3, 6, 9]
    """

    #: Whether a factor has any spread: draws of a point need no noise.
    random: bool = True
    #: Whether a row's factor depends on the row before: only for latents in a chain.
    links_rows: bool = False

    @abstractmethod
    def n_parameters(self, n_latents: int) -> int:
        """Count the unconstrained numbers that describe one factor of `n_latents` latents."""

    @abstractmethod
    def factors(self, raw: Tensor, n_latents: int) -> Any:
        """Read unconstrained numbers, shape (..., n_parameters), as factors."""

    @abstractmethod
    def raw(self, factors: Any) -> Tensor:
        """Write factors of any family as unconstrained numbers, with equal moments if possible."""

    @abstractmethod
    def steps(self, factors: Any) -> Tensor:
        """Return the natural length of a step in each number, shape (..., n_parameters).

        One over the root of the diagonal of the Fisher information: in these units the ELBO near
        its optimum is about as curved in a mean as in a log sd, at any scale of the data.
        """


class DiagonalNormal(Family):
    """Normal with independent coordinates: the mean-field choice and the default.

    Parameters of one factor: the means, then the log standard deviations.

    Examples
    --------
    >>> from skavi.families import DiagonalNormal
    >>> DiagonalNormal().n_parameters(3)
    6
    """

    def n_parameters(self, n_latents):
        return 2 * n_latents

    def factors(self, raw, n_latents):
        mean, log_sd = raw.split([n_latents, n_latents], -1)
        log_sd = log_sd.contiguous()  # exp is many times slower on memory with gaps
        return DiagonalFactors(mean, log_sd.exp(), log_sd)

    def raw(self, factors):
        return torch.cat([factors.mean, factors.sd.log()], -1)

    def steps(self, factors):
        return torch.cat([factors.sd, torch.full_like(factors.sd, math.sqrt(0.5))], -1)


class FullNormal(Family):
    """Normal with a full covariance matrix.

    Parameters of one factor: the means, the log diagonal of the Cholesky factor, then its entries
    below the diagonal, row by row.

    Examples
    --------
    >>> from skavi.families import FullNormal
    >>> FullNormal().n_parameters(3)
    9
    """

    def n_parameters(self, n_latents):
        return n_latents + n_latents * (n_latents + 1) // 2

    def factors(self, raw, n_latents):
        k = n_latents
        # Read through one constant index map: works under vmap, grad and jvp alike.
        numbers = [raw.new_zeros(*raw.shape[:-1], 1), raw[..., k : 2 * k].exp(), raw[..., 2 * k :]]
        entries = torch.cat(numbers, -1).index_select(-1, _entries_of_lower(k, raw.device))
        return FullFactors(raw[..., :k], entries.reshape(*raw.shape[:-1], k, k))

    def raw(self, factors):
        k = factors.mean.shape[-1]
        scale = torch.linalg.cholesky(factors.covariance())
        row, column = torch.tril_indices(k, k, offset=-1, device=scale.device)
        diagonal = scale.diagonal(dim1=-2, dim2=-1).log()
        return torch.cat([factors.mean, diagonal, scale[..., row, column]], -1)

    def steps(self, factors):
        k = factors.mean.shape[-1]
        sd = factors.sd
        diagonal = factors.covariance().diagonal(dim1=-2, dim2=-1).sqrt()
        row, _ = torch.tril_indices(k, k, offset=-1, device=sd.device)
        return torch.cat([sd, torch.full_like(sd, math.sqrt(0.5)), diagonal[..., row]], -1)


@lru_cache(maxsize=64)
def _entries_of_lower(k: int, device: torch.device) -> Tensor:
    """Return for each entry of a lower matrix its place among 0, the diagonal, and those below."""
    row, column = torch.tril_indices(k, k, offset=-1, device=device)
    place = torch.diag(torch.arange(1, k + 1, device=device))
    place[row, column] = torch.arange(k + 1, k + 1 + len(row), device=device)
    return place.reshape(-1)


class Point(Family):
    """A point estimate in place of a distribution: for q(theta) only.

    The ELBO then has the log prior density at the point, on the unconstrained scale, and no entropy
    of theta: its maximum is the maximum a posteriori estimate of theta under the bound, and it is
    not a bound on the evidence. Standard deviations of theta are 0.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.families import Point
    >>> from skavi.models import LinearModel
    >>> vi = FactorizedVI(LinearModel(), global_family=Point()).fit([[0.0], [1.0], [5.0]])
    >>> float(vi.global_posterior_.sd["theta"])
    0.0
    """

    random = False

    def n_parameters(self, n_latents):
        return n_latents

    def factors(self, raw, n_latents):
        return PointFactors(raw, torch.zeros_like(raw))

    def raw(self, factors):
        return factors.mean

    def steps(self, factors):
        return torch.full_like(factors.mean, _POINT_STEP)
