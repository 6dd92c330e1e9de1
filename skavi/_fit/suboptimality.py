"""How far a fit may be below the optimum: what its solver left over, and what its noise rule did.

A deterministic rule of few draws or nodes has an optimum of its own. An independent, finer rule
tells how far off that is: the gain of one Newton step under it. Where a finer one is too large,
other draws as many do: each adds its own error, so that they say twice as much on average.
"""

from dataclasses import replace

import torch

from skavi._fit.defaults import affordable
from skavi._fit.problem import Problem
from skavi.solvers import Outcome, Solver

#: Nats in all that a noise rule may cost a fit that counts as converged.
NOISE_TOLERANCE = 2e-3


def with_noise_error(problem: Problem, solver: Solver, outcome: Outcome, tol: float) -> Outcome:
    """Return the outcome with the noise rule's part in `suboptimality` and `converged`."""
    noise, state = problem.noise, outcome.state
    if not noise.deterministic or not bool(torch.isfinite(state.raw_globals).all()):
        return outcome
    setting = problem.setting
    finer = [rule for rule in noise.refined() if affordable(rule, setting)] or noise.independent()
    allowed = max(tol * problem.total_weight, NOISE_TOLERANCE)
    solved = solver.leftover(problem, outcome, tol * problem.total_weight)

    def errors(rules):
        finer_problems = (problem.with_noise(rule) for rule in rules)
        return [solver.remaining(finer, state, allowed) for finer in finer_problems]

    error = max(errors(finer), default=0.0)
    if error > allowed:  # how much too coarse, two rules say better than one
        error = max([error, *errors(rule for each in finer for rule in each.independent()[:1])])
    return replace(
        outcome,
        suboptimality=max(solved, error),
        converged=outcome.converged and error <= allowed,
    )
