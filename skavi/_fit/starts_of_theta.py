"""Starts of theta, for models that give none of their own.

Many points are screened: the prior's centre, points dispersed as the prior, and points of the
data's own mean and spread. From the best few, theta is maximised as a point, rows' factors with it;
that takes few numbers and no nodes for theta. At each maximum the curvature gives q(theta) its sds,
so that a raw column is as easy as a standardised one.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skavi._curvature import gradient_of
from skavi._data.blockwise import EVALUATED_NUMBERS
from skavi._data.grouped_rows import GroupedRows
from skavi._data.rows import Rows
from skavi._fit.checkpoint_journal import Journal
from skavi._fit.defaults import default_noise, default_solver
from skavi._fit.iterates import ROUGH
from skavi._fit.problem import Problem
from skavi._fit.stages import Stages
from skavi._fit.start import model_start
from skavi._fit.starts_of_states import start_from_clusters
from skavi._numerics.aligned import aligned
from skavi._numerics.quadrature import sobol_normal
from skavi.families import DiagonalFactors, Point
from skavi.inference_functions import Table
from skavi.objective import Objective
from skavi.solvers import Setting, State
from skavi.solvers._base import unwatched

#: Globals up to which points are screened: Sobol points are sparse in more dimensions. With more
#: globals, up to `_MAX_CLIMBED`, theta is maximised from the model's start alone.
_MAX_SCREENED = 20
#: Globals up to which theta is maximised first. Not measured: order of magnitude.
_MAX_CLIMBED = 100
#: Points at each spread of the prior, and at that of the data, evaluated all at once. Of 128 points
#: the best three led to the lower of two optima with one seed of eight (an HMM of six globals).
_N_POINTS = 512
#: Points at most where they must be evaluated one by one. Not measured: order of magnitude.
_MOST_ONE_BY_ONE = 64
#: Spreads of the points, in those of the prior: wide ones often overflow. Not measured.
_SPREADS = (3.0, 1.0, 0.3)
#: Climbs at most. Not measured: order of magnitude.
_MOST_CLIMBS = 6
#: Climbs at least, if two of them reached the highest maximum; one more than globals where these
#: are fewer, since the points then lie close to each other. Not measured: order of magnitude.
_FEWEST_CLIMBS = 4
#: Iterations of a climb: about 10 are usual. Not measured: order of magnitude.
_MAX_ITER = 60
#: Maxima that are fitted at most. Not measured: order of magnitude.
_FITTED = 3
#: Nats below the best start: q's narrower sds and its correlations seldom make up for more. Not
#: measured: order of magnitude.
_COMPARABLE = 10.0


@dataclass(frozen=True)
class _Climb:
    """A maximum of theta as a point.

    Attributes
    ----------
    height : float
        Its ELBO, in nats, with theta a point.
    state : State
        A start of the fit near it.
    elbo : float
        ELBO of that start, in nats.
    """

    height: float
    state: State
    elbo: float


def starts_of_theta(objective: Objective, rows: Rows, noise, generator, n_init) -> list[State]:
    """Return where a fit starts: one state, or several where the ELBO has several maxima.

    Parameters
    ----------
    objective : Objective
    rows : Rows
    noise : Noise
        The first rule of the fit.
    generator : torch.Generator
    n_init : int or None
        How many starts; None: as many as there are maxima, at most three and one that confirms the
        first.
    """
    own = model_start(objective, rows, generator)
    if not _is_searched(objective, rows, noise):
        more = (n_init or rows.ranks.first_rank(objective.model.n_starts(rows.X))) - 1
        return [own, *(_another(objective, rows, own, generator, i) for i in range(more))]
    few = objective.model.coupling.representatives(rows) or rows
    with torch.no_grad():
        climbs = _climb_all(objective, few, own, noise, generator, n_init)
    if not climbs:
        return [own]
    kept = climbs[:n_init] if n_init else _choose(climbs, few)
    starts = [climb.state for climb in kept]
    return starts if few is rows else [_for_all(objective, rows, each) for each in starts]


def _is_searched(objective, rows, noise):
    """Say whether theta's start is searched for: the model gives none, and the noise is fixed."""
    if not 0 < objective.space.size <= _MAX_CLIMBED or objective.has_coordinate_updates:
        return False
    given = rows.ask(objective.model.initial_globals, rows.X, rows.weights)
    return given is None and noise.deterministic


