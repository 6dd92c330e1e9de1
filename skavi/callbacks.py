"""Callbacks for scikit-learn's protocol: what to do while a fit goes on.

``estimator.set_callbacks(...)`` takes these, scikit-learn's own `ProgressBar`, or any object that
follows `sklearn.callback.FitCallback`. After each iteration a hook may ask for

* ``metadata``: a dict with "elbo" (nats, as the solver sees it), "iteration" (from 1) and "stage"
  (which rises when the noise rule is refined; ELBOs of two stages are not comparable);
* ``fitted_estimator``: the estimator ready to `transform`, as if the fit had stopped there.

A hook that returns True stops the fit, which then gives no ConvergenceWarning: ``stopped_early_``
is True and ``converged_`` False.
"""

import math
import time
import uuid
from dataclasses import dataclass, field
from numbers import Integral, Real

import numpy as np

from skavi._compat import can_reuse_listener, open_listener, send

__all__ = ["EarlyStopping", "ElboLog", "ElboMonitor"]

# Values this close, relatively, are equal: near an optimum the ELBO rises and falls by rounding.
_ROUNDING = 1e-10


class EarlyStopping:
    """Stop a fit that no longer gains, and put its best iterate back.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features), default=None
        Held-out rows, as the estimator itself would receive them: their `score` (nats a row) is
        monitored. None: the training ELBO (nats), which is a fair judge only where the noise is
        deterministic, since the best of noisy estimates is a lucky one.
    patience : int, default=10
        Evaluations without gain after which the fit stops.
    min_delta : float, default=0.0
        The rise above the last gain that counts as a gain, in the unit of what is monitored.
    every : int, default=1
        Evaluate at every so many iterations.

    Notes
    -----
    Whenever the best iterate seen is not where the fit ended (stopped by patience, by ``max_iter``
    or by convergence, as held-out scores peak before the ELBO does) the estimator is left as if it
    had stopped at that best one: fitted attributes, ``n_iter_`` and ``elbo_curve_`` included, with
    ``stopped_early_ = True`` and ``converged_ = False``. Values before and after a refinement of
    the noise rule are not compared: the best is that of the last rule. In a grid search set this on
    the estimator inside; every fit keeps its own count. Source: Prechelt (1998), "Early stopping -
    but when?", criterion UP with the best weights kept.

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import AmortizedVI
    >>> from skavi.callbacks import EarlyStopping
    >>> from skavi.inference_functions import MLP
    >>> X = np.random.default_rng(0).normal(size=(60, 3)) @ np.ones((3, 4))
    >>> vi = AmortizedVI(inference_function=MLP((8,)), random_state=0)
    >>> vi = vi.set_callbacks(EarlyStopping(X[40:], patience=3)).fit(X[:40])
    >>> vi.converged_ or vi.stopped_early_
    True
    """

    def __init__(self, X=None, patience=10, min_delta=0.0, every=1):
        for name, value in (("patience", patience), ("every", every)):
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(
                    f"EarlyStopping({name}={value!r}): {name} must be an integer >= 1."
                )
        if not isinstance(min_delta, Real) or not 0 <= float(min_delta) < math.inf:
            raise ValueError(f"EarlyStopping(min_delta={min_delta!r}): min_delta must be >= 0.")
        self.X, self.patience, self.min_delta, self.every = X, patience, min_delta, every
        # One watch a fit that is under way: clones share their callbacks.
        self._watches = {}

    def __getstate__(self):
        return {**self.__dict__, "_watches": {}}

    def setup(self, estimator, context):
        """Begin a new watch."""
        self._watches[estimator] = _Watch()

    def teardown(self, estimator, context):
        """Forget the watch."""
        self._watches.pop(estimator, None)

    def on_fit_task_begin(self, estimator, context):
        """Do nothing."""

    def on_fit_task_end(self, estimator, context, *, metadata=None, fitted_estimator=None):
        """Evaluate an iterate; at the end of the fit put the best one back."""
        watch = self._watches[estimator]
        if metadata is None:
            self._put_best_back(watch, estimator)
            return False
        if metadata["stage"] != watch.stage:
            watch.restart(metadata["stage"])
        watch.last_elbo = metadata["elbo"]
        if metadata["iteration"] % self.every:
            return False
        value = metadata["elbo"] if self.X is None else fitted_estimator.score(self.X)
        watch.see(value, fitted_estimator, self.min_delta)
        return watch.misses >= self.patience

    def _put_best_back(self, watch, estimator):
        if watch.best is None:
            return
        last = watch.last_elbo if self.X is None else estimator.score(self.X)
        if not last >= watch.best_value - _ROUNDING * abs(watch.best_value):
            vars(estimator).update(vars(watch.best))


