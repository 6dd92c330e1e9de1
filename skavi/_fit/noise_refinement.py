"""Noise rules that are chosen for the user, refined until the ELBO stands still."""

from skavi._fit.defaults import affordable, nearly_exact
from skavi._fit.iterates import ROUGH
from skavi._fit.suboptimality import NOISE_TOLERANCE

#: Refinements, each about doubling one count of nodes. Not measured: order of magnitude.
_MAX_REFINEMENTS = 6


def refine_noise(problem, state, tol, stages):
    """Take more nodes of an automatic rule until the ELBO stands still."""
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
    """How far two rules may differ: 1e-7 relative where that is cheap, else `NOISE_TOLERANCE`."""
    exact = tol * problem.total_weight + 1e-7 * abs(elbo)
    if nearly_exact(problem.noise, problem.objective, problem.rows.n_total):
        return exact
    return max(exact, NOISE_TOLERANCE)
