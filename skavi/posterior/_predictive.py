"""Predictive moments of a row's cells, and importance-weighted bounds of its evidence."""

import math

import torch
from torch import Tensor

from skavi._data.rows import Rows
from skavi._numerics.quadrature import SOBOL_MAX_DIMENSION
from skavi.distributions import defaults_of
from skavi.noise import FixedDraws, QuasiMonteCarlo
from skavi.objective import Objective

#: Rows: matrix products treat a shorter last block differently; 8 float64 fill a register of
#: AVX-512.
_BLOCK = 8
#: Draws of theta and z for predictive moments, as many as `default_noise` starts with. Not
#: measured.
_N_DRAWS = 256


def draws_of(objective: Objective, raw_globals: Tensor, n_draws: int):
    """Yield pairs of theta, drawn from q(theta), and noise of z: fixed, and shared by all rows."""
    factor, k = objective.global_factor(raw_globals), objective.n_latents
    size = objective.space.size if objective.global_family.random else 0
    few = size + k <= SOBOL_MAX_DIMENSION
    rule = QuasiMonteCarlo(n_draws) if few else FixedDraws(n_draws)
    nodes = rule.nodes(size, k, 1, None)
    assert nodes is not None
    nodes = nodes.to(raw_globals)
    for u, noise in zip(factor.draw(nodes.globals_), nodes.locals_, strict=True):
        yield objective.space.constrain(u), noise


def cell_moments(objective: Objective, raw: Tensor, raw_globals: Tensor, X: Tensor):
    """Return the predictive mean and variance of every cell under q, explained columns alone."""
    factors = objective.local_factors(raw)
    like = objective.model.explained(X)
    mean, spread, within = (torch.zeros_like(like) for _ in range(3))
    for i, (theta, noise) in enumerate(draws_of(objective, raw_globals, _N_DRAWS), 1):
        with defaults_of(X):
            centre, variance = objective.cell_moments(theta, factors, noise, X)
        change = centre - mean
        mean += change / i
        spread += change * (centre - mean)
        within += (variance - within) / i
    return mean, within + spread / _N_DRAWS


def importance_bound(
    objective: Objective, raw: Tensor, raw_globals: Tensor, rows: Rows, n_draws: int
) -> Tensor:
    """Return log mean_s p(x_n, z_s | theta_s) / q(z_s) of every row, shape (n_rows,), in nats.

    Source: Burda, Grosse & Salakhutdinov (2016), "Importance weighted autoencoders", eq. 8.
    """
    # Repeat the last row to fill its block: matrix products round differently in an incomplete
    # block, and no row's result may depend on the number of rows.
    whole = torch.arange(len(raw) + -len(raw) % _BLOCK, device=raw.device).clamp_max(len(raw) - 1)
    factors, X, total = objective.local_factors(raw[whole]), rows[whole].X, None
    for theta, noise in draws_of(objective, raw_globals, n_draws):
        log_weight = objective.log_weights(theta, factors, noise, X)
        total = log_weight if total is None else torch.logaddexp(total, log_weight)
    assert total is not None
    return total[: len(raw)] - math.log(2 * max(n_draws // 2, 1))