def _another(objective, rows, own, generator, i):
    """Return one more start of a model that has its own: another draw, or a point around it."""
    state = model_start(objective, rows, generator)
    if not torch.equal(state.raw_globals, own.raw_globals) or not objective.space.size:
        return state
    factor, (_, spread) = objective.global_factor(own.raw_globals), objective.space.start(generator)
    away = aligned(sobol_normal(2, objective.space.size, i))[0].to(factor.mean)
    moved = DiagonalFactors(factor.mean + spread.to(away) * away, factor.sd)
    return _for_all(objective, rows, State(None, {}, objective.global_family.raw(moved)))


def _for_all(objective, rows, state):
    raw_locals = objective.start_locals(state.raw_globals, rows.X)
    return State(raw_locals, {}, state.raw_globals)


# --- screening ------------------------------------------------------------------------------------


def _climb_all(objective, rows, own, noise, generator, n_init):
    """Climb from the model's start and the best points; return the maxima, best first."""
    point = replace(objective, global_family=Point())
    setting = Setting(point, Table(), None, rows.n_total)
    rule = default_noise(setting)
    if not rule.deterministic:
        return []
    problem = Problem(point, Table(), rows, rows.X, rule, generator)
    whole = Problem(objective, Table(), rows, rows.X, noise, generator)
    size, centre = objective.space.size, objective.global_factor(own.raw_globals).mean
    starts = [centre]
    if size <= _MAX_SCREENED:
        starts = _rank(problem, torch.cat([centre[None], _points(objective, rows, generator)]))
    starts = start_from_clusters(objective, rows, centre) + starts
    fewest = n_init or min(_FEWEST_CLIMBS, 1 + size)
    found: list[_Climb] = []
    for u in starts[: max(_MOST_CLIMBS, n_init or 0)]:
        climb = _climb(problem, whole, u)
        if climb is not None and math.isfinite(climb.elbo):
            found.append(climb)
        if len(found) >= fewest and len(_peers_of_best(found, rows)) > 1:
            break
    return sorted(found, key=lambda climb: -climb.elbo)


def _peers_of_best(climbs, rows):
    """Return the climbs that reached the highest maximum."""
    best = max(climbs, key=lambda climb: climb.height)
    return [climb for climb in climbs if _is_same(climb, best, rows)]


def _is_same(one, other, rows):
    """Say whether two climbs reached maxima of the same height, to the precision of a climb."""
    same = 10 * ROUGH * rows.total_weight + 1e-6 * abs(one.height)
    return abs(one.height - other.height) <= same


def _points(objective, rows, generator):
    """Return unconstrained points, shape (n_points, size)."""
    space, size = objective.space, objective.space.size
    centre, spread = (each.to(rows.weights) for each in space.start(generator))
    seed = int(torch.randint(2**31, (), generator=generator))
    own_mean, own_spread = _scale_of_data(objective, rows, centre, spread)
    scales = [(centre, each * spread) for each in _SPREADS] + [(own_mean, own_spread)]
    noise = aligned(sobol_normal(2 * _N_POINTS * len(scales), size, seed)).to(centre)
    parts = noise[: _N_POINTS * len(scales)].split(_N_POINTS)
    pairs = zip(scales, parts, strict=True)
    return torch.cat([mean + width * part for (mean, width), part in pairs])


def _scale_of_data(objective, rows, centre, spread):
    """Return the mean and spread of points with the data's own location and scale.

    Real globals lie like cells of X, and the logs of positive ones near the log of its sd.
    """
    X, space = rows.X, objective.space
    if isinstance(X, GroupedRows):
        X = objective.model.explained(X)
    values = X[torch.isfinite(X)] if isinstance(X, Tensor) else rows.weights
    add_up = rows.ranks.sum
    count = add_up(values.new_tensor(float(len(values)))).clamp_min(1.0)
    mean = add_up(values.sum()) / count
    sd = (add_up(((values - mean) ** 2).sum()) / count).sqrt().clamp_min(1e-8)
    centre, spread = centre.clone(), spread.clone()
    for name, where in space.slices.items():
        if space.is_real(name):
            centre[where], spread[where] = mean, sd
        elif space.is_positive(name):
            centre[where], spread[where] = sd.log(), 0.5
    return centre, spread


