"""What a job is: rows to fit and rows held out, and who fits them; how the runs are timed."""

import contextlib
import inspect
import io
import statistics
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any

SLOW = 20.0  # seconds: to them, a process that is not warm adds little


@dataclass(frozen=True)
class Contestant:
    """One way to do a job.

    Attributes
    ----------
    name : str
    fit : callable
        Without arguments, returns what is fitted; its source is what a user would write.
    measure : callable
        From what is fitted to the job's number.
    transform : callable or None
        From what is fitted to the held-out rows' latents; None where the tool offers none.
    ours : bool
    """

    name: str
    fit: Callable[[], Any]
    measure: Callable[[Any], float]
    transform: Callable[[Any], Any] | None = None
    ours: bool = False

    @property
    def n_lines(self) -> int:
        """Lines of user code: those of `fit`, without its own name, docstring and blanks."""
        source = textwrap.dedent(inspect.getsource(self.fit)).splitlines()
        lines = [line for line in source if line.strip() and not line.strip().startswith("#")]
        return max(1, len(lines) - 1)


@dataclass(frozen=True)
class Job:
    """One job: the same rows, the same number for everyone.

    Attributes
    ----------
    name : str
    measured : str
        What the number is.
    higher : bool
        Whether more of it is better.
    contestants : list of Contestant
    missing : list of str
        Specialists that are not installed.
    """

    name: str
    measured: str
    higher: bool
    contestants: list[Contestant]
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """One contestant's outcome on a job; seconds are medians, None where nothing was measured."""

    job: str
    name: str
    ours: bool
    value: float | None
    fit_seconds: float | None
    fit_processor_seconds: float | None
    transform_seconds: float | None
    n_lines: int | None
    remark: str = ""


def hold(job: Job, repeats: int) -> list[Run]:
    """Fit everyone once to warm up, then `repeats` times in turn; measure what was fitted last.

    Who took more than `SLOW` seconds the first time is not asked again.
    """
    fitted, seconds = {}, {each.name: ([], [], []) for each in job.contestants}
    failed, slow = {}, set()
    for repeat in range(repeats + 1):
        for each in job.contestants:
            if each.name in failed or each.name in slow:
                continue
            try:
                took, fitted[each.name] = _timed(each.fit)
                if not repeat and took[0] > SLOW:
                    slow.add(each.name)
                if repeat or each.name in slow:
                    seconds[each.name][0].append(took[0])
                    seconds[each.name][1].append(took[1])
                if (repeat or each.name in slow) and each.transform:
                    again, _ = _timed(each.transform, fitted[each.name])
                    seconds[each.name][2].append(again[0])
            except Exception as error:  # a specialist's: the others go on
                failed[each.name] = f"{type(error).__name__}: {error}"[:200]
    runs = [_run(job, each, fitted, seconds[each.name], failed) for each in job.contestants]
    absent = (Run(job.name, name, False, *[None] * 5, "not installed") for name in job.missing)
    return [*runs, *absent]


def _run(job, each, fitted, seconds, failed):
    named = job.name, each.name, each.ours
    if each.name in failed:
        return Run(*named, *[None] * 5, failed[each.name])
    medians = [statistics.median(part) if part else None for part in seconds]
    value = float(each.measure(fitted[each.name]))
    remark = "" if getattr(fitted[each.name], "converged_", True) else "not converged"
    return Run(*named, value, *medians, each.n_lines, remark)


def _timed(call, *arguments):
    """Return wall and processor seconds of a call, and what it returns; nothing is printed."""
    with warnings.catch_warnings(), contextlib.ExitStack() as quiet:
        warnings.simplefilter("ignore")
        quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
        quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
        begin, used = perf_counter(), process_time()
        value = call(*arguments)
        return (perf_counter() - begin, process_time() - used), value


def ratios(runs: list[Run]) -> dict[str, list[float]]:
    """Return our fastest fit over the fastest specialist's by job: seconds, processor seconds."""
    found = {}
    for job in dict.fromkeys(run.job for run in runs):
        some = [run for run in runs if run.job == job and run.fit_seconds is not None]
        if {run.ours for run in some} == {True, False}:
            found[job] = [
                _least(some, True, seconds) / _least(some, False, seconds)
                for seconds in ("fit_seconds", "fit_processor_seconds")
            ]
    return found


def _least(runs, ours, seconds):
    return min(getattr(run, seconds) for run in runs if run.ours == ours)
