"""Where an inference function starts: near factors that rows have of their own.

A network's ELBO has many poor local optima: where two basins of a row meet, the function has to
jump, and a gradient never tells it so. Regression on the rows' own factors does, and with a robust
loss a few rows that it cannot follow do not spoil the others. So several random networks climb a
mixture of both, on a subset of rows with q(theta) given, and the best goes on.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from skavi._choice import default_solver
from skavi._problem import Problem, Pull
from skavi._rows import Rows
from skavi.solvers import Adam, Newton, State

_SHARES = (0.05, 0.5)  # of the ELBO, stage by stage
_ITERATIONS = (15, 7)  # of Gauss-Newton; others need more
_PATIENCE = 5
_KEPT = 3  # starts that go on after the first stage
_CLOSE = 0.01  # nats a row below the rows' own factors: nothing to be won by all this
_ROWS = 1000
_BUDGET = 3e10  # operations of one Gauss-Newton step from every start
_TOL = 1e-4


def best_start(problem: Problem, targets: Tensor, globals_: Tensor) -> State:
    """Return parameters that bring the function near `targets`, raw factors of all rows.

    One regression does for functions that have one; of several random ones, the best is brought
    nearer where it falls short of the targets' own ELBO.
    """
    function, weights = problem.function, problem.rows.weights
    reading = problem.features, targets, weights, problem.generator
    states = [
        State(problem.rows.ask(function.start, *reading), globals_)
        for _ in range(1 if isinstance(_solver(problem, targets), Adam) else function.n_starts)
    ]
    if len(states) == 1:
        return states[0]
    with torch.no_grad():
        elbos = _elbos(problem, states)
        best = int(elbos.argmax())
        short = float(problem.elbo_of(targets, globals_)) - float(elbos[best])
    model = problem.objective.model
    if short <= _CLOSE * problem.total_weight:
        return states[best]
    if not model.rowwise or model.one_log_joint:
        return states[best]  # a subset of rows would be another model
    few, near = _few(problem, targets)
    first, second = zip(_SHARES, _ITERATIONS, strict=True)
    states = _ranked(few, _pulled(few, near, states[: _affordable(few, near)], *first))
    states = _pulled(few, near, states[:_KEPT], *second)
    everyone = replace(problem, frozen_globals=True)
    return _pulled(everyone, targets, _ranked(everyone, states)[:1], *second)[0]


def _ranked(problem, states):
    with torch.no_grad():
        order = _elbos(problem, states).argsort(descending=True)
    return [states[i] for i in order]


def _elbos(problem, states):
    elbos = torch.stack([problem.elbo(state) for state in states])
    return torch.nan_to_num(elbos, nan=-math.inf)


def _few(problem, targets):
    """Restrict the problem, with q(theta) given, to rows that stand for all of them.

    Half of the choice follows the rows' squared distance from their mean, so that no far corner is
    left out, and weights make up for it: Bachem, Lucic & Krause (2018), lightweight coresets.
    """
    rows, n = problem.rows, problem.rows.n_total
    problem = replace(problem, frozen_globals=True)
    if n <= _ROWS:
        return _taken(problem, targets, torch.arange(n, device=targets.device))
    if problem.objective.model.ordered:
        index = torch.arange(_ROWS, device=targets.device)
        few, near = _taken(problem, targets, index)
        weights = few.rows.weights * n / _ROWS
    else:
        group = rows.group
        share = rows.weights / group.sum(rows.weights.sum())
        centre = group.sum(share @ problem.features)
        distance = share * ((problem.features - centre) ** 2).sum(-1)
        spread = group.sum(distance.sum()).clamp_min(1e-300)
        chance = group.gather(0.5 * share + 0.5 * distance / spread)
        at = (torch.arange(_ROWS).to(chance) + 0.5) / _ROWS * chance.sum()
        index = torch.searchsorted(chance.cumsum(0), at).clamp_max(n - 1)
        few, near = _taken(problem, targets, index)
        weights = few.rows.weights / (_ROWS * chance[index])
    return replace(few, rows=Rows(few.rows.X, weights)), near


def _taken(problem, targets, index):
    """Return the problem of some of all ranks' rows, on every rank, and their targets."""
    problem.nodes()
    rows, take = problem.rows, problem.rows.group.take
    few = replace(problem, rows=rows.take(index), features=take(problem.features, index))
    return few, take(targets, index)


def _pulled(problem, targets, states, share, n_iter):
    """Climb a mixture of ELBO and pull from every state."""
    objective, solver = problem.objective, _solver(problem, targets)
    steps = objective.family.steps(objective.local_factors(targets))
    problem = replace(problem, pull=Pull(share, targets, steps))
    n_iter *= 1 if isinstance(solver, Newton) else _PATIENCE
    return [solver.solve(problem, s, _TOL, n_iter).state.copied() for s in states]


def _solver(problem, targets):
    here = problem.objective, problem.function, problem.noise, problem.rows.n_total
    return default_solver(*here, _n_parameters(problem, targets))


def _n_parameters(problem, targets):
    return problem.function.n_parameters(problem.features.shape[1], targets.shape[1])


def _affordable(problem, targets):
    """Count the starts that may be tried."""
    size = _n_parameters(problem, targets)
    return max(2, int(_BUDGET / (targets.numel() * size**2 + size**3)))
