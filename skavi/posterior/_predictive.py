"""Predictive moments of a row's cells, and its predictive density."""

import math

import torch
from torch import Tensor

from skavi._data.rows import Rows
from skavi._numerics.quadrature import SOBOL_MAX_DIMENSION
from skavi.distributions import defaults_of
from skavi.noise import FixedDraws, QuasiMonteCarlo
from skavi.objective import Objective
from skavi.objective._integrals import EXACT, MOST_LATENTS, SAMPLING

#: Rows: matrix products treat a shorter last block differently; 8 float64 fill a register of
#: AVX-512.
_BLOCK = 8
#: Draws of theta and z for predictive moments, as many as `default_noise` starts with. Not
#: measured.
_N_DRAWS = 256
#: Draws of theta at which the rules that integrate the rows' latents are chosen.
_RULES = 8
#: Nats by which rules of quadrature may differ: draws of theta err by more.
_AGREEMENT = 0.01
#: Rows whose latents are integrated at once: 4 million numbers at 256 nodes a row.
_ROWS = 2048


def draws_of(objective: Objective, raw_globals: Tensor, n_draws: int):
    """Yield pairs of theta, drawn from q(theta), and noise of z: fixed, and shared by all rows."""
    u, locals_ = _nodes(objective, raw_globals, n_draws, objective.n_latents)
    for each, noise in zip(u, locals_, strict=True):
        yield objective.space.constrain(each), noise


def _nodes(objective, raw_globals, n_draws, k):
    """Return fixed draws of the unconstrained globals, (S, size), and noise for k latents."""
    factor = objective.global_factor(raw_globals)
    size = objective.space.size if objective.global_family.random else 0
    few = size + k <= SOBOL_MAX_DIMENSION
    rule = QuasiMonteCarlo(n_draws) if few else FixedDraws(n_draws)
    nodes = rule.nodes(size, k, 1, None)
    assert nodes is not None
    nodes = nodes.to(raw_globals)
    return factor.draw(nodes.globals_), nodes.locals_


def cell_moments(objective: Objective, raw: Tensor, raw_globals: Tensor, X: Tensor):
    """Return the predictive mean and variance of every cell under q, explained columns alone."""
    factors = objective.local_factors(raw)
    mean = spread = within = X.new_zeros(())
    for i, (theta, noise) in enumerate(draws_of(objective, raw_globals, _N_DRAWS), 1):
        with defaults_of(X):
            centre, variance = objective.cell_moments(theta, factors, noise, X)
        change = centre - mean
        mean = mean + change / i
        spread = spread + change * (centre - mean)
        within = within + variance / _N_DRAWS
    return objective.model.cells_from(mean, within + spread / _N_DRAWS, True)


def log_predictive(
    objective: Objective, raw: Tensor, raw_globals: Tensor, rows: Rows, n_draws: int
) -> Tensor:
    """Return log E_q(theta) p(x_n | theta) of every row, shape (n_rows,), in nats.

    Where no closed form or quadrature integrates a row's latents, its importance-weighted bound.
    Latents in a chain: that of the series, shared out equally over its rows.
    """
    u, _ = _nodes(objective, raw_globals, n_draws if objective.global_family.random else 1, 0)
    # Repeat the last row to fill its block: matrix products round differently in an incomplete
    # block, and no row's result may depend on the number of rows.
    whole = torch.arange(len(raw) + -len(raw) % _BLOCK, device=raw.device).clamp_max(len(raw) - 1)
    coupling, X = objective.model.coupling, rows.X
    if coupling.separable:
        raw, X = raw[whole], rows[whole].X
    if not _integrable(objective, raw, X, u):
        return _importance_bound(objective, raw, raw_globals, X, n_draws)[: len(rows)]
    parts = []
    for piece in coupling.pieces(len(raw), _ROWS):
        with defaults_of(raw):
            factors = objective.local_factors(raw[piece])
            integral = objective.integral(X[piece], factors, u[:_RULES], _AGREEMENT)
            values = torch.logsumexp(integral.at(u), 0) - math.log(len(u))
        sampled = torch.as_tensor(integral.how == SAMPLING, device=raw.device)
        if coupling.separable and bool(sampled.any()):
            bound = _importance_bound(objective, raw[piece], raw_globals, X[piece], n_draws)
            values = torch.where(sampled, bound, values)
        parts.append(integral.shared(values))
    return torch.cat(parts)[: len(rows)]


def _integrable(objective, raw, X, u):
    """Say whether rows may have closed forms or quadrature: of many latents, what a few have."""
    if objective.n_latents <= MOST_LATENTS or not objective.model.coupling.independent:
        return True
    few, factors = X[:_BLOCK], objective.local_factors(raw[:_BLOCK])
    with defaults_of(raw):
        return bool((objective.integral(few, factors, u[:1]).how == EXACT).all())


def _importance_bound(objective, raw, raw_globals, X, n_draws):
    """Return log mean_s p(x_n, z_s | theta_s) / q(z_s) of every row, shape (n_rows,), in nats.

    Source: Burda, Grosse & Salakhutdinov (2016), "Importance weighted autoencoders", eq. 8.
    """
    factors, total = objective.local_factors(raw), None
    for theta, noise in draws_of(objective, raw_globals, n_draws):
        log_weight = objective.log_weights(theta, factors, noise, X)
        total = log_weight if total is None else torch.logaddexp(total, log_weight)
    assert total is not None
    return total - math.log(2 * max(n_draws // 2, 1))
