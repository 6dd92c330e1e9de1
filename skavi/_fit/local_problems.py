"""Local problems: the optimal factor of each row, with q(theta) given."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from skavi._curvature import arrow_derivatives
from skavi._data.blockwise import SOLVED_NUMBERS
from skavi._data.rows import Rows
from skavi._fit.defaults import default_solver, evaluation_noise
from skavi._fit.other_optima import other_optima
from skavi._fit.problem import Problem
from skavi.inference_functions import Table
from skavi.noise import Noise
from skavi.objective import Objective
from skavi.solvers import Newton, State

#: Newton steps a row: about 10 are usual, rows with shortened steps need more. Not measured:
#: order of magnitude.
_LOCAL_ITERATIONS = 200
#: Rows whose factors are solved after random steps: it takes as long as `transform`.
_FEW_ROWS = 256
#: Iterations of L-BFGS for coupled rows: each is cheap. Not measured: order of magnitude.
_COUPLED_ITERATIONS = 10_000


def local_problem(problem: Problem, rows: Rows) -> Problem:
    """Return the factorized problem of some rows with q(theta) frozen and unit weights."""
    ones = replace(rows, weights=torch.ones_like(rows.weights))
    return replace(
        problem,
        function=Table(),
        rows=ones,
        features=rows.X,
        frozen_globals=True,
        nodes=None,
    )


def solve_rows(problem: Problem, raw_globals: Tensor, tol: float, start: Tensor | None = None):
    """Solve every row's local problem with q(theta) frozen, in closed form where possible.

    Parameters
    ----------
    problem : Problem
    raw_globals : Tensor
    tol : float
        Nats a row.
    start : Tensor of shape (n_rows, P), default=None
        Raw parameters to start from; in closed form no row ends below them.

    Returns
    -------
    raw : Tensor of shape (n_rows, P)
    converged : bool
    """
    objective, X = problem.objective, problem.rows.X
    best = objective.best_raw(raw_globals, X, problem.nodes, start)
    if best is not None:
        return best, True
    raw = objective.start_locals(raw_globals, X) if start is None else start
    if not objective.n_latents:
        return raw, True  # a row's factor has no numbers
    apart = objective.model.coupling.separable
    solver = Newton() if apart else default_solver(problem.setting)
    limit = _LOCAL_ITERATIONS if solver.second_order else _COUPLED_ITERATIONS
    outcome = solver.solve(problem, State(raw, {}, raw_globals), tol, limit)
    solved = outcome.state.raw_locals
    assert solved is not None
    moved = other_optima(problem, solved, raw_globals, tol)
    if moved is not None:
        outcome = solver.solve(problem, State(moved, {}, raw_globals), tol, limit)
    return outcome.state.raw_locals, outcome.converged


def with_rows_at_rest(problem: Problem, state: State, tol: float) -> State | None:
    """Return the state with rows' own factors solved after random steps; None if they are many.

    Where a latent fades away such steps leave its factors far from the prior.
    """
    rows, random = problem.rows, not problem.noise.deterministic
    few = rows.ranks.size == 1 and len(rows) <= _FEW_ROWS
    if not (random and few and state.n_owned and problem.objective.model.coupling.independent):
        return None
    frozen = local_problem(problem, rows).with_noise(evaluation_noise(problem.objective, len(rows)))
    return replace(state, raw_locals=solve_rows(frozen, state.raw_globals, tol)[0])


def estimated_misses(problem: Problem, raw: Tensor, raw_globals: Tensor) -> Tensor:
    """Return how many nats each row's factor is below its optimum, by one Newton step, (n_rows,).

    Half the gradient times the step; infinite where the ELBO is not concave there.
    """
    derivatives = arrow_derivatives(problem, raw, raw_globals)
    upper, failed = torch.linalg.cholesky_ex(-derivatives.H)
    white = torch.linalg.solve_triangular(upper, derivatives.g.unsqueeze(-1), upper=False)
    miss = 0.5 * white.square().sum((-1, -2))
    sound = (failed == 0) & miss.isfinite()
    return torch.where(sound, miss, torch.full_like(miss, math.inf))


def refined(problem: Problem, raw: Tensor, raw_globals: Tensor, nats: float, tol: float) -> Tensor:
    """Return the rows' factors, in which those estimated to miss by more than `nats` are solved."""
    far = estimated_misses(problem, raw, raw_globals) > nats
    if not bool(far.any()):
        return raw
    index = torch.nonzero(far)[:, 0]
    needed = problem.objective.model.coupling.needed_for(index)
    if needed is None:  # terms need all rows at once
        solved, _ = solve_rows(problem, raw_globals, tol, raw)
        return torch.where(far.unsqueeze(-1), solved, raw)
    some = local_problem(problem, problem.rows[index])
    solved, _ = solve_rows(some, raw_globals, tol, raw[index])
    return raw.index_copy(0, index, solved)


def approached(objective: Objective, X, raw: Tensor, raw_globals: Tensor, nats: float):
    """Return raw factors uphill, within `nats` of optima; None where that is no closed form's.

    Closed forms bring all rows as near at the price of the estimate that `refined` starts with.
    """
    if objective.has_states or not objective.has_coordinate_updates:
        return None
    q_theta, factors = objective.global_factor(raw_globals), objective.local_factors(raw)
    near = objective.model.approached_locals(q_theta, X, objective.family, factors, nats)
    return objective.family.raw(near)


def chunk_size(objective: Objective, noise: Noise, n_features: int) -> int:
    """Return how many rows to solve at once, so that Newton's blocks take about 100 MB."""
    nodes = noise.nodes(objective.n_drawn_globals, objective.n_latents, 1, None)
    n_nodes = 1 if nodes is None else len(nodes.weights)
    return max(1, SOLVED_NUMBERS // (n_nodes * max(objective.n_latents, n_features)))
