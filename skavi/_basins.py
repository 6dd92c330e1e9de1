"""Other basins: a row's local problem may have several optima; look beyond the nearest.

With one or two latents a row, the log joint at the centre of q(theta) is screened on a grid in one
batched evaluation. Where a row has further local maxima of comparable mass, Newton polishes a
factor started at each, and the row keeps the best.
"""

from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from skavi._rows import Rows
from skavi.families import DiagonalFactors
from skavi.solvers import Newton, State

_MAX_LATENTS = 2
_POINTS = {1: 161, 2: 21}
_REACH = 8.0
_CANDIDATES = 3
_COMPARABLE = 12.0
_LOCAL_ITERATIONS = 50


def other_basins(problem, raw: Tensor, globals_: Tensor, tol: float) -> Tensor | None:
    """Return raw factors with better ones put in for some rows, or None if there are none."""
    objective = problem.objective
    if not objective.model.rowwise or objective.n_latents > _MAX_LATENTS or objective.model.ordered:
        return None
    starts, owner = _screen(problem, raw, globals_)
    if not len(owner):
        return None
    rows = problem.rows
    several = replace(
        problem,
        rows=Rows(rows.X[owner], torch.ones_like(rows.weights[owner])),
        features=rows.X[owner],
        _kept=list(problem._kept),
    )
    state = State({"values": objective.family.raw(starts)}, globals_)
    solved = Newton().solve(several, state, tol, _LOCAL_ITERATIONS, lambda *_: False)
    found = solved.state.parameters["values"]
    new = several.row_terms(found, globals_)
    old = problem.row_terms(raw, globals_)
    best = old.clone().scatter_reduce(0, owner, new, "amax")
    margin = 1e-9 * (1 + old.abs())
    wins = (new >= best[owner]) & (new > (old + margin)[owner])
    if not bool(wins.any()):
        return None
    moved = raw.clone()
    moved[owner[wins]] = found[wins]
    return moved


def _screen(problem, raw, globals_):
    """Return factors at the further local maxima of the log joint, and the rows they belong to."""
    objective, X = problem.objective, problem.rows.X
    theta = objective.space.constrain(objective.global_factor(globals_).mean)
    factors = objective.local_factors(raw)
    centre, spread = objective.model.initial_locals(theta, X)
    reach = _REACH * spread.amax(0) + (factors.mean - centre).abs().amax(0)
    n_points, k = _POINTS[objective.n_latents], objective.n_latents
    axis = torch.linspace(-1, 1, n_points, dtype=X.dtype, device=X.device)
    grid = torch.tensor(list(product(axis.tolist(), repeat=k)), dtype=X.dtype, device=X.device)
    points = centre.mean(0) + reach * grid
    density = torch.stack(
        [objective.model.log_terms(theta, point.expand(len(X), k), X) for point in points], 1
    )
    step = 2 * reach / (n_points - 1)
    peaks, curvature = _peaks(density.reshape(len(X), *[n_points] * k), step)
    peaks, curvature = peaks.reshape(len(X), -1), curvature.reshape(len(X), -1, k)
    sd = curvature.clamp_min(1e-300).rsqrt().clamp(step / 4, reach)
    mass = torch.where(peaks, density + sd.log().sum(-1), -torch.inf)
    top, where = mass.topk(min(_CANDIDATES, mass.shape[1]), dim=1)
    away = ((points[where] - factors.mean.unsqueeze(1)).abs() > factors.sd.unsqueeze(1) + step).any(-1)
    chosen = away & torch.isfinite(top) & (top > top[:, :1] - _COMPARABLE)
    owner, rank = chosen.nonzero(as_tuple=True)
    which = where[owner, rank]
    return DiagonalFactors(points[which], sd[owner, which]), owner


def _peaks(density, step):
    """Interior local maxima of a gridded density and the curvature along each axis there."""
    k = density.dim() - 1
    is_peak = torch.ones_like(density, dtype=torch.bool)
    curvature = []
    for axis in range(1, k + 1):
        left, right = density.roll(1, axis), density.roll(-1, axis)
        edge = torch.zeros_like(is_peak)
        edge.index_fill_(axis, torch.tensor([0, density.shape[axis] - 1], device=edge.device), True)
        is_peak &= (density >= left) & (density > right) & ~edge
        curvature.append((2 * density - left - right) / step[axis - 1] ** 2)
    return is_peak, torch.stack(curvature, -1)
