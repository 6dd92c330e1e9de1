"""Importance sampling from proposals that adapt to the density, for densities of a few numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skavi._numerics import student_t
from skavi._numerics.aligned import aligned
from skavi._numerics.quadrature import sobol_normal

#: Degrees of freedom, and times the covariance, of the two Student t that a proposal mixes in equal
#: shares: one near the normal, one that reaches the tails. Not measured: usual values.
_PARTS = ((8.0, 1.2), (3.0, 2.5))
#: Draws of a round that adapts the proposal, and rounds at most. Not measured: order of magnitude.
_PILOT, _ROUNDS = 512, 8
#: Effective draws a number that the moments of a round are from; fewer, and weights are tempered.
_DRAWS_A_NUMBER = 10
#: Share of effective draws that another round would hardly raise.
_GOOD_SHARE = 0.6


@dataclass(frozen=True)
class Weighted:
    """Draws with log importance weights, not normalised.

    Attributes
    ----------
    draws : Tensor of shape (n_draws, size)
    log_weights : Tensor of shape (n_draws,)
    """

    draws: Tensor
    log_weights: Tensor

    @property
    def log_mean(self) -> float:
        """Log of the mean weight: of the density's integral, in nats."""
        return float(torch.logsumexp(self.log_weights, 0)) - math.log(len(self.log_weights))

    @property
    def log_mean_se(self) -> float:
        """Standard error of `log_mean`, as if draws were independent."""
        ratio = (self.log_weights - self.log_mean).exp()
        return float(ratio.std() / math.sqrt(len(ratio)))


def sample(
    log_density: Callable[[Tensor], Tensor], mean: Tensor, covariance: Tensor, n_draws: int, state
) -> Weighted:
    """Draw from a proposal that starts at a normal's moments and takes on those of the density.

    Each round's weighted moments are the next proposal's; tempered so far that enough draws count.
    Source: Cappe, Douc, Guillin, Marin & Robert (2008), "Adaptive importance sampling in general
    mixture classes", with tempering after Koblents & Miguez (2015).

    Parameters
    ----------
    log_density : callable
        Of draws (n, size), in nats, shape (n,); -inf where it has no value.
    mean, covariance : Tensor of shape (size,), and (size, size)
    n_draws : int
        Of the last round, which alone is returned.
    state : RandomState
    """
    wanted, share = _DRAWS_A_NUMBER * len(mean), 0.0
    for _ in range(_ROUNDS):
        found = _draw(log_density, mean, covariance, _PILOT, state)
        weights, tempered = _tempered(found.log_weights, wanted)
        if not bool(weights.isfinite().all()):
            break  # no draw has a density: the last proposal is as good as any
        before, share = share, _effective(torch.softmax(found.log_weights, 0)) / _PILOT
        mean = weights @ found.draws
        off = found.draws - mean
        covariance = _positive((off * weights[:, None]).mT @ off, covariance)
        if not tempered and (share > _GOOD_SHARE or share < 1.05 * before):
            break
    return _draw(log_density, mean, covariance, n_draws, state)


def _tempered(log_weights, wanted):
    """Return normalised weights to the largest power <= 1 of which `wanted` draws count."""
    low, high = 0.0, 1.0
    weights = torch.softmax(log_weights, 0)
    if not bool(weights.isfinite().all()) or _effective(weights) >= wanted:
        return weights, False
    finite = torch.where(log_weights.isinf(), log_weights.new_tensor(-1e300), log_weights)
    for _ in range(30):
        power = 0.5 * (low + high)
        weights = torch.softmax(power * finite, 0)
        low, high = (power, high) if _effective(weights) >= wanted else (low, power)
    return torch.softmax(low * finite, 0), True


def _effective(weights) -> float:
    return float(1 / weights.square().sum())


def _positive(covariance, before):
    """Return a covariance that has a Cholesky factor: the one before where it has none."""
    _, failed = torch.linalg.cholesky_ex(covariance)
    return before if bool(failed) else covariance


def _draw(log_density, mean, covariance, n_draws, state) -> Weighted:
    size = len(mean)
    scale = torch.linalg.cholesky(covariance)
    draws = []
    for i, (degrees, wide) in enumerate(_PARTS):
        n = (n_draws + i) // len(_PARTS)
        points = sobol_normal(n + 1, size + 1, int(state.randint(2**31)))[:n]
        radius = aligned(np.sqrt(wide) * student_t.radii(points[:, size], degrees))
        draws.append(mean + (aligned(points[:, :size]) * radius[:, None]) @ scale.mT)
    u = torch.cat(draws)
    return Weighted(u, log_density(u) - _log_mixture(u, mean, scale))


def _log_mixture(u, mean, scale):
    size = len(mean)
    white = torch.linalg.solve_triangular(scale, (u - mean).mT, upper=False)
    distance, log_det = white.square().sum(0), scale.diagonal().log().sum()
    parts = []
    for degrees, wide in _PARTS:
        spread = log_det + 0.5 * size * math.log(wide)
        parts.append(student_t.log_density(distance / wide, degrees, size) - spread)
    return torch.logsumexp(torch.stack(parts), 0) - math.log(len(parts))
