"""Checkpoints, from which a killed fit can continue."""

import os
from datetime import timedelta
from pathlib import Path

from skavi._numerics.whole_numbers import is_whole
from skavi._platform.archive import check_writable
from skavi._platform.shown_values import shown

#: Share of the time that saves may cost, as the docstring promises (test_checkpoint).
_SHARE = 0.05
#: Seconds between saves: a killed process loses about a second of work.
_SHORTEST = 1.0


class Checkpoint:
    """Save a fit at intervals, so that the next fit of the same problem continues from there.

    After a fit was killed, set the callback again on an estimator with the same parameters and call
    ``fit`` with the same data: it continues from the last checkpoint, and gives the same
    parameters, ``elbo_curve_`` and ``n_iter_``, bit for bit, as an uninterrupted fit.

    Parameters
    ----------
    path : str or PathLike
        The file, in an existing folder; each fit needs its own. It is replaced atomically, and
        removed when the fit is complete, so that the next ``fit`` starts anew. After Ctrl-C or an
        error it stays.
    every : int or datetime.timedelta, default=None
        Save after this number of iterations, or this time. None: as often as takes at most 5 % of
        the time, and at most once a second.

    Raises
    ------
    ValueError
        By ``fit``, before any work, if the file is damaged or holds another fit: of other data,
        weights, model, parameters, versions of skavi, numpy or torch. The message names what
        differs.
    OSError
        By ``fit``, before any work, if the path cannot be written. A save that fails later on gives
        a RuntimeWarning, once; the last good checkpoint stays, and the fit goes on.

    Notes
    -----
    With ``random_state=None`` the next fit uses the stored seed and the stored state of the
    generator. With another number of threads, or on another machine, sums over rows round
    differently, and results agree only up to rounding. Other callbacks see the iterations after the
    checkpoint only; `EarlyStopping` starts a new count of its patience. Set this callback on a
    single estimator: the fits of a grid search would share one path.

    The file is a zip of JSON and numpy arrays with a checksum, which nothing can execute, readable
    by its owner alone. It holds parameters and a hash of the data, not the data.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from skavi import FactorizedVI
    >>> from skavi.callbacks import Checkpoint
    >>> path = Path(tempfile.mkdtemp()) / "fit.checkpoint"
    >>> X = [[0.0, 1.0], [1.0, 3.0], [2.0, 4.0], [3.0, 3.0]]
    >>> vi = FactorizedVI(random_state=0).set_callbacks(Checkpoint(path, every=1)).fit(X)
    >>> path.exists()  # the fit is complete
    False
    """

    def __init__(self, path, every=None):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"Checkpoint(path={shown(path)}): path must be a str or a PathLike.")
        whole = is_whole(every, 1)
        span = isinstance(every, timedelta) and every > timedelta(0)
        if not (every is None or whole or span):
            raise ValueError(
                f"Checkpoint(every={shown(every)}): every must be a number of iterations >= 1 or a "
                "datetime.timedelta > 0."
            )
        self.path, self.every = Path(path), every

    def is_due(self, n_iter, seconds, cost):
        """Say whether to save, given iterations and seconds since a save that took `cost` s."""
        if self.every is None:
            return seconds >= max(_SHORTEST, cost / _SHARE)
        if isinstance(self.every, timedelta):
            return seconds >= self.every.total_seconds()
        return n_iter >= self.every

    def setup(self, estimator, context):
        """Raise an OSError if the path cannot be written."""
        try:
            check_writable(self.path)
        except OSError as error:
            raise OSError(
                error.errno, f"Checkpoint cannot be written ({error.strerror})", str(self.path)
            ) from error

    def teardown(self, estimator, context):
        """Do nothing."""

    def on_fit_task_begin(self, estimator, context):
        """Do nothing."""

    def on_fit_task_end(self, estimator, context):
        """Do nothing: the fit itself saves, since hooks do not see the solver's memory."""
