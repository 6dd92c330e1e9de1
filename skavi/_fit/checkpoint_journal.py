"""Checkpoints of a fit on disk, from which another process can continue it.

A fit is a deterministic sequence of steps: runs of a solver, and computations between them. A
journal stores the result of each finished step, the memory of the current run, and the state of
the random generator after each. A fit that starts again with its journal repeats cheap steps, takes
the results of expensive ones from the journal, and reaches the same result, to the last bit.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skavi._fit.checkpoint_trees import Decoder, Encoder
from skavi._platform.archive import DamagedFileError, read_archive, remove, write_archive
from skavi._platform.user_warnings import warn
from skavi._platform.version import __version__
from skavi.solvers import Progress, Run

_KIND = "skavi checkpoint 2"
#: Relative: threads change sums by less than this (determinism.rst); more means other code or
#: data.
_SAME_DENSITY = 1e-9

#: Stands for the result of a step that has not been done yet.
NOTHING = object()


class Journal:
    """Keep nothing: the journal of a fit without a checkpoint."""

    def seed(self, drawn: int) -> int:
        """Return the stored seed of the fit; `drawn` if there is none."""
        return drawn

    def begin(self, generator: torch.Generator, density: Callable[[], float]) -> None:
        """Store the fit's generator, and compare the model's log density with the stored one."""

    def once(self, compute: Callable[..., Any], *arguments) -> Any:
        """Return a step's result (tensors, numbers, a `State` or an `Outcome`), stored if known."""
        return compute(*arguments)

    def recall(self) -> Any:
        """Return the stored result of the next step, or `NOTHING`."""
        return NOTHING

    def keep(self, value: Any) -> Any:
        """Store the result of a step, and return it."""
        return value

    def watch(self, run: Run, progress: Progress) -> Progress:
        """Restore a run that an earlier process left; return the callback for its iterations."""
        return progress

    def close(self) -> None:
        """Remove the stored steps after a complete fit."""


class StoredJournal(Journal):
    """Keep the steps of a fit in a file.

    Parameters
    ----------
    path : str or PathLike
    problem : dict of str to str
        Descriptions, by name, of everything that must be unchanged for a fit to continue.
    is_due : callable
        Decides whether to save, from the iterations and seconds since the last save, and the
        seconds which that save took.
    seeded : bool
        Whether the user chose the random state; otherwise the stored one is used.
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
        """Write the file; if that fails, warn once and continue with the previous file in place."""
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
    """Return the versions of the libraries that compute: a fit continues under the same ones."""
    return {"skavi": __version__, "torch": torch.__version__, "numpy": np.__version__}
