"""Protection against forks of a running torch, and between threads that change shared state.

torch's worker threads do not survive a fork: the child's next parallel operation waits for them
without end. torch does not tell whether they had been started, but it can be tried: in a child of
the child, which inherits the same state and can be killed if it hangs.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from skavi._platform import fork_record

#: Numbers: torch shares work between threads from 32,768 numbers on (its GRAIN_SIZE).
_PARALLEL_SIZE = 200_000
#: Seconds: a forked child that can compute needs milliseconds (see `check_fork`).
_LONGEST = 5.0
_forked = fork_record.forked
_turn = threading.RLock()
_tried = threading.local()


def _after_fork() -> None:
    global _forked, _turn, _tried
    _forked = True
    _turn, _tried = threading.RLock(), threading.local()  # the parent's threads hold the old ones


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def check_fork() -> None:
    """Raise a RuntimeError in a forked process whose torch would wait for lost threads.

    It does nothing outside forked children. There it makes one trial per thread, which takes
    milliseconds if torch works and five seconds if not. With `torch.set_num_threads(1)` torch needs
    no other threads, and the check passes.
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
    """Say whether a parallel operation ends in a child of this process."""
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
    """Let one thread at a time run the body, which changes shared state and restores it."""
    with _turn:
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators during the body, for code that takes no generator.

    Their states, including those of GPUs in use, are restored after it.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with in_turn(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
