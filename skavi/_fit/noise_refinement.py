"""Refinement of automatically chosen noise rules until the ELBO no longer changes."""

import math

from skavi._fit.defaults import finer_rules, nearly_exact
from skavi._fit.few_rows import begun_on_few
from skavi._fit.iterates import ROUGH
from skavi._fit.nonfinite import elbo_or_lowest
from skavi._fit.suboptimality import NOISE_TOLERANCE
from skavi.noise import GaussHermite, LinearPredictor

#: Refinements, each about doubling one count of nodes. Not measured: order of magnitude.
_MAX_REFINEMENTS = 6
#: Nats a row to which a rule is solved whose errors are not known yet. To 1e-4 the nonlinear model
#: took 58 iterations in place of 20 (10,000 rows), 28 of them to climb 800 nats of errors.
_FAR = 0.01
#: Nodes over a row's latents: three rows of Student t, whose sds are wide beside the noise, went on
#: from 48 nodes a latent to 192, for 3e-5 nats and five times the seconds.
_CHEAP_NODES = 1000
#: Nodes of the predictor of a cell whose row has latents: one row of Student t cells went on from
#: 40 to 320, for 1e-3 nats and four times the seconds.
_CHEAP_PREDICTOR_NODES = 20


def solve_roughly(problem, state, tol, stages):
    """Solve under the first rule that is fine enough, as far as known; return problem and state.

    Second-order steps exploit the errors of coarse rules, which are left early.
    """
    state = stages.journal.once(begun_on_few, problem, state, stages)
    began, far = state, max(tol, _FAR if stages.solver.second_order else ROUGH)
    for _ in range(_MAX_REFINEMENTS):
        state = stages.solve(problem, state, far)
        if far <= max(tol, ROUGH) or stages.failure or not stages.outcome.converged:
            return problem, state
        finer = _finer_rule(problem, state, tol)
        if finer is None:
            break
        problem, state = _under(finer, problem, began, state)
    if stages.outcome.suboptimality > max(tol, ROUGH) * problem.total_weight:
        state = stages.solve(problem, state, max(tol, ROUGH))
    return problem, state


def refine_noise(problem, began, state, tol, stages):
    """Refine an automatically chosen rule until the ELBO no longer changes.

    A run that exploited the errors of a coarse rule ends where a finer one is no higher than at
    its start `began`: then the next run starts there, and not where the last one ended.
    """
    for _ in range(_MAX_REFINEMENTS):
        if stages.failure or (stages.outcome.stuck and not _exploits(problem, began, state)):
            break
        finer = _finer_rule(problem, state, tol)
        if finer is None:
            break
        problem, state = _under(finer, problem, began, state)
        state = stages.solve(problem, state, max(tol, ROUGH))
    return problem, state


def _finer_rule(problem, state, tol):
    """Return the finer rule that changes the ELBO most; None if none does by what counts."""
    old, finer_rule = float(problem.elbo(state)), None
    worst = _resolution(problem, tol, old)
    for finer in finer_rules(problem.noise, problem.setting):
        change = abs(float(problem.with_noise(finer).elbo(state)) - old)
        if not change <= worst:
            finer_rule, worst = finer, math.inf if math.isnan(change) else change
    return finer_rule


def _under(rule, problem, began, state):
    """Return the problem under another rule, and where to start."""
    problem = problem.with_noise(rule)
    lower = elbo_or_lowest(problem, began) > elbo_or_lowest(problem, state)
    return problem, began if lower else state


def _exploits(problem, began, state):
    """Say whether a finer rule puts the end of a run below its start."""
    finer = finer_rules(problem.noise, problem.setting)
    problems = [problem.with_noise(rule) for rule in finer]
    return any(elbo_or_lowest(each, began) > elbo_or_lowest(each, state) for each in problems)


def _resolution(problem, tol, elbo):
    """Return the largest difference between two rules to accept, in nats.

    It is 1e-7 relative where that is cheap to reach, else `NOISE_TOLERANCE`.
    """
    exact = tol * problem.total_weight + 1e-7 * abs(elbo)
    objective, noise = problem.objective, problem.noise
    n_noise = objective.n_latents * objective.n_colours(len(problem.rows))
    cheap = {GaussHermite: _CHEAP_NODES, LinearPredictor: _CHEAP_PREDICTOR_NODES}
    fine = n_noise > 0 and noise.count_nodes(0, n_noise) > cheap.get(type(noise), math.inf)
    if nearly_exact(noise, objective, problem.rows.n_total) and not fine:
        return exact
    return max(exact, NOISE_TOLERANCE)