class _Watch:
    """What one fit has shown so far."""

    def __init__(self):
        self.restart(stage=0)

    def restart(self, stage):
        self.stage, self.misses, self.last_elbo = stage, 0, -math.inf
        self.best, self.best_value, self.last_gain = None, -math.inf, -math.inf

    def see(self, value, fitted_estimator, min_delta):
        if value > self.best_value:
            self.best, self.best_value = fitted_estimator, value
        if value > self.last_gain + min_delta:
            self.last_gain, self.misses = value, 0
        else:
            self.misses += 1


@dataclass(frozen=True)
class ElboLog:
    """The course of one fit.

    Attributes
    ----------
    estimator : str
        The estimator, as it prints.
    path : tuple of str
        The tasks that led to the fit, outermost first: in a grid search which candidate and split.
    iteration : ndarray of shape (n_iterations,)
        From 1.
    seconds : ndarray of shape (n_iterations,)
        Since the fit began.
    elbo : ndarray of shape (n_iterations,)
        In nats, as the solver saw it.
    """

    estimator: str
    path: tuple[str, ...]
    iteration: np.ndarray = field(repr=False)
    seconds: np.ndarray = field(repr=False)
    elbo: np.ndarray = field(repr=False)


class ElboMonitor:
    """Record iteration, seconds and ELBO of every fit.

    Attributes
    ----------
    logs : list of ElboLog
        One a fit, in the order in which they began to iterate.

    Notes
    -----
    Set it on the estimator itself, also inside a pipeline or a grid search: clones share it, and
    copies in worker processes send what they see to the process that created the monitor, over
    scikit-learn's callback transport (a local socket: workers on other machines keep their logs to
    themselves). A monitor that is unpickled in another session starts from the logs it was saved
    with.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.callbacks import ElboMonitor
    >>> from skavi.models import LinearModel
    >>> monitor = ElboMonitor()
    >>> vi = FactorizedVI(LinearModel()).set_callbacks(monitor).fit([[0.0], [1.0], [5.0]])
    >>> bool(monitor.logs[-1].elbo[-1] == vi.elbo_curve_[-1])
    True
    """

    def __init__(self):
        self._messages: list[tuple] = []
        self._clocks = {}
        self._listener_handle = open_listener(self._messages.append, owner=self)

    @property
    def logs(self):
        """Return the fits recorded so far."""
        fits: dict[str, tuple] = {}
        for fit, estimator, path, *values in list(self._messages):
            fits.setdefault(fit, (estimator, path, []))[2].append(values)
        logs = []
        for estimator, path, values in fits.values():
            iteration, seconds, elbo = map(np.array, zip(*values, strict=True))
            logs.append(ElboLog(estimator, path, iteration, seconds, elbo))
        return logs

    def setup(self, estimator, context):
        """Start the clock."""
        fit = uuid.uuid4().hex
        self._clocks[estimator] = (fit, repr(estimator), _path(context), time.perf_counter())

    def teardown(self, estimator, context):
        """Stop the clock."""
        self._clocks.pop(estimator, None)

    def on_fit_task_begin(self, estimator, context):
        """Do nothing."""

    def on_fit_task_end(self, estimator, context, *, metadata=None):
        """Record an iteration."""
        if metadata is None:
            return
        fit, name, path, start = self._clocks[estimator]
        seconds = time.perf_counter() - start
        message = (fit, name, path, metadata["iteration"], seconds, metadata["elbo"])
        send(self._listener_handle, message)

    def __getstate__(self):
        # The listener's thread may be adding to the live list.
        return {**self.__dict__, "_messages": list(self._messages), "_clocks": {}}

    def __setstate__(self, state):
        self.__dict__.update(state)
        if not can_reuse_listener(self._listener_handle):
            self._listener_handle = open_listener(self._messages.append, owner=self)


def _path(context):
    """Name the tasks from the outermost to this one; a sub-estimator's as its caller names it."""
    path: list[str] = []
    while context is not None:
        estimator = context.source_estimator_name or context.estimator_name
        task = context.source_task_name or context.task_name
        path.insert(0, f"{estimator} {task} {context.task_id}")
        context = context.parent
    return tuple(path)
