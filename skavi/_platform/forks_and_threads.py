"""What processes and threads must know of each other: forks of a running torch, and turns.

torch's worker threads do not survive a fork: the child's next parallel operation waits for them
without end. Whether they had been started, by skavi or by anybody, cannot be asked, but it can be
tried: in a child of the child, which inherits the same state and can be ended if it hangs.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Numbers: torch shares work between threads from 32,768 numbers on (its GRAIN_SIZE).
_PARALLEL_SIZE = 200_000
#: Seconds: a forked child that can compute needs milliseconds (see `check_fork`).
_LONGEST = 5.0
_forked = False
_turn = threading.RLock()
_tried = threading.local()


def _after_fork() -> None:
    global _forked, _turn, _tried
    _forked = True
    _turn, _tried = threading.RLock(), threading.local()  # who held them stayed behind


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def check_fork() -> None:
    """Raise a RuntimeError in a forked process whose torch would wait for lost threads.

    Costs nothing outside forked children, and there one trial a thread: milliseconds if all is
    well, five seconds if not. One thread needs no others, so `torch.set_num_threads(1)` passes.
    """
    if not _forked or torch.get_num_threads() == 1 or hasattr(_tried, "passed"):
        return
    if not _parallel_work_ends():
        raise RuntimeError(
            "This process was forked from one whose torch had started its threads: here they are "
            "lost, and torch would wait for them for ever. Start workers with joblib's loky "
            '(n_jobs, its default), or multiprocessing.get_context("spawn") or "forkserver"; or '
            "call torch.set_num_threads(1) first thing in each forked worker."
        )
    _tried.passed = True


def _parallel_work_ends() -> bool:
    """Say whether a parallel operation ends, in a child of this process."""
    child = os.fork()
    if child == 0:
        try:
            torch.ones(_PARALLEL_SIZE).exp()
        finally:
            os._exit(0)
    end = time.monotonic() + _LONGEST
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@contextmanager
def in_turn() -> Iterator[None]:
    """Let one thread at a time run the body: it changes, and puts back, what all threads share."""
    with _turn:
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's own generators while the body runs, for code that can draw from no other.

    They are put back after it, those of every GPU in use as well.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with in_turn(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
