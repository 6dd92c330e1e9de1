"""How far a fit may be below the optimum: what its solver left over, and what its noise rule did.

A deterministic rule of few draws or nodes has an optimum of its own. An independent, finer rule
tells how far off that is: the gain of one Newton step under it. Where a finer one is too large,
other draws as many do: each adds its own error, so that they say twice as much on average.
"""

from dataclasses import replace

import torch

from skavi._fit.defaults import affordable
from skavi._fit.problem import Problem
from skavi.solvers import Newton, Outcome, Solver
from skavi.solvers._loss import remaining

#: Nats in all that a noise rule may cost a fit that counts as converged.
NOISE_TOLERANCE = 2e-3


def certified(problem: Problem, solver: Solver, outcome: Outcome, tol: float) -> Outcome:
    """Return the outcome with the noise rule's part in `suboptimality` and `converged`."""
    noise = problem.noise
    if not noise.deterministic or not bool(torch.isfinite(outcome.state.globals_).all()):
        return outcome
    here = problem.objective, problem.function, problem.rows.n_total
    finer = [rule for rule in noise.refined() if affordable(rule, *here)] or noise.independent()
    allowed = max(tol * problem.total_weight, NOISE_TOLERANCE)
    solved = _left_by(solver, problem, outcome, tol * problem.total_weight)

    def biases(rules):
        bounds = (problem.with_noise(rule) for rule in rules)
        return [_remaining(bound, solver, outcome.state, allowed) for bound in bounds]

    bias = max(biases(finer), default=0.0)
    if bias > allowed:  # how much too coarse, two rules say better than one
        bias = max([bias, *biases(rule for each in finer for rule in each.independent()[:1])])
    return replace(
        outcome,
        suboptimality=max(solved, bias),
        converged=outcome.converged and bias <= allowed,
    )


def _left_by(solver, problem, outcome, tol):
    """Return what the solver left over, in nats: by the Hessian where it did not look at that.

    Adam watches gains alone, and Gauss-Newton steps of a network are damped and leave out its own
    curvature. Minibatches are for data that a few hundred passes are too many for.
    """
    table_or_linear = problem.function.tabular or problem.function.linear
    damped = isinstance(solver, Newton) and not table_or_linear
    whole = getattr(solver, "batch_size", None) in (None, problem.rows.n_total)
    if damped or (not solver.needs_deterministic_noise and whole):
        return max(outcome.suboptimality, remaining(problem, outcome.state, tol))
    return outcome.suboptimality


def _remaining(problem, solver, state, tol):
    if isinstance(solver, Newton):
        return solver.begin(problem, state, 1.0).decrement()
    return remaining(problem, state, tol)
