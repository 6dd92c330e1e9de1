"""What a fit has done so far, on disk, so that another process can go on from it.

A fit is a deterministic sequence of steps: runs of a solver, and what is computed between them. A
journal keeps the results of the steps that are done, the memory of the run that is under way, and
the state of the random generator after each. A fit that starts again with its journal repeats what
is cheap, takes from the journal what is not, and goes on to the same result, to the last bit.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skavi._fit.journal_trees import Decoder, Encoder
from skavi._platform.archive import DamagedFileError, read_archive, remove, write_archive
from skavi._platform.user_warnings import warn
from skavi._platform.version import __version__
from skavi.solvers import Progress, Run

_KIND = "skavi checkpoint 2"
#: Relative: threads change sums by less than this (determinism.rst); more means other code or
#: data.
_SAME_DENSITY = 1e-9

#: In the place of what a step came to, where it has not been done.
NOTHING = object()


class Journal:
    """Keep nothing: the journal of a fit without a checkpoint."""

    def seed(self, drawn: int) -> int:
        """Return the seed that the fit began with."""
        return drawn

    def begin(self, generator: torch.Generator, density: Callable[[], float]) -> None:
        """Take note of the fit's generator and of the model's log density at some point."""

    def once(self, compute: Callable[..., Any], *arguments) -> Any:
        """Return what a step computes: tensors, numbers, a `State` or an `Outcome`."""
        return compute(*arguments)

    def recall(self) -> Any:
        """Return what the next step came to when an earlier process did it, else `NOTHING`."""
        return NOTHING

    def keep(self, value: Any) -> Any:
        """Note what a step came to, and return it."""
        return value

    def watch(self, run: Run, progress: Progress) -> Progress:
        """Take over where an earlier process left a run; return what to call in its iterations."""
        return progress

    def close(self) -> None:
        """Clear up after a fit that is complete."""


class StoredJournal(Journal):
    """Keep everything in a file.

    Parameters
    ----------
    path : str or PathLike
    problem : dict of str to str
        What has to be the same for a fit to go on: a description by name.
    is_due : callable
        Map from (iterations, seconds, seconds that the last save took) since the last save to
        whether to save.
    seeded : bool
        Whether the user chose the random state; otherwise the one in the file is taken over.
    device : torch.device

    Raises
    ------
    ValueError
        If the file holds another fit, naming what differs.
    """

    def __init__(self, path, problem, is_due, seeded, device):
        self.path, self.is_due, self.device = path, is_due, device
        self.header: dict[str, Any] = {"kind": _KIND, "problem": problem}
        self.done: list[tuple[Any, Tensor]] = []
        self.running: tuple[dict, list[float], Tensor] | None = None
        self.n_recalled, self.warned, self.seeded = 0, False, seeded
        self.saved_at, self.n_since, self.cost = time.monotonic(), 0, 0.0
        try:
            header, arrays = read_archive(path)
        except FileNotFoundError:
            return
        self._check(header)
        try:
            tree = Decoder(arrays, device).decode(header["journal"])
            self.done, self.running = tree["done"], tree["running"]
            self.header = {name: header[name] for name in ("kind", "problem", "seed", "density")}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedFileError(f"{path} is no whole checkpoint: {error!r}.") from error

    def _check(self, header):
        if header.get("kind") != _KIND:
            raise ValueError(f"{self.path} is no checkpoint that this version of skavi reads.")
        theirs, ours = header["problem"], self.header["problem"]
        differ = [
            f"{name} was {theirs.get(name, 'absent')}, now {ours.get(name, 'absent')}"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name)
        ]
        if differ:
            raise ValueError(
                f"Checkpoint(path={str(self.path)!r}) holds another fit: {'; '.join(differ)}. "
                "Remove the file to start anew, or give each fit a path of its own."
            )

    def seed(self, drawn):
        kept = self.header.setdefault("seed", drawn)
        if self.seeded and kept != drawn:
            raise ValueError(
                f"Checkpoint(path={str(self.path)!r}) holds another fit: random_state gave the "
                f"seed {kept}, and now gives {drawn}. Remove the file to start anew."
            )
        return kept

    def begin(self, generator, density):
        self.generator = generator
        now = density()
        kept = self.header.setdefault("density", now)
        if not math.isclose(kept, now, rel_tol=_SAME_DENSITY):
            raise ValueError(
                f"Checkpoint(path={str(self.path)!r}) holds another fit: the model's log density "
                f"at the start was {kept!r}, now {now!r}, so its code or data have changed. Remove "
                "the file to start anew."
            )

    def once(self, compute, *arguments):
        value = self.recall()
        return self.keep(compute(*arguments)) if value is NOTHING else value

    def recall(self):
        if self.n_recalled == len(self.done):
            return NOTHING
        value, generator_state = self.done[self.n_recalled]
        self.n_recalled += 1
        self.generator.set_state(generator_state.cpu())
        return value

    def keep(self, value):
        self.done.append((value, self.generator.get_state()))
        self.n_recalled += 1
        return value

    def watch(self, run, progress):
        if self.running is not None:
            memory, curve, generator_state = self.running
            run.resume(memory, curve)
            self.generator.set_state(generator_state.cpu())
            self.running = None

        def watch(run):
            stopped = progress(run)
            self.n_since += 1
            seconds = time.monotonic() - self.saved_at
            if not stopped and self.is_due(self.n_since, seconds, self.cost):
                self._save(run)
            return stopped

        return watch

    def _save(self, run):
        """Write everything; if that fails say so, once, and go on: the file before is whole."""
        start = time.monotonic()
        memory = {f.name: getattr(run.memory, f.name) for f in dataclasses.fields(run.memory)}
        curve = run.curve[: run.memory.n_iter]
        encoder = Encoder()
        running = memory, curve, self.generator.get_state()
        journal = encoder.encode({"done": self.done, "running": running})
        try:
            write_archive(self.path, {**self.header, "journal": journal}, encoder.arrays)
        except OSError as error:
            self._warn(f"could not be written at iteration {run.memory.n_iter} ({error})")
        self.n_since, self.saved_at = 0, time.monotonic()
        self.cost = self.saved_at - start

    def close(self):
        try:
            remove(self.path)
        except OSError as error:
            self._warn(f"could not be removed after the fit ({error})")

    def _warn(self, what):
        if not self.warned:
            self.warned = True
            warn(
                f"Checkpoint(path={str(self.path)!r}) {what}. The fit is not affected.",
                RuntimeWarning,
            )


def versions() -> dict[str, str]:
    """Return what computes: a fit goes on only under the same versions."""
    return {"skavi": __version__, "torch": torch.__version__, "numpy": np.__version__}
