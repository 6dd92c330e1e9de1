"""Protection against forks of a running torch, and between threads that change shared state.

torch's worker threads do not survive a fork: the child's next parallel operation waits for them
without end. torch does not tell whether they had been started, but it can be tried: in a child of
the child, which inherits the same state and can be killed if it hangs. An alarm ends it, whatever
becomes of the child.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, wraps
from inspect import isfunction
from multiprocessing.connection import wait
from typing import TypeVar

import torch

from skavi._platform import fork_record

#: Numbers: torch shares work between threads from 32,768 numbers on (its GRAIN_SIZE).
_PARALLEL_SIZE = 200_000
#: Seconds: a forked child that can compute needs milliseconds (see `check_fork`).
_LONGEST = 5.0
_forked = fork_record.forked
_T = TypeVar("_T")
_turn = threading.RLock()
_tried = threading.local()


def _after_fork() -> None:
    global _forked, _turn, _tried
    _forked = True
    _turn, _tried = threading.RLock(), threading.local()  # the parent's threads hold the old ones


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class LostThreadsError(RuntimeError):
    """The process was forked, and torch would wait for threads that only its parent has."""


def check_fork() -> None:
    """Raise a LostThreadsError in a forked process whose torch would wait for lost threads.

    It does nothing outside forked children. There it makes one trial per thread, which takes
    milliseconds if torch works and five seconds if not. With `torch.set_num_threads(1)` torch needs
    no other threads, and the check passes.
    """
    if not _forked or torch.get_num_threads() == 1:
        return
    if not hasattr(_tried, "works"):
        _tried.works = _parallel_work_ends()
    if not _tried.works:
        raise LostThreadsError(
            "This process was forked from one whose torch had started its threads: here they are "
            "lost, and torch would wait for them for ever. Start workers with joblib's loky "
            '(n_jobs, its default), or multiprocessing.get_context("spawn") or "forkserver"; or '
            "call torch.set_num_threads(1) first thing in each forked worker."
        )


def guarded(public: _T) -> _T:
    """Let a function, or all public methods and properties of a class, call `check_fork` first.

    Every public way into torch has this decorator (tests/test_processes.py lists them).

    Examples
    --------
    >>> from skavi._platform.forks_and_threads import guarded, is_guarded
    >>> @guarded
    ... class Doubled:
    ...     def of(self, x):
    ...         return 2 * x
    >>> Doubled().of(3), is_guarded(Doubled.of)
    (6, True)
    """
    if not isinstance(public, type):
        return _guarded_function(public)  # type: ignore[return-value]
    for name, member in list(vars(public).items()):
        if not name.startswith("_"):
            _guard_member(public, name, member)
    return public


def _guarded_function(function):
    @wraps(function)
    def after_check(*args, **kwargs):
        check_fork()
        return function(*args, **kwargs)

    after_check._checks_fork = True  # type: ignore[attr-defined]
    return after_check


def _guard_member(cls, name, member):
    if isinstance(member, property):
        setattr(cls, name, property(_guarded_function(member.fget), doc=member.__doc__))
    elif isinstance(member, cached_property):
        cached = cached_property(_guarded_function(member.func))
        cached.__set_name__(cls, name)
        setattr(cls, name, cached)
    elif isinstance(member, classmethod):
        setattr(cls, name, classmethod(_guarded_function(member.__func__)))
    elif isfunction(member):
        setattr(cls, name, _guarded_function(member))


def is_guarded(member) -> bool:
    """Say whether a function, method or property calls `check_fork` first."""
    function = getattr(member, "fget", None) or getattr(member, "func", None) or member
    return hasattr(function, "_checks_fork")


def _parallel_work_ends() -> bool:
    """Say whether a parallel operation ends in a child of this process."""
    ours, its = os.pipe()
    child = os.fork()
    if child == 0:
        _end_alone()
        torch.ones(_PARALLEL_SIZE).exp()
        os.write(its, b"1")
        os._exit(0)
    os.close(its)
    try:
        return bool(wait([ours], _LONGEST)) and os.read(ours, 1) == b"1"
    finally:
        os.close(ours)
        with suppress(OSError):  # where SIGCHLD is ignored, or another thread waits for children
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _end_alone():
    """Let this process end by itself, and by any signal, if its parent does not live to end it."""
    for name in ("SIGALRM", "SIGTERM", "SIGINT", "SIGHUP"):
        number = getattr(signal, name)
        signal.signal(number, signal.SIG_DFL)  # a handler in Python would wait for torch
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    signal.setitimer(signal.ITIMER_REAL, _LONGEST)


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
    # For a GPU that is not in use `torch.manual_seed` would keep the call's whole traceback.
    elsewhere = devices or torch.backends.mps.is_available()
    seed_all = torch.manual_seed if elsewhere else torch.default_generator.manual_seed
    with in_turn(), torch.random.fork_rng(devices=devices):
        seed_all(seed)
        yield
