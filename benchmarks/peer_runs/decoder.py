"""One step of the Bayesian decoder, 64-256-256-784 on 10,000 rows, 1,000 a batch, one draw."""

import math
import statistics
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from benchmarks.fresh import call
from benchmarks.paper_experiments.report import Table

WANTED_BARE, WANTED_RIVAL = 1.10, 1.0
BARE, OURS = "bare torch loop", "skavi"
RUNNERS = {
    OURS: "skavi_fits",
    BARE: "torch_loop",
    "NumPyro": "numpyro_decoder",
    "Pyro": "pyro_decoder",
    "the paper's loop": "paper_loop",
}
RIVALS = ("NumPyro", "Pyro", "the paper's loop")


@dataclass(frozen=True)
class DecoderTask:
    """One run of steps: on which rows, by F-VI or A-VI, how many.

    The inference network is the decoder backwards: 784-256-256-128.
    """

    X: np.ndarray
    amortized: bool
    n_steps: int
    n_batch: int = 1000
    n_latents: int = 64
    hidden: tuple[int, ...] = (256, 256)

    @property
    def sizes(self):
        """Widths of the decoder's layers, from latents to features."""
        return (self.n_latents, *self.hidden, self.X.shape[1])

    @property
    def encoder_sizes(self):
        """Widths of the inference network's layers."""
        return (self.X.shape[1], *self.hidden, 2 * self.n_latents)


def timed(step, n_steps):
    """Return the seconds of the first call of `step` and of each of the next ones."""
    seconds = []
    for _ in range(n_steps + 1):
        begin = perf_counter()
        step()
        seconds.append(perf_counter() - begin)
    return seconds


def compare(quick, rows):
    """Return the table and the promises."""
    n_rows, n_steps = (rows or 10_000), (20 if quick else 60)
    X = np.random.default_rng(0).uniform(size=(n_rows, 784)).astype(np.float32)
    lines, promised = [], []
    for amortized in (False, True):
        kind = "A-VI" if amortized else "F-VI"
        medians = {}
        for name, module in RUNNERS.items():
            task = DecoderTask(X, amortized, n_steps, min(1000, n_rows // 2))
            returned = call(f"benchmarks.peer_runs.{module}:run_decoder", {"task": task})
            if returned.value is None:
                reason = returned.reason[:60]
                lines.append([f"{name}, {kind}", reason, None, None, None])
                continue
            first, *later = returned.value
            medians[name] = 1e3 * statistics.median(later)
            quartile = 1e3 * statistics.quantiles(later)[0]
            peak = round(returned.peak_mb)
            lines.append([f"{name}, {kind}", medians[name], quartile, first, peak])
        fastest = min((medians[name] for name in RIVALS if name in medians), default=math.nan)
        promised += [
            _promise(f"decoder step, {kind}: over a bare loop", WANTED_BARE, medians, BARE),
            _promise(
                f"decoder step, {kind}: over the fastest rival",
                WANTED_RIVAL,
                medians | {"fastest": fastest},
                "fastest",
            ),
        ]
    columns = ["method", "ms a step (median)", "lower quartile", "first step s", "peak MB"]
    return Table("decoder step, batch 1,000 of 10,000 x 784", columns, lines), promised


def _promise(name, wanted, medians, other):
    if OURS not in medians or not math.isfinite(medians.get(other, math.nan)):
        return [name, wanted, None, None if OURS in medians else False]
    ratio = medians[OURS] / medians[other]
    return [name, wanted, ratio, ratio <= wanted]
