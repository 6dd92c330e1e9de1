"""The search for other local optima of a row's factor.

With one or two latents a row, the ELBO at the mean of q(theta) is evaluated on a grid of means and
sds. Where the grid shows further local optima of comparable height, Newton's method maximises from
each of them, and the row keeps the best.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from skavi._data.blockwise import SCREENED_CELLS, SCREENED_ELBOS, SCREENED_ROWS
from skavi._data.rows import Rows, cells_a_row
from skavi._fit.iterates import ROUGH
from skavi.families import DiagonalFactors
from skavi.solvers import Newton, State

#: Latents a row: the grid has 33 ** 2 points with two, and would have 36,000 with three.
_MAX_LATENTS = 2
#: Grid points an axis, by latents a row: with these, 10,000 rows reach the optimum of an
#: exhaustive search (nonlinear.json).
_POINTS = {1: 201, 2: 33}
#: Sds to try, in grid steps: 1 to 16, each sqrt(2) times the one before; Newton then finds the
#: exact one.
_WIDTHS = tuple(2.0 ** (i / 2) for i in range(9))
#: Nats: stands for a density that is not finite; far below any real one, and still safe to add.
_LOWEST = -1e12
#: Sds each way from the middle of the prior: a normal has 1e-15 of its mass beyond 8.
_REACH = 8.0
#: Starts a row: enough to reach the optimum of an exhaustive search (nonlinear.json).
_CANDIDATES = 4
#: Nats below the best peak of the grid: lower peaks are left out (12 before; nonlinear.json).
_COMPARABLE = 4.0
#: Newton steps a start: about 10 are usual, the rest is for hard rows. Not measured: order of
#: magnitude.
_LOCAL_ITERATIONS = 50
#: Times that latents are put in order: the order may move as a fit goes on. Not measured.
_REORDERED = 3
#: Rounds of moving rows and solving again; they end when no row moves. Not measured: order of
#: magnitude.
_MAX_ROUNDS = 5


def move_to_better_optima(problem, state, tol, stages):
    """Move rows to better optima and solve again, until no row has a better one."""
    for _ in range(_MAX_ROUNDS):
        frozen = replace(problem, frozen_globals=True)
        found = stages.journal.once(other_optima, frozen, state.raw_locals, state.raw_globals, tol)
        if not problem.rows.ranks.any(found is not None):
            break
        moved = state if found is None else replace(state, raw_locals=found)
        state = stages.solve(problem, moved, max(tol, ROUGH))
    return state


def settle_rows(problem, state, tol, stages):
    """End coordinate ascent at the rows' best factors; where these gain, solve again from them.

    A search takes as long as tens of sweeps: while q(theta) still moves, rows stay at the optima
    that the first one found, and where it has come to rest they are searched again.
    """
    least, searched = tol * problem.total_weight, True
    for last in [*[False] * (_MAX_ROUNDS - 1), True]:
        searched = searched or last
        best = stages.journal.once(_best_rows, problem, state, searched)
        with torch.no_grad():
            before, after = (
                float(problem.elbo_of(raw, state.raw_globals)) for raw in (state.raw_locals, best)
            )
        state = replace(state, raw_locals=best)
        stages.replace_state(state, after)
        if last or stages.spent or (searched and after - before <= least):
            break
        searched = after - before <= least
        if not searched:
            state = stages.solve(problem, state, tol)
    return state


def _best_rows(problem, state, searched):
    objective = problem.objective
    q_theta, before = (
        objective.global_factor(state.raw_globals),
        objective.local_factors(state.raw_locals),
    )
    find = objective.model.best_locals if searched else objective.model.nearest_locals
    return objective.family.raw(find(q_theta, problem.rows.X, objective.family, before))


def other_optima(problem, raw: Tensor, raw_globals: Tensor, tol: float) -> Tensor | None:
    """Return raw factors in which some rows have better optima; None if no row has one."""
    objective = problem.objective
    if not objective.model.coupling.independent:
        margin = 10 * max(tol, ROUGH)
        return objective.better_raw(raw, raw_globals, problem.rows.X, problem.nodes, margin)
    if objective.model.concave_in_latents or not 0 < objective.n_latents <= _MAX_LATENTS:
        return None
    return _move(problem, raw, raw_globals, tol, _frame(problem, raw, raw_globals))


def _move(problem, raw, raw_globals, tol, frame):
    objective = problem.objective
    if len(raw) > SCREENED_ROWS:
        return _move_in_pieces(problem, raw, raw_globals, tol, frame)
    starts, owner = _screen_in_pieces(objective, problem.rows.X, raw, raw_globals, frame)
    if not len(owner):
        return None
    rows = problem.rows
    unit = replace(problem, rows=Rows(rows.X, torch.ones_like(rows.weights)))
    several = unit.restricted(owner)
    state = State(objective.family.raw(starts), {}, raw_globals)
    found = Newton().solve(several, state, max(tol, ROUGH), _LOCAL_ITERATIONS).state.raw_locals
    new = several.row_terms(found, raw_globals)
    old = problem.row_terms(raw, raw_globals)
    best = old.clone().scatter_reduce(0, owner, new, "amax")
    margin = 10 * max(tol, ROUGH)
    wins = (new >= best[owner]) & (new > (old + margin)[owner])
    if not bool(wins.any()):
        return None
    moved = raw.clone()
    moved[owner[wins]] = found[wins]
    return moved


def _move_in_pieces(problem, raw, raw_globals, tol, frame):
    """Search piece by piece: Newton's method holds hundreds of numbers for each start."""
    moved, any_moved = raw.clone(), False
    for part in torch.arange(len(raw), device=raw.device).split(SCREENED_ROWS):
        better = _move(problem.restricted(part), raw[part], raw_globals, tol, frame)
        if better is not None:
            moved[part], any_moved = better, True
    return moved if any_moved else None


