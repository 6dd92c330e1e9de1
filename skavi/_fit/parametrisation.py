"""The choice among a model's parametrisations: the one of the highest ELBO is fitted."""

import math
from dataclasses import replace

import torch

from skavi._data.rows import Rows
from skavi._fit.algorithm import Plan, best_of, fit_every_start
from skavi._fit.checkpoint_journal import Journal
from skavi.inference_functions import Table
from skavi.solvers import State
from skavi.solvers._base import unwatched

#: Iterations of a fit that is only compared: about ten are usual, and a form in whose bent, narrow
#: valley (one study of 1e8 among 40) steps gain .001 nats is not the better one.
_MOST_ITERATIONS = 200


def with_best_parametrisation(plan: Plan, rows: Rows) -> Plan:
    """Return the plan with that of the model's alternatives whose factorized fit is best.

    Amortized VI takes the choice of factorized VI, whose ELBO no function biases.
    """
    alternatives = plan.objective.model.alternatives()
    plans = [
        replace(plan, objective=replace(plan.objective, model=model)) for model in alternatives
    ]
    if len(plans) == 1:
        return plans[0]
    best = plan.journal.once(lambda: _index_of_best(plans, rows))
    return plans[best]


def _index_of_best(plans, rows):
    """Fit each; where one start was enough for the first, the others go on from its q(theta)."""
    elbos, raw_globals = [], None
    for plan in plans:
        fit = None if raw_globals is None else _factorized_fit(plan, rows, raw_globals)
        if fit is None or not fit.solution.outcome.converged:
            fit = _factorized_fit(plan, rows)
        elbos.append(fit.elbo if fit is not None and math.isfinite(fit.elbo) else -math.inf)
        alone = fit is not None and fit.solution.outcome.converged and len(fit.reached) == 1
        if fit is not None and raw_globals is None and alone:
            raw_globals = fit.solution.outcome.state.raw_globals
    return max(range(len(elbos)), key=elbos.__getitem__)


def _factorized_fit(plan, rows, raw_globals=None):
    """Return a factorized fit by default solver and noise, from q(theta) if given, or None."""
    plan = replace(
        plan,
        function=Table(),
        reference=None,
        noise=None,
        solver=None,
        max_iter=min(plan.max_iter, _MOST_ITERATIONS),
        # The fit that follows draws what it would draw without a choice.
        generator=torch.Generator().manual_seed(plan.generator.initial_seed()),
        journal=Journal(),
    )
    start = None
    if raw_globals is not None:
        start = State(plan.objective.start_locals(raw_globals, rows.X), {}, raw_globals)
    try:
        fits: list = []
        fit_every_start(plan, rows, start, unwatched, fits)
        return best_of(plan, fits)
    except (torch.linalg.LinAlgError, FloatingPointError):
        if rows.ranks.size > 1:  # other ranks may have succeeded
            raise
        return None
