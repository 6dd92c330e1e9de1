"""The choice among a model's parametrisations: the one of the highest ELBO is fitted."""

import math
from dataclasses import replace

import torch

from skavi._data.rows import Rows
from skavi._fit.algorithm import Plan, best_of, fit_every_start
from skavi._fit.checkpoint_journal import Journal
from skavi.inference_functions import Table
from skavi.solvers._base import unwatched


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
    elbos = [_factorized_elbo(plan, rows) for plan in plans]
    return max(range(len(elbos)), key=elbos.__getitem__)


def _factorized_elbo(plan, rows):
    """Return the ELBO of a factorized fit with default solver and noise; -inf if there is none."""
    plan = replace(
        plan,
        function=Table(),
        reference=None,
        noise=None,
        solver=None,
        # The fit that follows draws what it would draw without a choice.
        generator=torch.Generator().manual_seed(plan.generator.initial_seed()),
        journal=Journal(),
    )
    try:
        fits: list = []
        fit_every_start(plan, rows, None, unwatched, fits)
        elbo = best_of(plan, fits).elbo
    except (torch.linalg.LinAlgError, FloatingPointError):
        if rows.ranks.size > 1:  # other ranks may have succeeded
            raise
        return -math.inf
    return elbo if math.isfinite(elbo) else -math.inf
