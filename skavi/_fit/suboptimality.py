"""Estimate of how far a fit is below the optimum: the solver's part, and that of the noise rule.

A deterministic rule with few draws or nodes shifts the optimum. The loss is estimated by the gain
of one Newton step under an independent, finer rule, with second derivatives under the fit's own.
Where a finer rule is too large, another rule of the same size is used: it adds another error, so
the estimate is twice as large on average.
"""

import math
from dataclasses import replace

import torch

from skavi._curvature import Derivatives
from skavi._fit.defaults import finer_rules
from skavi._fit.problem import Problem
from skavi.solvers import Outcome, Solver

#: Nats in total that the noise rule may cost a converged fit: of 1,472 fits no converged one was
#: more than 10 tol off (certificate.json).
NOISE_TOLERANCE = 2e-3
#: Nats a row and number of its factor (a mean, a log sd) that a network's own may be worse than
#: the row's: a mean that is ten sds off costs as many. Not measured: order of magnitude.
_WORST_GAP = 50.0


def missed_by(problem: Problem, outcome: Outcome, best: float) -> float:
    """Return by how many nats a row a solved network is below `best`, if that is beyond use."""
    missed = (best - outcome.curve[-1]) / problem.total_weight if outcome.converged else 0.0
    return missed if missed > _WORST_GAP * problem.objective.n_outputs else 0.0


def within_gap(problem: Problem, outcome: Outcome, best: float) -> Outcome:
    """Return an outcome said to be no further below than `best`, the ELBO of rows' own factors."""
    end = outcome.state
    gap = best - float(problem.elbo_of(problem.raw(end), end.raw_globals))
    return replace(outcome, suboptimality=min(outcome.suboptimality, gap)) if gap > 0 else outcome


def with_noise_error(
    problem: Problem, solver: Solver, outcome: Outcome, tol: float, solved: float | None = None
) -> tuple[Outcome, Derivatives | None]:
    """Return the outcome with the noise rule's error counted in `suboptimality`, `converged`.

    `solved`: what the solver has left, in nats, where that is known. Second derivatives that were
    found for the estimate come second.
    """
    noise, state = problem.noise, outcome.state
    if not noise.deterministic or not bool(torch.isfinite(state.raw_globals).all()):
        return outcome, None
    setting = problem.setting
    finer = finer_rules(noise, setting) or noise.independent()
    allowed = max(tol * problem.total_weight, NOISE_TOLERANCE)
    if solved is None:
        solved = solver.suboptimality_of(problem, outcome, tol * problem.total_weight)

    curvature = solver.curvature_at(problem, state) if finer else None

    def error_of(finer):
        estimate = solver.suboptimality_at(finer, state, allowed, curvature)
        if math.isfinite(estimate):
            return estimate
        # No second derivatives: the difference of the rules is a bound, though a coarse one.
        return abs(float(finer.elbo(state)) - float(problem.elbo(state)))

    def errors(rules):
        return [error_of(problem.with_noise(rule)) for rule in rules]

    error = max(errors(finer), default=0.0)
    if error > allowed:  # two rules estimate a large error better than one
        error = max([error, *errors(rule for each in finer for rule in each.independent()[:1])])
    counted = replace(
        outcome,
        suboptimality=max(solved, error),
        converged=outcome.converged and error <= allowed,
    )
    return counted, curvature


def nats_below(left: float) -> str:
    """Say how far below its optimum a fit is."""
    if not math.isfinite(left):
        return "an unknown distance below"
    return f"{left:,.0f} nats below" if left >= 100 else f"{left:.2g} nats below"
