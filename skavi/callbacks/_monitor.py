"""Recording how fits go."""

import time
import uuid
from dataclasses import dataclass, field

import numpy as np

from skavi._platform.private_names import can_reuse_listener, open_listener, send


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

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.callbacks import ElboMonitor
    >>> from skavi.models import LinearModel
    >>> monitor = ElboMonitor()
    >>> vi = FactorizedVI(LinearModel()).set_callbacks(monitor).fit([[0.0], [1.0], [5.0]])
    >>> log = monitor.logs[0]
    >>> bool(len(log.seconds) == len(log.elbo) == log.iteration[-1])
    True
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
