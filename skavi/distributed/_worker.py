"""A worker process of `skavi.distributed.fit`, started by `_launch` only.

It reads its task from the launcher's folder, fits its rows with the other workers, and writes a
`Report` there. Both are pickled; only the user who runs the processes can access the folder.
"""

import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path

import cloudpickle
import torch

from skavi.distributed._shard import shard
from skavi.distributed._watch import Report


def work(folder: Path, rank: int) -> int:
    """Fit with the other workers and write a report; return the exit status."""
    task = pickle.loads((folder / "task").read_bytes())
    torch.set_num_threads(task.n_threads)
    meeting = f"file://{folder / 'meeting'}"
    size = task.n_workers
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    state, error = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            state = _fit(task, rank)
        except BaseException as raised:
            error = _make_portable(raised)
    heard = [(str(warning.message), warning.category) for warning in caught]
    _write(folder / f"report-{rank}", Report(rank, None if rank else state, error, heard))
    return 0 if error is None else 1


def _fit(task, rank):
    """Fit the estimator; return the attributes that the fit has set."""
    estimator = task.estimator
    given = set(estimator.get_params(deep=False))
    if rank:
        estimator.set_params(verbose=0)
    cut = task.sizes, task.groups
    weights = None if task.weights is None else shard(task.weights, *cut)
    estimator.fit(shard(task.table, *cut), sample_weight=weights)
    state = vars(estimator).items()
    return {name: value for name, value in state if name not in given and "_skl_" not in name}


def _make_portable(error):
    """Return an exception that another process can unpickle, with its traceback as a note."""
    text = "".join(traceback.format_exception(error))
    error = error.with_traceback(None)
    try:
        pickle.loads(cloudpickle.dumps(error))
    except Exception:  # the exception cannot be pickled, or restored
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In the worker:\n{text}")
    return error


def _write(path, report):
    """Write a report atomically."""
    new = path.with_suffix(".new")
    new.write_bytes(cloudpickle.dumps(report))
    os.replace(new, path)


def _end_with_the_launcher():
    """End this process when its standard input closes, because the launcher has ended."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher handles Ctrl-C
    threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    status = work(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.flush()
    os._exit(status)