def _rank(problem, points):
    """Return the points in order of their ELBO, rows at their starts; only finite ones."""

    def own_height(u):
        terms = problem.row_terms(_state(problem, u).raw_locals, u)
        return problem.own_sum(terms, u, problem.rows.weights).reshape(())

    n_nodes = 1 if problem.nodes is None else len(problem.nodes.weights)
    at_once = max(1, EVALUATED_NUMBERS // max(1, n_nodes * problem.rows.X.numel()))
    add_up, heights = problem.rows.ranks.sum, points.new_full((len(points),), math.nan)
    if problem.objective.batched:
        heights = add_up(torch.func.vmap(own_height, chunk_size=at_once)(points))
    if bool(heights.isnan().all()):  # not in one batch, or an error at one of the points
        points = points[:: max(1, len(points) // _MOST_ONE_BY_ONE)]
        heights = add_up(torch.stack([own_height(u) for u in points]))
    heights = torch.nan_to_num(heights, nan=-math.inf, posinf=-math.inf)
    order = heights.argsort(descending=True)
    return [points[i] for i in order.tolist() if math.isfinite(heights[i])]


def _state(problem, u):
    return State(problem.objective.start_locals(u, problem.rows.X), {}, u)


# --- climbing -------------------------------------------------------------------------------------


def _climb(problem, whole, u):
    """Maximise theta as a point, and return the start that its curvature gives; None if none."""
    solver = default_solver(problem.setting)
    stages = Stages(solver, _MAX_ITER, unwatched, Journal())
    try:
        stages.solve(problem, _state(problem, u), ROUGH)
    except (FloatingPointError, ValueError, torch.linalg.LinAlgError):
        return None
    outcome = stages.outcome
    assert outcome is not None
    state = outcome.state
    sd = _curvature_sd(problem, state)
    raw_globals = whole.objective.global_family.raw(DiagonalFactors(state.raw_globals, sd))
    start = State(state.raw_locals, {}, raw_globals)
    return _Climb(outcome.curve[-1], start, float(whole.elbo(start)))


def _curvature_sd(problem, state):
    """Return the sds of a mean-field q(theta): one over the root of the curvature, or the prior's.

    With q normal and the other factors held, the optimal variance is one over the expected
    curvature of the log joint (Opper & Archambeau 2009, "The variational Gaussian approximation
    revisited", equation 8), here at the mean.
    """
    _, spread = problem.objective.space.start(torch.Generator().manual_seed(0))
    spread = spread.to(state.raw_globals)
    with torch.enable_grad():
        u = state.raw_globals.detach().requires_grad_(True)
        value = problem.elbo_of(state.raw_locals.detach(), u)
        (slope,) = gradient_of(value, (u,), create_graph=True)
        curvature = torch.stack([-gradient_of(each, (u,))[0][i] for i, each in enumerate(slope)])
    known = torch.isfinite(curvature) & (curvature > 0)
    sd = torch.where(known, curvature, spread**-2).rsqrt()
    return torch.where(problem.objective.space.is_flat(sd), sd, torch.minimum(sd, spread))


def _choose(climbs, rows):
    """Return the best maximum, one that confirms it, and others of comparable height."""
    best, chosen = climbs[0], [climbs[0]]
    for climb in climbs[1:]:
        differs = not any(_is_same(climb, other, rows) for other in chosen)
        if differs and climb.elbo > best.elbo - _COMPARABLE and len(chosen) < _FITTED:
            chosen.append(climb)
    if len(chosen) > 1:
        again = [climb for climb in climbs[1:] if _is_same(climb, best, rows)]
        chosen[1:1] = again[:1]
    return chosen