def _frame(problem, raw, raw_globals):
    """Return the centre of a grid for all rows, and its half-widths."""
    objective, rows = problem.objective, problem.rows
    theta = objective.space.constrain(objective.global_factor(raw_globals).mean)
    centre, spread = objective.model.initial_locals(theta, rows.X)
    away = (objective.local_factors(raw).mean - centre).abs()
    largest, add_up = rows.ranks.largest, rows.ranks.sum
    reach = _REACH * largest(spread.amax(0)) + largest(away.amax(0))
    return add_up(centre.sum(0)) / rows.n_total, reach


@dataclass(frozen=True)
class _Grid:
    """Points of an axis of the grid, and what a normal around each of them weighs them with."""

    n_latents: int
    axis: Tensor

    @cached_property
    def kernels(self):
        """For each width of the normal, in grid steps: its weights (2-D), and its entropy."""
        steps = torch.arange(len(self.axis), dtype=self.axis.dtype, device=self.axis.device)
        found = []
        for width in _WIDTHS:
            kernel = torch.exp(-0.5 * ((steps.unsqueeze(1) - steps) / width) ** 2)
            found.append((kernel / kernel.sum(0), self.n_latents * math.log(width)))
        return found


def _screen_in_pieces(objective, X, raw, raw_globals, frame):
    """Return the result of `_screen` for all rows, computed for a few at a time."""
    k, means, sds, owners = objective.n_latents, [], [], []
    size = max(1, SCREENED_ELBOS // (_POINTS[k] ** k * len(_WIDTHS)))
    grid = _Grid(k, torch.linspace(-1, 1, _POINTS[k], dtype=X.dtype, device=X.device))
    for first in range(0, len(raw), size):
        part = slice(first, first + size)
        starts, owner = _screen(objective, X[part], raw[part], raw_globals, frame, grid)
        means.append(starts.mean)
        sds.append(starts.sd)
        owners.append(owner + first)
    return DiagonalFactors(torch.cat(means), torch.cat(sds)), torch.cat(owners)


def _screen(objective, X, raw, raw_globals, frame, grid):
    """Return starts near the other optima of every row's ELBO, and the rows they belong to.

    Given the log joint on a grid of z, E log p under N(m, s^2) is a Gaussian blur of these values,
    so the ELBO at all (m, s) of the grid takes one small matrix product for each axis.
    """
    theta = objective.space.constrain(objective.global_factor(raw_globals).mean)
    factors, k = objective.local_factors(raw), objective.n_latents
    centre, reach = frame
    points = centre + reach * torch.cartesian_prod(*[grid.axis] * k).reshape(-1, k)
    density = _densities(objective.model, theta, points, X)
    density = torch.nan_to_num(density, nan=_LOWEST, neginf=_LOWEST, posinf=_LOWEST)
    rows = _find_several(density, k)
    density, mean, sd = density[rows], factors.mean[rows], factors.sd[rows]
    if not len(rows):
        return DiagonalFactors(mean, sd), rows
    step = 2 * reach / (_POINTS[k] - 1)
    blurred = [_blur(density.reshape(len(rows), *[_POINTS[k]] * k), *each) for each in grid.kernels]
    elbo = torch.stack(blurred, 1)
    value = torch.where(_find_peaks(elbo), elbo, -torch.inf).flatten(1)
    top, where = value.topk(min(_CANDIDATES, value.shape[1]), dim=1)
    width = torch.tensor(_WIDTHS, dtype=X.dtype, device=X.device)[where // len(points)]
    means, sds = points[where % len(points)], width.unsqueeze(-1) * step
    here, here_sd = mean.unsqueeze(1), sd.unsqueeze(1)
    away = ((means - here).abs() > 0.5 * here_sd + step) | ((sds / here_sd).log().abs() > 1.0)
    chosen = away.any(-1) & torch.isfinite(top) & (top > top[:, :1] - _COMPARABLE)
    owner, rank = chosen.nonzero(as_tuple=True)
    return DiagonalFactors(means[owner, rank], sds[owner, rank]), rows[owner]


def _find_several(density, n_latents):
    """Return the rows that may have several optima; with one latent, those not log-concave in z.

    Source: Challis & Barber (2013), "Gaussian Kullback-Leibler approximate inference": where the
    log joint is concave in z, so is the ELBO in mean and sd.
    """
    if n_latents > 1:
        return torch.arange(len(density), device=density.device)
    rounding = 8 * torch.finfo(density.dtype).eps * density.abs().amax(1, keepdim=True)
    bent = density.diff(dim=1).diff(dim=1) > rounding
    return bent.any(1).nonzero()[:, 0]


def _densities(model, theta, points, X):
    """Return the log density of every row at every point, shape (n_rows, n_points)."""
    n, at_once = len(X), max(1, SCREENED_CELLS // max(1, len(X) * cells_a_row(X)))
    everyone = torch.arange(n, device=points.device)
    values = [
        model.log_terms(theta, some.repeat_interleave(n, 0), X[everyone.repeat(len(some))])
        for some in points.split(at_once)
    ]
    return torch.cat(values).reshape(len(points), n).mT


def _blur(density, kernel, entropy):
    """Average a function on the grid under a normal around each point, and add its entropy."""
    for dimension in range(1, density.dim()):
        density = torch.tensordot(density, kernel, ([dimension], [0])).movedim(-1, dimension)
    return density.add_(entropy)


def _find_peaks(values):
    """Mark the local maxima of a function on the grid, shape (n_rows, widths, points...)."""
    is_peak = torch.ones_like(values, dtype=torch.bool)
    for axis in range(1, values.dim()):
        n = values.shape[axis]
        inner, outer = values.narrow(axis, 1, n - 1), values.narrow(axis, 0, n - 1)
        is_peak.narrow(axis, 1, n - 1).logical_and_(inner >= outer)
        is_peak.narrow(axis, 0, n - 1).logical_and_(outer > inner)
    return is_peak


def in_order(problem, state: State, tol: float, stages) -> State:
    """Go on from where interchangeable latents are in the model's own order, if they are not."""
    objective = problem.objective
    for _ in range(_REORDERED):
        there = objective.global_factor(state.raw_globals)
        ordered = objective.model.in_order(there, objective.model.n_explained(problem.rows.X))
        if ordered is None or stages.failure or stages.spent:
            break
        raw_globals = objective.global_family.raw(ordered)
        raw = objective.start_locals(raw_globals, problem.rows.X)
        state = stages.solve(problem, State(raw, {}, raw_globals), tol)
    return state
