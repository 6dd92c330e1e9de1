"""Expectations of a mixed model under independent normal q(theta): moments of what it multiplies.

A group's latent u_k is b_k itself where it is centred, b_k / sd_k where it is not. Under q the
coefficients beta and G are normal, sds are log normal, and u is normal, all independent; only a
correlation matrix of several numbers takes draws. Normal responses need sums over a group's rows,
once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from skavi._numerics.aligned import aligned
from skavi._numerics.quadrature import hermite_rule, sobol_normal
from skavi.families import LOG_2PI
from skavi.models._correlation import CorrelationTransform, expected_log_squares

#: Sobol points for the inverse of a matrix of more than one correlation.
_N_CORRELATION_DRAWS = 512


@dataclass(frozen=True)
class GlobalMoments:
    """Moments of the globals under q(theta), and which effects are centred.

    Attributes
    ----------
    centred : Tensor of shape (n_effects,)
        1 where a latent is the effect itself, 0 where it is in units of its sd.
    fixed, fixed_variance : Tensor of shape (n_fixed,)
    of_group, of_group_variance : Tensor of shape (n_effects, n_group_covariates)
    absorbed : Tensor of shape (n_effects, n_fixed)
        1 where a centred effect has a fixed effect for its mean.
    log_sd, log_sd_variance : Tensor of shape (n_effects,)
    precision : Tensor of shape (n_effects, n_effects)
        E C^-1 of the correlation matrix.
    log_det : Tensor
        E log det C.
    """

    centred: Tensor
    fixed: Tensor
    fixed_variance: Tensor
    of_group: Tensor
    of_group_variance: Tensor
    absorbed: Tensor
    log_sd: Tensor
    log_sd_variance: Tensor
    precision: Tensor
    log_det: Tensor

    @property
    def free(self) -> Tensor:
        """1 for the fixed effects that are not the mean of a centred effect."""
        return 1 - self.absorbed.sum(0)

    def power(self, sign: int, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and variances of sd^sign for the effects `which`, and of 1 for others."""
        if not bool(which.any()):
            return torch.ones_like(which), torch.zeros_like(which)
        mean, variance = which * self.log_sd, which * self.log_sd_variance
        first = (sign * mean + 0.5 * variance).exp()
        return first, first**2 * variance.expm1()

    def of_covariates(self, H: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of what group covariates add, (n_groups, n_effects)."""
        if not H.shape[1]:
            return (H.new_zeros(len(H), len(self.centred)),) * 2
        return H @ self.of_group.mT, H**2 @ self.of_group_variance.mT

    def prior_mean(self, H: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the latents' prior means, (n_groups, n_effects)."""
        mean, variance = self.of_covariates(H)
        mean = self.absorbed @ self.fixed + self.centred * mean
        return mean, self.absorbed @ self.fixed_variance + self.centred * variance

    def expected_log_prior(self, u, S, H) -> Tensor:
        """E_q log p(z_g | theta), shape (n_groups,)."""
        mean, variance = self.prior_mean(H)
        inverse, spread = self.power(-1, self.centred)
        away = u - mean
        second = away.unsqueeze(-1) * away.unsqueeze(-2) + S
        A = self.precision * (inverse.unsqueeze(-1) * inverse + spread.diag())
        quadratic = (A * second).sum((-2, -1)) + variance @ A.diagonal()
        logs = self.log_det + 2 * (self.centred * self.log_sd).sum()
        return -0.5 * (len(self.centred) * LOG_2PI + logs + quadratic)

    def shift(self, H) -> tuple[Tensor, Tensor]:
        """Return mean and variance of what group covariates add beside effects not centred."""
        mean, variance = self.of_covariates(H)
        return (1 - self.centred) * mean, (1 - self.centred) * variance

    def expected_squares(self, gram: Tensor, u, S, H) -> Tensor:
        """E sum w (y - eta)^2 of each group, from sums of products of its columns (F, R, y)."""
        first, variance = self.power(1, 1 - self.centred)
        shift, spread = self.shift(H)
        common = (self.free * self.fixed).expand(len(u), -1)
        m = torch.cat([common, first * u + shift, -torch.ones_like(u[:, :1])], 1)
        squares = ((gram @ m.unsqueeze(-1))[..., 0] * m).sum(1)
        A, n = gram[:, :-1, :-1], len(self.fixed)
        inner = A[:, n:, n:] * (first.unsqueeze(-1) * first + variance.diag()) * S
        on_diagonal = torch.cat(
            [(self.free * self.fixed_variance).expand(len(u), -1), variance * u**2 + spread], 1
        )
        of_diagonal = (A.diagonal(dim1=1, dim2=2) * on_diagonal).sum(1)
        return squares + of_diagonal + inner.sum((-2, -1))

    def predictor(self, F, R, unit, u, S, H, sds) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each row's eta, given the sds, which are (n_nodes, k)."""
        t = torch.where(self.centred > 0, torch.ones_like(sds), sds)
        shift, spread = (part[unit] for part in self.shift(H))
        common = F @ (self.free * self.fixed) + (R * shift).sum(1)
        mean = common + t @ (R * u[unit]).mT
        scaled = t.unsqueeze(1) * R
        variance = torch.einsum("anj,njk,ank->an", scaled, S[unit], scaled)
        variance = variance + F**2 @ (self.free * self.fixed_variance) + (R**2 * spread).sum(1)
        return mean, variance

    def effects(self, u, variance, H) -> tuple[Tensor, Tensor]:
        """Return means and variances of the effects z_g, (n_groups, n_effects)."""
        first, of_sd = self.power(1, 1 - self.centred)
        shift, spread = self.shift(H)
        mean = first * u + shift - self.absorbed @ self.fixed
        square = first**2 * variance + of_sd * (u**2 + variance)
        return mean, square + spread + self.absorbed @ self.fixed_variance


def correlation_moments(mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Return E C^-1 and E log det C of a correlation matrix, for normal numbers below it.

    With one, u, the inverse has (1 + cosh 2u) / 2 on its diagonal and -sinh 2u / 2 beside it.
    """
    m, log_det = len(mean), expected_log_squares(mean, sd).sum()
    if m == 1:
        wide = (2 * sd**2).exp()
        same, other = 0.5 + 0.5 * (2 * mean).cosh() * wide, -0.5 * (2 * mean).sinh() * wide
        return torch.cat([same, other, other, same]).reshape(2, 2), log_det
    nodes = aligned(sobol_normal(_N_CORRELATION_DRAWS, m, 0)).to(mean)
    lower = CorrelationTransform().cholesky(mean + sd * nodes)
    identity = torch.eye(lower.shape[-1]).to(mean).expand_as(lower)
    root = torch.linalg.solve_triangular(lower, identity, upper=False)
    return (root.mT @ root).mean(0), log_det


def product_rule(means: Tensor, sds: Tensor, n_nodes: int) -> tuple[Tensor, Tensor]:
    """Return nodes (n, d) of a product rule for independent normals, and their weights."""
    if not len(means):
        return means.new_zeros(1, 0), means.new_ones(1)
    one, weight = (aligned(part).to(means) for part in hermite_rule(n_nodes))
    nodes = torch.cartesian_prod(*[one] * len(means)).reshape(-1, len(means))
    weights = torch.cartesian_prod(*[weight] * len(means)).reshape(-1, len(means)).prod(1)
    return means + sds * nodes, weights
