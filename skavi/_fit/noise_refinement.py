"""Refinement of automatically chosen noise rules until the ELBO no longer changes."""

import math

from skavi._fit.defaults import affordable, nearly_exact
from skavi._fit.iterates import ROUGH
from skavi._fit.suboptimality import NOISE_TOLERANCE
from skavi.noise import GaussHermite

#: Refinements, each about doubling one count of nodes. Not measured: order of magnitude.
_MAX_REFINEMENTS = 6
#: Nodes over a row's latents: three rows of Student t, whose sds are wide beside the noise, went on
#: from 48 nodes a latent to 192, for 3e-5 nats and five times the seconds.
_CHEAP_NODES = 1000


def refine_noise(problem, began, state, tol, stages):
    """Refine an automatically chosen rule until the ELBO no longer changes.

    A run that exploited the errors of a coarse rule ends where a finer one is no higher than at
    its start `began`: then the next run starts there, and not where the last one ended.
    """
    for _ in range(_MAX_REFINEMENTS):
        if stages.failure or (stages.outcome.stuck and not _exploits(problem, began, state)):
            break
        old = float(problem.elbo(state))
        finer_rule, worst = None, _resolution(problem, tol, old)
        for finer in problem.noise.refined():
            if not affordable(finer, problem.setting):
                continue
            change = abs(float(problem.with_noise(finer).elbo(state)) - old)
            if not change <= worst:
                finer_rule, worst = finer, math.inf if math.isnan(change) else change
        if finer_rule is None:
            break
        problem = problem.with_noise(finer_rule)
        if _elbo(problem, began) > _elbo(problem, state):
            state = began
        state = stages.solve(problem, state, max(tol, ROUGH))
    return problem, state


def _exploits(problem, began, state):
    """Say whether a finer rule puts the end of a run below its start."""
    finer = [rule for rule in problem.noise.refined() if affordable(rule, problem.setting)]
    problems = [problem.with_noise(rule) for rule in finer]
    return any(_elbo(each, began) > _elbo(each, state) for each in problems)


def _elbo(problem, state):
    """Return the ELBO, in nats; minus infinity where it is not a number."""
    value = float(problem.elbo(state))
    return -math.inf if math.isnan(value) else value


def _resolution(problem, tol, elbo):
    """Return the largest difference between two rules to accept, in nats.

    It is 1e-7 relative where that is cheap to reach, else `NOISE_TOLERANCE`.
    """
    exact = tol * problem.total_weight + 1e-7 * abs(elbo)
    objective, noise = problem.objective, problem.noise
    n_noise = objective.n_latents * objective.n_colours(len(problem.rows))
    fine = isinstance(noise, GaussHermite) and noise.count_nodes(0, n_noise) > _CHEAP_NODES
    if nearly_exact(noise, objective, problem.rows.n_total) and not fine:
        return exact
    return max(exact, NOISE_TOLERANCE)
