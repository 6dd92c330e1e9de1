"""Where an inference function starts: near factors that rows have of their own.

A network's ELBO has many poor local optima: where two basins of a row meet, the function has to
jump, and a gradient never tells it so. Regression on the rows' own factors does, guided by where
they jump, and with a robust loss a few rows that it cannot follow do not spoil the others. So
several networks climb a mixture of both, on a subset of rows with q(theta) given, and the best
goes on.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from skavi._data.rows import Rows
from skavi._fit.defaults import default_solver
from skavi._fit.problem import Problem, Pull
from skavi._numerics.sums import add_up, inner
from skavi.solvers import Adam, Newton, State

_FIRST_SHARE, _SHARE = 0.05, 0.5  # of the ELBO
_ROUNDS = (3, 4, 8)  # iterations of Gauss-Newton; half of the starts go on to the next round
_ITERATIONS, _LAST_ITERATIONS = 7, 4  # at the second share: on a subset of rows, and on all
_PATIENCE = 5  # times as many iterations for other solvers
_KEPT, _LAST = 3, 2  # starts that go on after the rounds, and to all rows
_CLOSE = 0.01  # nats a row below the rows' own factors: nothing to be won by all this
_ROWS = 1000
_EXAMPLES = 2000  # rows between which guided units may turn
_MOST_GUIDED, _KEPT_GUIDED = 80, 4
_GUIDED_BUDGET = 3e8  # rows times parameters
_BUDGET = 3e10  # operations of one Gauss-Newton step from every start
_TOL = 1e-4


def best_start(problem: Problem, targets: Tensor, globals_: Tensor) -> State:
    """Return parameters that bring the function near `targets`, raw factors of all rows.

    One regression does for functions that have one, and where it reaches the targets' own ELBO; of
    several random ones, and of guided ones, the best are brought nearer.
    """
    function, rows = problem.function, problem.rows

    def random_start():
        reading = problem.features, targets, rows.weights, problem.generator
        return State(rows.ask(function.start, *reading), globals_)

    states = [random_start()]
    if function.n_starts == 1 or isinstance(_solver(problem, targets), Adam):
        return states[0]
    with torch.no_grad():
        enough = float(problem.elbo_of(targets, globals_)) - _CLOSE * problem.total_weight
    states, reached = _ranked(problem, states)
    if reached >= enough:
        return states[0]
    states += [random_start() for _ in range(function.n_starts - 1)]
    model = problem.objective.model
    alone = not model.rowwise or model.one_log_joint  # some of its rows would be another model
    if function.guided and not alone:
        states += [State(guided, globals_) for guided in _guided(problem, targets)]
    states, reached = _ranked(problem, states)
    if reached >= enough or alone:
        return states[0]
    few, near = _few(problem, targets, _ROWS)
    nearer = states[: _affordable(few, near)]
    for n_iter in _ROUNDS:
        nearer, _ = _ranked(few, _pulled(few, near, nearer, _FIRST_SHARE, n_iter))
        nearer = nearer[: max(_KEPT, len(nearer) // 2)]
    nearer = _pulled(few, near, nearer[:_KEPT], _SHARE, _ITERATIONS)
    everyone = replace(problem, frozen_globals=True)
    last, _ = _ranked(everyone, [*nearer, states[0]])
    last = _pulled(everyone, targets, last[:_LAST], _SHARE, _LAST_ITERATIONS)
    return _ranked(everyone, last)[0][0]


def _guided(problem, targets):
    """Return the parameters of the regressions, of many guided ones, that come nearest."""
    function = problem.function
    few, near = _few(problem, targets, _EXAMPLES)
    features, weights, family = few.features, few.rows.weights, problem.objective.family
    steps = family.steps(problem.objective.local_factors(near))
    n_numbers = len(features) * _n_parameters(problem, targets)
    found = []
    for _ in range(min(_MOST_GUIDED, int(_GUIDED_BUDGET / n_numbers))):
        reading = features, near, steps, weights, problem.generator
        parameters = function.guided_start(*reading)
        left = (function.evaluate(parameters, features) - near) / steps
        distance = float(inner(weights, left.square().sum(1)))
        if math.isfinite(distance):
            found.append((distance, parameters))
    found.sort(key=lambda pair: pair[0])
    return [parameters for _, parameters in found[:_KEPT_GUIDED]]


def _ranked(problem, states):
    """Sort states by their ELBO; return the best one's as well."""
    with torch.no_grad():
        elbos = torch.stack([problem.elbo(state) for state in states])
    elbos = torch.nan_to_num(elbos, nan=-math.inf)
    return [states[i] for i in elbos.argsort(descending=True)], float(elbos.max())


def _few(problem, targets, most):
    """Restrict the problem, with q(theta) given, to rows that stand for all of them.

    Half of the choice follows the rows' squared distance from their mean, so that no far corner is
    left out, and weights make up for it: Bachem, Lucic & Krause (2018), lightweight coresets.
    """
    rows, n = problem.rows, problem.rows.n_total
    problem = replace(problem, frozen_globals=True)
    if n <= most:
        return _taken(problem, targets, torch.arange(n, device=targets.device))
    if problem.objective.model.ordered:
        index = torch.arange(most, device=targets.device)
        few, near = _taken(problem, targets, index)
        weights = few.rows.weights * n / most
    else:
        group = rows.group
        share = rows.weights / group.sum(add_up(rows.weights))
        centre = group.sum(share @ problem.features)
        distance = share * ((problem.features - centre) ** 2).sum(-1)
        spread = group.sum(add_up(distance)).clamp_min(1e-300)
        chance = group.gather(0.5 * share + 0.5 * distance / spread)
        at = (torch.arange(most).to(chance) + 0.5) / most * add_up(chance)
        index = torch.searchsorted(chance.cumsum(0), at).clamp_max(n - 1)
        few, near = _taken(problem, targets, index)
        weights = few.rows.weights / (most * chance[index])
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
