"""Worker processes: started, watched, and ended together."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skavi._data.process_ranks import LostRankError

#: Seconds between looks at the workers: short beside a start of seconds, and cheap.
_PAUSE = 0.02
#: Seconds in which the other workers can report after one has failed; reports take milliseconds.
_GRACE = 5.0
#: Lines of a dead worker's error output that are shown: the end of a traceback.
_LAST_LINES = 10


class DeadRankError(RuntimeError):
    """A worker process ended without a report: it was killed, or ran out of memory.

    Examples
    --------
    >>> from skavi.distributed import DeadRankError
    >>> issubclass(DeadRankError, RuntimeError)
    True
    """


@dataclass(frozen=True)
class Report:
    """The result of a worker.

    Attributes
    ----------
    rank : int
    state : dict or None
        The fitted attributes, from rank 0 only, as they are the same on all ranks.
    error : BaseException or None
    warnings : list of (str, type)
    death : str
        How the worker ended, if it wrote no report.
    """

    rank: int
    state: dict[str, Any] | None = None
    error: BaseException | None = None
    warnings: list[tuple[str, type[Warning]]] = field(default_factory=list)
    death: str = ""


class Workers:
    """One process for each rank; all are ended at the end of a ``with`` statement."""

    def __init__(self, folder: Path, n_workers: int, n_threads: int):
        self.folder = folder
        self.processes = [self._start(rank, n_threads) for rank in range(n_workers)]

    def _start(self, rank, n_threads):
        module, folder = "skavi.distributed._worker", str(self.folder)
        command = [sys.executable, "-m", module, folder, str(rank)]
        own = {"OMP_NUM_THREADS": str(n_threads), "PYTHONPATH": os.pathsep.join(sys.path)}
        for name in {"lo", "lo0"} & _interfaces():  # communicate within this machine
            own["GLOO_SOCKET_IFNAME"] = name
        with (self.folder / f"errors-{rank}").open("wb") as errors:
            # A worker ends when its standard input closes, that is, when this process ends.
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stderr=errors, env=os.environ | own
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdin.close()

    def reports(self) -> list[Report]:
        """Wait until all workers have ended, or for a few seconds after one has failed."""
        end = float("inf")
        while time.monotonic() < end:
            codes = [process.poll() for process in self.processes]
            if None not in codes:
                break
            if any(codes):  # a worker has failed
                end = min(end, time.monotonic() + _GRACE)
            time.sleep(_PAUSE)
        return [self._report(rank) for rank in range(len(self.processes))]

    def _report(self, rank):
        path, code = self.folder / f"report-{rank}", self.processes[rank].poll()
        if path.exists():
            return pickle.loads(path.read_bytes())
        if code is None:
            return Report(rank)
        written = (self.folder / f"errors-{rank}").read_text(errors="replace").splitlines()
        last = "\n".join(written[-_LAST_LINES:])
        return Report(
            rank, death=_describe_exit(code) + (f"; its last words:\n{last}" if last else "")
        )


def _interfaces():
    try:
        return {name for _, name in socket.if_nameindex()}
    except (OSError, AttributeError):
        return set()


def _describe_exit(code):
    if code >= 0:
        return f"ended with exit status {code}"
    name = signal.Signals(-code).name
    hint = " (as the system does when memory runs out)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def raise_what_failed(reports: list[Report], held: list[str]) -> None:
    """If a worker failed, raise its own exception, or a DeadRankError.

    `held` says which rows each of them has.
    """
    who = [f"{rank} of {len(held)} ({rows})" for rank, rows in enumerate(held)]
    errors = [report for report in reports if report.error is not None]
    for report in sorted(errors, key=lambda report: isinstance(report.error, LostRankError)):
        if isinstance(report.error, LostRankError):
            break
        assert report.error is not None
        report.error.add_note(f"Raised in worker {who[report.rank]}.")
        raise report.error
    for report in reports:
        if report.death:
            raise DeadRankError(
                f"Worker {who[report.rank]} {report.death}. The other workers were ended; "
                "the estimator, the data and all files are as they were before."
            )
    for report in errors:
        assert report.error is not None
        raise report.error
