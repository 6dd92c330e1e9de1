"""Reports on a fit: to callbacks after each iteration, and to the user by warnings at the end."""

from contextlib import contextmanager

import numpy as np
from sklearn.callback import ProgressBar
from sklearn.exceptions import ConvergenceWarning

from skavi._estimators.fitted_attributes import fitted_attributes
from skavi._fit.checkpoint_journal import Journal
from skavi._fit.suboptimality import nats_below
from skavi._numerics.sums import lost_in
from skavi._platform.user_warnings import warn
from skavi.models import CouplingBiasWarning, UnusedLatentsWarning


class SeveralOptimaWarning(UserWarning):
    """The best of several starts of theta stands alone, more than 1 nat above the next.

    Examples
    --------
    >>> from skavi.diagnostics import SeveralOptimaWarning
    >>> issubclass(SeveralOptimaWarning, UserWarning)
    True
    """


class Reporter:
    """Call scikit-learn's callbacks after every iteration; a hook that returns True stops the fit.

    Attributes
    ----------
    stopped, interrupted : bool
        Whether a hook, or Ctrl-C, stopped the fit.
    latest : Iterate or None
        The last iterate, kept after an interrupt; None before the first iteration.
    journal : Journal
        Closed when the fit is complete.
    joint : bool
        Whether other ranks take part, which an interrupt here does not reach.
    failure : str
        What was not finite, if that ended the fit; else empty.
    alone : bool
        Whether the best of several starts was not confirmed by another one.
    n_samples : int
        Rows of all ranks.
    """

    def __init__(self, estimator, context, X):
        self.estimator, self.context, self.X = estimator, context, X
        self.listening = bool(getattr(estimator, "_skl_callbacks", []))
        self.stopped, self.interrupted, self.latest = False, False, None
        self.journal = Journal()
        self.failure, self.missed, self.joint, self.alone = "", 0.0, False, False
        self.n_samples = 0

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
        """Catch a KeyboardInterrupt in the body and note it, if there is an iterate to keep.

        During a grid search or the like it is raised, since it is meant for the whole search.
        """
        try:
            yield
        except KeyboardInterrupt:
            if self.latest is None or self.joint or _one_of_many(self.context):
                raise
            self.interrupted = True

    def _attributes(self, fitted):
        """Return the fitted attributes as if the fit had stopped here.

        The ELBO is the solver's, an estimate where the noise is random. If a callback restores this
        iterate, `fit` evaluates its final ELBO from ``_iterate``.
        """
        elbo, n_features = fitted.outcome.curve[-1], self.X.shape[1]
        names = getattr(self.estimator, "feature_names_in_", None)
        attributes = fitted_attributes(fitted, elbo, np.nan, n_features, names, True)
        return attributes | {"_iterate": fitted}


def _one_of_many(task):
    while task.parent is not None:
        task = task.parent
        if not task.sequential_subtasks:
            return True
    return False


@contextmanager
def progress_bar(estimator):
    """Show scikit-learn's progress bar while the body runs, if verbose asks for it."""
    present = list(getattr(estimator, "_skl_callbacks", []))
    nested = hasattr(estimator, "_parent_callback_ctx")
    wanted = estimator.verbose and not nested
    if not wanted or any(isinstance(c, ProgressBar) for c in present):
        yield
        return
    try:
        bar = ProgressBar()
    except ImportError as error:
        raise ImportError(
            f"verbose={estimator.verbose} shows a progress bar, which needs rich: "
            'pip install "skavi[progress]", or set verbose=0.'
        ) from error
    estimator.set_callbacks(*present, bar)
    try:
        yield
    finally:
        estimator.set_callbacks(*present)


def warn_of_end(estimator, reporter: Reporter) -> None:
    """Warn if a fit was interrupted, met numbers that are not finite, or did not converge."""
    name, n_iter = type(estimator).__name__, estimator.n_iter_
    if reporter.interrupted:
        kept = "the best finished start" if estimator.converged_ else "its last complete iterate"
        message = (
            f"{name} was interrupted and keeps {kept}: n_iter_={n_iter}, "
            f"converged_={estimator.converged_}. With warm_start=True, fit goes on from there."
        )
    elif reporter.failure:
        message = (
            f"{name} keeps its last finite iterate, of n_iter_={n_iter}: numbers were not finite "
            f"in {reporter.failure}. Check the scale of X and of the priors, or choose another "
            "solver."
        )
    elif reporter.missed:
        message = (
            f"{name} ends {reporter.missed:,.0f} nats a row below the factorized fit that it "
            "started from: its function is far from the rows' factors. Use FactorizedVI, another "
            "random_state or inference_function, or give X in other units."
        )
    elif not estimator.converged_ and not estimator.stopped_early_:
        message = (
            f"{name} did not converge in n_iter_={n_iter} iterations: it stands "
            f"{nats_below(estimator.suboptimality_)} the optimum by its own estimate. "
            f"{_remedy(estimator, reporter.n_samples)}"
        )
    elif reporter.alone:
        best, second = estimator.starts_[:2]
        warn(
            f"{name} keeps the best of n_init={len(estimator.starts_)} starts, and no other start "
            f"came within 1 nat of it (starts_: {best:.2f}, then {second:.2f}): better optima may "
            "exist. Raise n_init.",
            SeveralOptimaWarning,
        )
        return
    else:
        return
    warn(message, ConvergenceWarning)


def warn_of_model(estimator) -> None:
    """Warn where the fitted model's numbers should not be used as they are."""
    if estimator.bias_note_:
        warn(estimator.bias_note_, CouplingBiasWarning)
    if getattr(estimator.model_, "n_used_components", None) == 0:
        warn(
            f"{estimator.model_.note} Every row has the same factor: choose another likelihood, or "
            "a smaller noise_sd.",
            UnusedLatentsWarning,
        )


def _remedy(estimator, n_rows):
    """Name what may help: what the fit had too little of."""
    if lost_in(estimator.tol_ * n_rows, estimator.elbo_):
        return (
            f"Its ELBO is {estimator.elbo_:.3g} nats, a number in whose rounding tol is lost: "
            "rescale X, or look for cells that are far from all others."
        )
    if estimator.n_iter_ >= estimator.max_iter:
        return f"Raise max_iter (now {estimator.max_iter}), or loosen tol."
    return (
        f"Its steps gain no more: choose a finer noise (now {estimator.noise_}) or another solver "
        f"(now {estimator.solver_}), rescale X, or loosen tol."
    )
