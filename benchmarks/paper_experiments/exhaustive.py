"""F-VI's optimum of the nonlinear experiment by exhaustive search, with nothing of skavi in it.

The published density makes row n's loss, given q(theta) = N(m, s^2) and r = x_n - m,

    E_q(z)[z^2 / 2 + (r^2 - 2 r g(z) + g(z)^2 + s^2) exp(-2 cos z) / 2] - log sd - 1/2,

g(z) = z sin z + z: three expectations that depend on the factor alone, once for all rows. So every
row looks at every factor of a grid, the best one is refined on ever finer grids around it, and
theta, in which the loss is quadratic, has a closed form given the factors. The two alternate from
several starts.
"""

from dataclasses import dataclass

import numpy as np

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(48)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_MEANS = np.arange(-12, 12.001, 0.05)
_LOG_SDS = np.arange(-3.0, 1.01, 0.1)
_CHUNK = 500


@dataclass(frozen=True)
class Exhaustive:
    """The loss (-ELBO, published convention, nats), theta's mean and every row's factor."""

    loss: float
    theta: float
    mean: np.ndarray
    log_sd: np.ndarray


def exhaustive_search(x: np.ndarray, theta_starts=None) -> Exhaustive:
    """Return the best of several starts of theta, refined until nothing moves by 1e-6 relative."""
    if theta_starts is None:
        theta_starts = np.mean(x) + np.linspace(-1, 1, 5)
    few = x[:: max(1, len(x) // 500)]
    roughly = [_alternate(few, theta, rounds=3) for theta in theta_starts]
    return _alternate(x, min(roughly, key=lambda found: found.loss).theta, rounds=8)


def _alternate(x, theta, rounds):
    theta_variance, before = 1.0 / len(x), np.inf
    for _ in range(rounds):
        mean, log_sd = _best_factors(x - theta, theta_variance)
        _, linear, square = _expectations(mean, log_sd)
        theta_variance = 1 / square.sum()
        theta = float((x * square - linear).sum() * theta_variance)
        loss = row_losses(x - theta, theta_variance, mean, log_sd).sum()
        loss = float(loss - 0.5 * np.log(theta_variance) - 0.5)
        if before - loss < 1e-6 * abs(loss):
            break
        before = loss
    return Exhaustive(loss, theta, mean, log_sd)


def _expectations(mean, log_sd):
    """Return E[z^2 / 2 + g^2 w / 2] - log sd - 1/2, E[g w] and E[w] with w = exp(-2 cos z)."""
    z = mean[..., None] + np.exp(log_sd)[..., None] * _NODES
    g, w = z * np.sin(z) + z, np.exp(-2 * np.cos(z))
    constant = (0.5 * (z**2 + g**2 * w)) @ _WEIGHTS - log_sd - 0.5
    return constant, (g * w) @ _WEIGHTS, w @ _WEIGHTS


def row_losses(residual, theta_variance, mean, log_sd):
    """Return each row's loss at each factor (broadcast)."""
    constant, linear, square = _expectations(mean, log_sd)
    return constant - residual * linear + 0.5 * (residual**2 + theta_variance) * square


def _best_factors(residual, theta_variance):
    means, log_sds = (g.ravel() for g in np.meshgrid(_MEANS, _LOG_SDS, indexing="ij"))
    constant, linear, square = _expectations(means, log_sds)
    coefficients = np.stack([constant + 0.5 * theta_variance * square, -linear, 0.5 * square])
    best = np.empty(len(residual), dtype=int)
    for first in range(0, len(residual), _CHUNK):
        r = residual[first : first + _CHUNK]
        powers = np.stack([np.ones_like(r), r, r**2], 1)
        best[first : first + _CHUNK] = (powers @ coefficients).argmin(1)
    mean, log_sd = means[best], log_sds[best]
    half_mean, half_log_sd = 0.04, 0.08
    offsets = np.array([-1.0, 0.0, 1.0])
    for _ in range(9):
        a, b = (g.ravel() for g in np.meshgrid(offsets * half_mean, offsets * half_log_sd))
        around = mean[:, None] + a, log_sd[:, None] + b
        losses = row_losses(residual[:, None], theta_variance, *around)
        chosen = losses.argmin(1)
        mean, log_sd = mean + a[chosen], log_sd + b[chosen]
        half_mean, half_log_sd = half_mean / 2, half_log_sd / 2
    return mean, log_sd
