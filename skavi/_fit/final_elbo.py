"""The ELBO at the end of a fit, with more draws than the solver used, and its standard error."""

import math
from dataclasses import replace

import torch

from skavi._data.blockwise import FINAL_CELLS
from skavi._data.rows import cells_a_row
from skavi._fit.defaults import final_noise
from skavi._fit.problem import Problem
from skavi.solvers import State

#: Standard error, relative to the ELBO, or to a nat a cell where that is more (densities may add up
#: to anything, zero too): a hundredth of the 1 % that the paper calls close.
_SE_TARGET = 1e-4
#: Standard error, as a share of what the fit was solved to, that is small enough: where that is
#: coarse, more digits take longer than the fit itself (8 s of 17 on 1,400 digits).
_SHARE_OF_TOL = 0.5
#: Evaluations at least: their spread gives the standard error, with 7 degrees of freedom
#: (test_problem).
_FEWEST_EVALUATIONS = 8
#: Evaluations at most: 64 have an eighth of the standard error of one.
_MAX_EVALUATIONS = 64
#: Draws of each of the first evaluations; more follow where the error is too large (cc9b965).
_FEWEST_DRAWS = 16
#: Draws of an evaluation at most: more evaluations lower the error as well, and hold less.
_MOST_DRAWS = 128
#: Seed of the first evaluation: high, so that a fit's own seed hardly gives the same draws.
_SEED = 10_000
#: Cells x draws of all evaluations together, which bounds the time. Not measured: order of
#: magnitude.
_WORK_BUDGET = 2_000_000_000


def final_elbo(problem: Problem, state: State, tol: float = 0.0) -> tuple[float, float]:
    """Evaluate the ELBO at the end of a fit, exactly or to a relative standard error of 1e-4.

    It takes few draws at first, and more where the standard error is too large, in bounded memory.
    Half of `tol`, the nats a row that the fit was solved to, is small enough.
    """
    if problem.noise.deterministic and problem.noise.n_draws is None:
        return float(problem.elbo(state)), 0.0
    objective, X = problem.objective, problem.rows.X
    own = problem.noise.n_draws or 1
    most = max(_MOST_DRAWS, 2 * own)
    n_cells = max(1, int(problem.rows.ranks.sum(torch.tensor(X.numel()))))
    most = max(4, min(most, FINAL_CELLS // n_cells))
    # All first evaluations together take as many draws as one evaluation of the solver.
    n_draws = min(max(_FEWEST_DRAWS, own // _FEWEST_EVALUATIONS), most)
    enough = _SHARE_OF_TOL * tol * problem.total_weight
    while True:
        rule = final_noise(objective, len(X), n_draws)
        n_draws = rule.n_draws  # the rule takes more in many dimensions
        last = n_draws >= most
        affordable_ones = max(_FEWEST_EVALUATIONS, _WORK_BUDGET // (n_draws * n_cells))
        limit = min(_MAX_EVALUATIONS, affordable_ones) if last else _FEWEST_EVALUATIONS
        mean, se = _evaluate(problem, state, n_draws, limit, n_cells, enough)
        if last or _is_precise(mean, se, n_cells, enough):
            return mean, se
        n_draws = min(4 * n_draws, most)


def _evaluate(problem, state, n_draws, limit, n_cells, enough):
    """Return the mean of at most `limit` evaluations of the ELBO, and its standard error."""
    objective, X, values = problem.objective, problem.rows.X, []
    size = max(1, FINAL_CELLS // (n_draws * cells_a_row(X)))
    mean, se = math.nan, math.inf
    for seed in range(limit):
        rule = final_noise(objective, len(X), n_draws, _SEED + seed)
        generator = torch.Generator().manual_seed(_SEED + seed)
        with torch.no_grad():
            under = replace(problem.with_noise(rule), generator=generator)
            values.append(float(under.elbo_in_parts(state, size)))
        if len(values) < _FEWEST_EVALUATIONS:
            continue
        mean = sum(values) / len(values)
        spread = math.fsum((value - mean) * (value - mean) for value in values) / (len(values) - 1)
        se = math.sqrt(spread / len(values))
        if _is_precise(mean, se, n_cells, enough):
            break
    return mean, se


def _is_precise(mean, se, n_cells, enough):
    return se < max(_SE_TARGET * max(abs(mean), n_cells), enough)
