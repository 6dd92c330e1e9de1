"""What a fit leaves on its estimator, and what callbacks are told on the way."""

from contextlib import contextmanager

import numpy as np

from skavi._journal import Journal
from skavi.posterior import GlobalPosterior


def fitted_attributes(fitted, elbo, se, n_features, stopped_early):
    """Return every fitted attribute, as numpy arrays and plain numbers."""
    problem, outcome = fitted.problem, fitted.outcome
    objective, state = problem.objective, outcome.state
    raw_globals = state.globals_.detach().cpu().numpy().copy()
    values = {n: v.detach().cpu().numpy().copy() for n, v in state.parameters.items()}
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
        "gradient_norm_": float(outcome.gradient_norm),
        "global_posterior_": GlobalPosterior(
            objective.model, objective.global_family, raw_globals, n_features
        ),
        "_raw_globals": raw_globals,
        "_stiffness": None,
        "_parameters": {} if problem.function.tabular else values,
    }


class Reporter:
    """Tell scikit-learn's callbacks of every iteration; a hook that returns True stops the fit.

    Attributes
    ----------
    stopped, interrupted : bool
        Whether a hook did; whether Ctrl-C did.
    latest : Iterate or None
        Where the fit stands, for an interrupt; None before the first iteration.
    journal : Journal
        To be closed when the fit is complete.
    joint : bool
        Whether other ranks take part, which do not hear of an interrupt here.
    failure : str
        What was not finite where the fit had to end; empty if nothing was.
    """

    def __init__(self, estimator, context, X):
        self.estimator, self.context, self.X = estimator, context, X
        self.listening = bool(getattr(estimator, "_skl_callbacks", []))
        self.stopped, self.interrupted, self.latest = False, False, None
        self.journal = Journal()
        self.failure, self.joint = "", False

    def __call__(self, iterate):
        self.latest = iterate
        if not self.listening:
            return False
        task = self.context.subcontext(task_name="iteration")
        task.call_on_fit_task_begin(estimator=self.estimator, X=self.X)
        self.stopped = task.call_on_fit_task_end(
            estimator=self.estimator,
            X=self.X,
            metadata={
                "elbo": iterate.elbo,
                "iteration": iterate.n_iter,
                "stage": iterate.stage,
            },
            reconstruction_attributes=lambda: self._attributes(iterate.fitted()),
        )
        return self.stopped

    @contextmanager
    def outlasting_interrupts(self):
        """Swallow a KeyboardInterrupt in the body, and note it, if there is an iterate to keep.

        One that comes while a grid search or the like runs is meant for that, not for one fit.
        """
        try:
            yield
        except KeyboardInterrupt:
            if self.latest is None or self.joint or _one_of_many(self.context):
                raise
            self.interrupted = True

    def _attributes(self, fitted):
        """Return the fitted attributes as if the fit had stopped here.

        The ELBO is the solver's own, an estimate where the noise is random; ``_iterate`` lets
        `fit` evaluate it properly should a callback put this iterate back.
        """
        elbo, n_features = fitted.outcome.curve[-1], self.X.shape[1]
        return fitted_attributes(fitted, elbo, np.nan, n_features, True) | {"_iterate": fitted}


def _one_of_many(task):
    while task.parent is not None:
        task = task.parent
        if not task.sequential_subtasks:
            return True
    return False
