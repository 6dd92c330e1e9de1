"""One fit in several processes of this machine, from a notebook or a script."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cloudpickle
import joblib
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_feature_names, check_array

from skavi._estimators.base import VariationalInference
from skavi._numerics.whole_numbers import is_whole
from skavi._platform.forks_and_threads import guarded
from skavi._platform.user_warnings import warn
from skavi.distributed._shard import even, owners, require_sizes
from skavi.distributed._watch import Workers, raise_what_failed


@dataclass(frozen=True)
class Task:
    """The task of every worker.

    Attributes
    ----------
    estimator : FactorizedVI or AmortizedVI
    table : str
        The file of all rows.
    weights : ndarray of shape (n_samples,), or None
    sizes : list of int or None
        Rows of each worker.
    groups : ndarray of shape (n_samples,) or None
        Of the rows, of which each worker takes whole groups; in place of sizes.
    n_workers, n_threads : int
    """

    estimator: BaseEstimator
    table: str
    weights: np.ndarray | None
    sizes: list[int] | None
    groups: np.ndarray | None
    n_workers: int
    n_threads: int


@guarded
def fit(estimator, X, *, n_workers=2, n_threads=None, sample_weight=None, sizes=None, groups=None):
    """Fit an estimator in several processes on this machine, each with a part of the rows.

    It works in a notebook or a script, without a launcher and without a main guard; models and
    modules that are defined there are sent to the workers. For several machines, see `shard`.

    Parameters
    ----------
    estimator : FactorizedVI or AmortizedVI
    X : array-like of shape (n_samples, n_features), str or PathLike
        Rows, or a ``.npy`` file of them, which is mapped and not read.
    n_workers : int, default=2
        Processes.
    n_threads : int, default=None
        Threads of each worker. None: the machine's cores, divided among the workers.
    sample_weight : array-like of shape (n_samples,), default=None
        As in the estimator's ``fit``.
    sizes : sequence of int, default=None
        Rows of each worker. None: equal numbers, up to one row.
    groups : array-like of shape (n_samples,), default=None
        The group of each row, for a model of groups: each worker then takes whole groups.

    Returns
    -------
    estimator
        The same object, fitted as by its own ``fit``, up to rounding.

    Raises
    ------
    DeadRankError
        If a worker was killed or ran out of memory; the message says which one, and how it ended.
        The other workers are ended, and the estimator, the data and any file are unchanged.
    Exception
        An exception of a worker, with a note that names the worker and its rows; the estimator is
        unchanged.
    TypeError
        If the estimator is not one of skavi's.
    ValueError
        Also if several ranks cannot fit the model: see the how-to page on several machines.

    Notes
    -----
    An array is written to a temporary file that the workers map, in a folder that only this user
    can read, and the estimator is pickled. Each worker first imports torch, which takes seconds:
    shorter fits gain nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import FactorizedVI, distributed
    >>> from skavi.models import NonlinearModel
    >>> X = np.random.default_rng(0).normal(size=(100, 1))
    >>> vi = distributed.fit(FactorizedVI(NonlinearModel()), X, n_workers=2)
    >>> vi.converged_, vi.transform(X).shape
    (True, (100, 1))
    """
    if not isinstance(estimator, VariationalInference):
        raise TypeError(
            f"estimator is a {type(estimator).__name__}, but must be a FactorizedVI or an "
            "AmortizedVI: fit the steps of a pipeline one by one."
        )
    if str(estimator.device) != "cpu":
        raise ValueError(
            f"device={str(estimator.device)!r}: workers of this function share the CPU; start one "
            'rank a GPU with torchrun, or set device="cpu".'
        )
    _require_count("n_workers", n_workers)
    n_threads = max(1, joblib.cpu_count() // n_workers) if n_threads is None else n_threads
    _require_count("n_threads", n_threads)
    with tempfile.TemporaryDirectory(prefix="skavi-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        table = _table(folder, X)
        n_rows = len(np.load(table, mmap_mode="r", allow_pickle=False))
        if groups is None:
            sizes = even(n_rows, n_workers) if sizes is None else [int(size) for size in sizes]
            require_sizes(sizes, n_workers, n_rows)
            ends = np.cumsum(sizes)
            held = [f"rows {e - s} to {e - 1} of X" for s, e in zip(sizes, ends, strict=True)]
        else:
            groups = np.asarray(groups)
            rank = owners(groups, sizes, n_workers, n_rows)
            held = [f"{size} rows of X" for size in np.bincount(rank)]
        weights = None if sample_weight is None else _weights(sample_weight, n_rows)
        task = Task(estimator, str(table), weights, sizes, groups, n_workers, n_threads)
        (folder / "task").write_bytes(cloudpickle.dumps(task))
        with Workers(folder, n_workers, n_threads) as workers:
            reports = workers.reports()
    raise_what_failed(reports, held)
    for message, category in reports[0].warnings:
        warn(message, category)
    estimator.__dict__.update(reports[0].state)
    _check_feature_names(estimator, X, reset=True)
    return estimator


def _require_count(name, value):
    if not is_whole(value, 1):
        raise ValueError(f"{name}={value!r} must be an integer >= 1.")


def _table(folder, X):
    """Return a file of the rows of X."""
    if isinstance(X, str | os.PathLike):
        return Path(X).resolve()
    X = check_array(X, dtype=[np.float64, np.float32], ensure_all_finite=False)
    np.save(folder / "X.npy", X)
    return folder / "X.npy"


def _weights(sample_weight, n_rows):
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (n_rows,):
        raise ValueError(
            f"sample_weight has shape {weights.shape}, but X has {n_rows} rows: give one a row."
        )
    return weights
