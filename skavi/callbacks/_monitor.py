"""Records of the ELBO during fits."""

import time
import uuid
from dataclasses import dataclass, field

import numpy as np

from skavi._platform.private_names import can_reuse_listener, open_listener, send


@dataclass(frozen=True)
class ElboLog:
    """The ELBO during one fit.

    Attributes
    ----------
    estimator : str
        The estimator's repr.
    path : tuple of str
        The tasks that contain the fit, outermost first: in a grid search the candidate and split.
    iteration : ndarray of shape (n_iterations,)
        Starts at 1.
    seconds : ndarray of shape (n_iterations,)
        Since the fit began.
    elbo : ndarray of shape (n_iterations,)
        In nats, under the solver's noise.

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
        One per fit, in the order of their first iterations.

    Notes
    -----
    Set it on the estimator itself, also inside a pipeline or a grid search. Clones share it, and
    copies in worker processes send their records to the process that created the monitor, through
    scikit-learn's callback transport (a local socket: records of workers on other machines are not
    sent). A monitor that is unpickled in another session starts with the logs it was saved with.

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
        """The logs recorded so far."""
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
        # Copy the list, since the listener's thread may be adding to it.
        return {**self.__dict__, "_messages": list(self._messages), "_clocks": {}}

    def __setstate__(self, state):
        self.__dict__.update(state)
        if not can_reuse_listener(self._listener_handle):
            self._listener_handle = open_listener(self._messages.append, owner=self)


def _path(context):
    """Name the tasks from the outermost to this one, a sub-estimator's by its caller's name."""
    path: list[str] = []
    while context is not None:
        estimator = context.source_estimator_name or context.estimator_name
        task = context.source_task_name or context.task_name
        path.insert(0, f"{estimator} {task} {context.task_id}")
        context = context.parent
    return tuple(path)
