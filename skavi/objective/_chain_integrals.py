"""Log likelihoods of series given theta, log p(X | theta), with latents in a chain integrated out.

Rows of a chain are not independent given theta, so that a whole series is one unit.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.linalg import solve_banded
from torch import Tensor

from skavi._curvature import Band, band_of, gradient_of
from skavi._data.coupling import Chain, Coupling
from skavi._numerics.aligned import aligned
from skavi._numerics.forward_backward import log_sum
from skavi.objective._integrals import (
    AT_MODE,
    CONSTANT,
    EXACT,
    NUMBERS,
    SAMPLING,
    STEPS,
    RealIntegral,
    climbed,
)

#: Importance draws of all rows at once, half of them mirror images of the others.
_DRAWS = 512
#: Draws at which log weights are tested for being constant.
_TESTED = 8


@dataclass(frozen=True)
class SeriesIntegral:
    """What the integrals over chains of finite and of real latents share: their units."""

    objective: Any
    X: Tensor

    def by_unit(self, values: Tensor) -> Tensor:
        """Return sums over the rows of each series, (..., n_series), of values (..., n_rows)."""
        sums = values.new_zeros(*values.shape[:-1], self.n_series)
        return sums.index_add(-1, self._series, values)

    def shared(self, values: Tensor) -> Tensor:
        """Return values of series (..., n_series) shared out equally over their rows."""
        sizes = torch.bincount(self._series, minlength=self.n_series)
        return (values / sizes)[..., self._series]

    @property
    def _series(self):
        return self.objective.model.begins(self.X).long().cumsum(0) - 1

    @property
    def n_series(self) -> int:
        """How many series the rows are."""
        return int(self.objective.model.begins(self.X).sum())


@dataclass(frozen=True)
class FiniteSeriesIntegral(SeriesIntegral):
    """The exact sum over all paths of finite latents, by the forward algorithm."""

    @property
    def how(self) -> np.ndarray:
        """How each series is integrated, shape (n_series,)."""
        return np.full(self.n_series, EXACT, dtype=object)

    def at(self, u: Tensor) -> Tensor:
        """Return log p(X | theta) at unconstrained globals (n_draws, size): (n_draws, n_series)."""
        n_at_once = max(1, NUMBERS // (len(self.X) * self.objective.width**3))
        return torch.cat([self._at(part) for part in u.split(n_at_once)])

    def _at(self, u):
        logs = self.objective.log_joints_of_states(u, self.X)
        steps = torch.stack([self.objective.potentials(each, self.X) for each in logs], 1)
        begins = torch.nonzero(self.objective.model.begins(self.X))[:, 0].tolist()
        ends = [*begins[1:], len(steps)]
        return torch.stack([log_sum(steps[i:j]) for i, j in zip(begins, ends, strict=True)], -1)

    def log_weights(self, u: Tensor) -> Tensor:
        """Return the log importance weights of sampled series, for one u: there are none."""
        return u.new_zeros(1, self.n_series)


@dataclass(frozen=True)
class RealSeriesIntegral(SeriesIntegral):
    """Integrals over chains of real latents, about the mode of all rows together.

    Exact where the posterior given theta is normal (the Kalman filter's answer), else by importance
    sampling from the normal about the mode. Source: Durbin & Koopman (2012), "Time series analysis
    by state space methods", chapter 11.

    Attributes
    ----------
    centre : Tensor of shape (n_rows, k)
        Where modes are sought from.
    how : ndarray of str of shape (n_series,)
        "exact" or "importance sampling".
    noise : Tensor of shape (n_draws, n_rows, k)
        Standard normals that are mapped to draws: one of zeros where all series are exact.
    """

    centre: Tensor
    how: np.ndarray
    noise: Tensor

    @classmethod
    def of(cls, objective, X, factors, u, agreement) -> "RealSeriesIntegral":
        """Choose each series' rule, so that it serves at all the unconstrained globals u."""
        centre = factors.mean.detach()
        here = cls(objective, X, centre, np.empty(0), _mirrored(_TESTED, centre))
        logs = here._weigh(u)
        spread = (logs.amax(0) - logs.amin(0)).amax(0)
        exact = (spread < CONSTANT * (1 + logs.abs().amax((0, 1)))).cpu().numpy()
        how = np.where(exact, EXACT, SAMPLING).astype(object)
        noise = torch.zeros_like(centre)[None] if exact.all() else _mirrored(_DRAWS, centre)
        return replace(here, how=how, noise=noise)

    def at(self, u: Tensor) -> Tensor:
        """Return log p(X | theta) at unconstrained globals (n_draws, size): (n_draws, n_series).

        -inf where the density is not a number.
        """
        n_at_once = max(1, NUMBERS // (self.noise.numel() + 4 * self.centre.numel()))
        logs = torch.cat([self._weigh(part) for part in u.split(n_at_once)], 1)
        values = torch.logsumexp(logs, 0) - math.log(len(logs))
        return torch.where(values.isnan(), -math.inf, values)

    def log_weights(self, u: Tensor) -> Tensor:
        """Return log importance weights, (n_draws, n_series), at one u; constant where exact."""
        return self._weigh(u[None])[:, 0]

    def _weigh(self, u):
        """Return log p(X, z | theta) - log q(z) at draws about the mode, shape (D, S, m)."""
        z, bands = self._modes(u)
        (n, k), n_noise = self.centre.shape, len(self.noise)
        flat, factors = self.noise.reshape(n_noise, n * k), [band.factor[0] for band in bands]
        right = flat.mT.cpu().numpy()
        moves = [solve_banded((0, 2 * k - 1), factor, right).T for factor in factors]
        draws = z + torch.stack([aligned(m).to(z).reshape(n_noise, n, k) for m in moves], 1)
        pivots = torch.stack([aligned(factor[-1].reshape(n, k)).to(z) for factor in factors])
        terms = self._terms(u.repeat(n_noise, 1), draws.reshape(-1, n, k))
        normal = 0.5 * (self.noise**2 + math.log(2 * math.pi)).sum(-1)
        logs = terms.reshape(n_noise, len(u), n) + normal.unsqueeze(1) - pivots.log().sum(-1)
        return self.by_unit(logs)

    def _terms(self, u, z):
        return self.objective.log_terms_at(u, z, self.X)

    def _modes(self, u):
        """Return modes of all rows for each u, (S, n, k), and minus the Hessians there."""
        z = self.centre.expand(len(u), -1, -1).clone()
        for _ in range(STEPS):
            value, gradient, bands = self._derivatives(u, z)
            columns = (gradient[s].reshape(-1, 1) for s in range(len(u)))
            solved = [band.solve(column) for band, column in zip(bands, columns, strict=True)]
            step = torch.stack(solved).reshape(z.shape)
            decrement = (step * gradient).sum((-2, -1))
            if not bool((decrement > AT_MODE * (1 + value.abs())).any()):
                break
            z, rose = climbed(lambda i, to: self._terms(u[i], to).sum(-1), z, value, step)
            if not bool(rose.any()):
                break
        return z, bands

    def _derivatives(self, u, z):
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            value = self._terms(u, z).sum(-1)
            (gradient,) = gradient_of(value.sum(), (z,), create_graph=True)
            bands = [Band(-band) for band in band_of(gradient, z)]
        return value.detach(), gradient.detach(), bands


#: The integral over real latents for each kind of coupling.
REAL_INTEGRALS: dict[type[Coupling], Any] = {Coupling: RealIntegral, Chain: RealSeriesIntegral}


def _mirrored(n_draws, like):
    """Return standard normals (n_draws, n_rows, k) and their mirror images."""
    half = aligned(np.random.default_rng(0).standard_normal((n_draws // 2, *like.shape))).to(like)
    return torch.cat([half, -half])
