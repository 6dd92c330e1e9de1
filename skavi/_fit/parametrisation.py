"""The choice among a model's parametrisations: the one of the highest ELBO is fitted."""

import math
from dataclasses import replace

import torch

from skavi._data.rows import Rows
from skavi._fit.algorithm import Plan, best_of, fit_every_start
from skavi._fit.checkpoint_journal import Journal
from skavi._fit.iterates import ROUGH
from skavi.families import FullFactors
from skavi.inference_functions import Table
from skavi.solvers import State
from skavi.solvers._base import unwatched

#: Iterations of a fit that is only compared: about ten are usual, and a form in whose bent, narrow
#: valley (one study of 1e8 among 40) steps gain .001 nats is not the better one.
_MOST_ITERATIONS = 200
#: Nats that a fit that is only compared may leave before its last step, which leaves less: 1e-4 of
#: .03 in lme4's sleepstudy. Forms that are closer are as good as each other.
_NEAR = 0.05


def with_best_parametrisation(
    plan: Plan, rows: Rows, start: State | None
) -> tuple[Plan, State | None]:
    """Return the plan with that form of the model whose factorized fit is best, and its start.

    Amortized VI takes the choice of factorized VI, whose ELBO no function biases. Where the fit
    that follows is the one that was compared, and one start was enough, it goes on from there;
    else from `start`.
    """
    if not plan.objective.model.first_form():
        return plan, start
    chosen, reached = plan.journal.once(_best_form, plan, rows)
    given = start is not None or plan.noise is not None or plan.solver is not None
    same = isinstance(plan.function, Table) and not given
    return _in_form(plan, chosen), reached if same else start


def _in_form(plan, chosen):
    model = plan.objective.model.in_form(chosen)
    return replace(plan, objective=replace(plan.objective, model=model))


def _best_form(plan, rows):
    """Try each choice the other way round, in turn, and keep what has the higher ELBO.

    Where one start was enough for the first form, the others go on from the best so far. Return
    the choices, and the state that a fit of theirs reached, or None.
    """
    chosen = plan.objective.model.first_form()
    elbo, reached = _factorized_fit(_in_form(plan, chosen), rows)
    for i in range(len(chosen)):
        other = tuple(each != (i == j) for j, each in enumerate(chosen))
        here, there = (_in_form(plan, form) for form in (chosen, other))
        start = None if reached is None else _carried_over(here, reached, there, rows.X)
        value, state = _factorized_fit(there, rows, start)
        if start is not None and state is None:
            value, state = _factorized_fit(there, rows)
        if value > elbo:
            chosen, elbo, reached = other, value, state
    return chosen, reached


def _carried_over(plan, state, other, X):
    """Return the same q(theta), and the same factors of what latents stand for, in another form."""
    objective, model = plan.objective, other.objective.model
    theta = objective.space.constrain(objective.global_factor(state.raw_globals).mean)
    factors = objective.local_factors(state.raw_locals)
    here, length = _own_scale(objective.model, theta, factors.mean, X)
    there, other_length = _own_scale(model, theta, factors.mean, X)
    mean, ratio = (here + length * factors.mean - there) / other_length, length / other_length
    root = ratio.unsqueeze(-1) * torch.linalg.cholesky(factors.covariance())
    raw = other.objective.family.raw(FullFactors(mean, root))
    return State(raw, {}, state.raw_globals)


def _own_scale(model, theta, like, X):
    """Return the shift and the stretch that take latents to what they stand for."""
    given = model.own_given(X)
    shift = model.own_scale(theta, torch.zeros_like(like), *given)
    return shift, model.own_scale(theta, torch.ones_like(like), *given) - shift


def _factorized_fit(plan, rows, start=None):
    """Return the ELBO of a factorized fit by default solver and noise, from a state if given.

    And the state that it reached, or None: it did not converge, or several starts were tried.
    """
    plan = replace(
        plan,
        function=Table(),
        reference=None,
        noise=None,
        solver=None,
        max_iter=min(plan.max_iter, _MOST_ITERATIONS),
        tol=max(plan.tol, ROUGH, _NEAR / rows.total_weight),
        # The fit that follows draws what it would draw without a choice.
        generator=torch.Generator().manual_seed(plan.generator.initial_seed()),
        journal=Journal(),
    )
    try:
        fits: list = []
        fit_every_start(plan, rows, start, unwatched, fits)
        fit = best_of(plan, fits)
    except (torch.linalg.LinAlgError, FloatingPointError):
        if rows.ranks.size > 1:  # other ranks may have succeeded
            raise
        return -math.inf, None
    outcome = fit.solution.outcome
    alone = outcome.converged and len(fit.reached) == 1
    return fit.elbo if math.isfinite(fit.elbo) else -math.inf, outcome.state if alone else None
