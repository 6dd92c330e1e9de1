"""Rows' local problems: every factor solved to its own optimum, with q(theta) given."""

from dataclasses import replace

import torch
from torch import Tensor

from skavi._data.rows import Rows
from skavi._fit.defaults import default_solver
from skavi._fit.other_optima import other_basins
from skavi._fit.problem import Problem
from skavi._fit.start import start_locals
from skavi.inference_functions import Table
from skavi.noise import Noise
from skavi.objective import Objective
from skavi.solvers import Newton, State

_LOCAL_ITERATIONS = 200
_COUPLED_ITERATIONS = 10_000
_ROWS_BUDGET = 150_000


def local_problem(problem: Problem, rows: Rows) -> Problem:
    """Return the factorized problem of some rows with q(theta) frozen and unit weights."""
    ones = replace(rows, weights=torch.ones_like(rows.weights))
    return replace(
        problem,
        function=Table(),
        rows=ones,
        features=rows.X,
        frozen_globals=True,
        _kept=[],
    )


def solve_rows(problem: Problem, globals_: Tensor, tol: float, start: Tensor | None = None):
    """Solve every row's local problem with q(theta) frozen; in closed form where there is one.

    Parameters
    ----------
    problem : Problem
    globals_ : Tensor
    tol : float
        Nats a row.
    start : Tensor of shape (n_rows, P), default=None
        Raw parameters to climb from; a closed form does not climb.

    Returns
    -------
    raw : Tensor of shape (n_rows, P)
    converged : bool
    """
    objective, X = problem.objective, problem.rows.X
    if objective.has_coordinate_updates:
        factor = objective.global_factor(globals_)
        best = objective.model.local_optimum(factor, X, objective.family)
        return objective.family.raw(best), True
    raw = start_locals(objective, globals_, X) if start is None else start
    solver, limit = Newton(), _LOCAL_ITERATIONS
    if not objective.model.rowwise:
        solver = default_solver(objective, problem.function, problem.noise, len(raw), 0)
        limit = limit if isinstance(solver, Newton) else _COUPLED_ITERATIONS
    outcome = solver.solve(problem, State({"values": raw}, globals_), tol, limit)
    raw = outcome.state.parameters["values"]
    moved = other_basins(problem, raw, globals_, tol) if objective.model.rowwise else None
    if moved is not None:
        state = State({"values": moved}, globals_)
        outcome = solver.solve(problem, state, tol, limit)
    return outcome.state.parameters["values"], outcome.converged


def chunk_size(objective: Objective, noise: Noise, n_features: int) -> int:
    """Return how many rows to solve at once: Newton's blocks then hold about 100 MB."""
    nodes = noise.nodes(objective.n_drawn_globals, objective.n_latents, 1, None)
    n_nodes = 1 if nodes is None else len(nodes.weights)
    return max(1, _ROWS_BUDGET // (n_nodes * max(objective.n_latents, n_features)))
