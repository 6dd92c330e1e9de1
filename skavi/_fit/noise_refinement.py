"""Refinement of automatically chosen noise rules until the ELBO no longer changes."""

from skavi._fit.defaults import affordable, nearly_exact
from skavi._fit.iterates import ROUGH
from skavi._fit.suboptimality import NOISE_TOLERANCE

#: Refinements, each about doubling one count of nodes. Not measured: order of magnitude.
_MAX_REFINEMENTS = 6


def refine_noise(problem, state, tol, stages):
    """Refine an automatically chosen rule until the ELBO no longer changes."""
    for _ in range(_MAX_REFINEMENTS):
        old = float(problem.elbo(state))
        finer_rule, worst = None, _resolution(problem, tol, old)
        for finer in problem.noise.refined():
            if not affordable(finer, problem.setting):
                continue
            change = abs(float(problem.with_noise(finer).elbo(state)) - old)
            if not change <= worst:
                finer_rule, worst = finer, change
        if finer_rule is None:
            break
        problem = problem.with_noise(finer_rule)
        state = stages.solve(problem, state, max(tol, ROUGH))
    return problem, state


def _resolution(problem, tol, elbo):
    """Return the largest difference between two rules to accept, in nats.

    It is 1e-7 relative where that is cheap to reach, else `NOISE_TOLERANCE`.
    """
    exact = tol * problem.total_weight + 1e-7 * abs(elbo)
    if nearly_exact(problem.noise, problem.objective, problem.rows.n_total):
        return exact
    return max(exact, NOISE_TOLERANCE)
