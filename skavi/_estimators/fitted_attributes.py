"""The fitted attributes of an estimator, and their restoration after an error."""

from contextlib import contextmanager

import numpy as np
import torch

from skavi._platform.private_names import count_function_modes, pop_function_mode
from skavi.models import LatentVariableModel
from skavi.models._base import overrides
from skavi.posterior import GlobalPosterior
from skavi.posterior._correction import Correction

#: What an iterate of a fit that goes on has.
NOT_ENDED = Correction.without(
    "The fit ended early, and linear response holds at the optimum only."
)


def fitted_attributes(fitted, elbo, se, n_features, names, stopped_early, correction=NOT_ENDED):
    """Return every fitted attribute, as numpy arrays and plain numbers.

    `names` are those of X's columns, or None.
    """
    problem, outcome = fitted.problem, fitted.outcome
    objective, state = problem.objective, outcome.state
    raw_globals = state.raw_globals.detach().cpu().numpy().copy()
    shared = {n: v.detach().cpu().numpy().copy() for n, v in state.shared.items()}
    return {
        "model_": objective.model,
        "family_": objective.family,
        "global_family_": objective.global_family,
        "inference_function_": problem.function,
        "noise_": problem.noise,
        "solver_": fitted.solver,
        "elbo_": elbo,
        "elbo_se_": se,
        "elbo_curve_": np.array(outcome.curve),
        "n_iter_": len(outcome.curve),
        "converged_": bool(outcome.converged),
        "stopped_early_": stopped_early and not outcome.converged,
        "suboptimality_": float(outcome.suboptimality),
        "tol_": float(fitted.tol),
        "gradient_norm_": float(outcome.gradient_norm),
        "global_posterior_": GlobalPosterior(
            objective.model, objective.global_family, raw_globals, n_features, correction, names
        ),
        "_raw_globals": raw_globals,
        "_global_covariance": correction.covariance,
        "_corrected_reason": correction.reason,
        "_stiffness": None,
        "_parameters": shared,
    }


def learn_use(fitted):
    """Tell the model the means of all rows' factors."""
    problem, state = fitted.problem, fitted.outcome.state
    if not overrides(problem.objective.model, LatentVariableModel, "learn_use"):
        return  # a pass over all rows for nothing
    with torch.no_grad():
        means = problem.objective.local_factors(problem.raw(state)).mean
    problem.rows.ask(problem.objective.model.learn_use, means)


@contextmanager
def unchanged_on_error(estimator):
    """Restore an estimator's attributes if the body raises."""
    before, grad_mode = dict(estimator.__dict__), torch.is_grad_enabled()
    n_modes = count_function_modes()
    try:
        yield
    except BaseException:
        # scikit-learn still needs these to tear down its callbacks.
        own = estimator.__dict__
        kept = {k: v for k, v in own.items() if k.startswith(("_skl_", "_callback_"))}
        own.clear()
        own.update(before | kept)
        raise
    finally:  # Ctrl-C at the end of a `with` can leave gradients disabled, or a model's dtype on
        torch.set_grad_enabled(grad_mode)
        while count_function_modes() > n_modes:
            pop_function_mode()
