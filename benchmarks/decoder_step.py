"""One step of the decoder beside a bare loop: `python benchmarks/decoder_step.py [--quick]`.

The Bayesian decoder by F-VI and A-VI, on 10,000 x 784 (64-256-256-784, 1,000 rows a step) and on
the digits (1,797 x 64, 16-64-64-64, 200 rows a step). `peer_runs/torch_loop.py` holds the same
arithmetic written by hand in torch: one draw of the weights, closed-form divergences, fused Adam,
float32. Both are run in one fresh process, a step of one after a step of the other, so that what
else the machine does meets both; medians of their seconds are compared. What fit does before its
first step and after its last is no part of a step.
"""

import argparse
import contextlib
import os
import statistics
import sys
from pathlib import Path
from time import perf_counter

os.environ.setdefault("OMP_NUM_THREADS", "2")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]  # skavi, and its closed forms

import numpy as np  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

from benchmarks.fresh import call  # noqa: E402
from benchmarks.paper_experiments.report import Report, Table  # noqa: E402
from benchmarks.peer_runs import skavi_fits, torch_loop  # noqa: E402
from benchmarks.peer_runs.decoder import DecoderTask  # noqa: E402
from benchmarks.watched import watched  # noqa: E402

WANTED, _WARM_UP = 1.10, 5


def _images(n_rows):
    return np.random.default_rng(0).uniform(size=(n_rows, 784)).astype(np.float32)


def _digits(n_rows):
    return (load_digits().data[:n_rows] / 16).astype(np.float32)


# name: (rows, how to make them, rows a step, latents, hidden layers)
DATA = {
    "10,000 x 784": (10_000, _images, 1000, 64, (256, 256)),
    "digits": (1797, _digits, 200, 16, (64, 64)),
}


class _Enough(Exception):
    """Enough steps were seen."""


def measure(name, amortized, n_steps, n_rows=None):
    """Return the seconds of steps of skavi and of the bare loop, taken in turn."""
    most, make, n_batch, n_latents, hidden = DATA[name]
    X = make(n_rows or most)
    task = DecoderTask(X, amortized, n_steps, min(n_batch, len(X) // 2), n_latents, hidden)
    bare, ours, theirs = torch_loop.step_of(task), [], []
    begin = perf_counter()

    def note(_):
        nonlocal begin
        ours.append(perf_counter() - begin)
        begin = perf_counter()
        bare()
        theirs.append(perf_counter() - begin)
        if len(ours) > n_steps + _WARM_UP:
            raise _Enough
        begin = perf_counter()

    with watched(note), contextlib.suppress(_Enough):
        skavi_fits.decoder(task).fit(X)
    return ours[_WARM_UP:], theirs[_WARM_UP:]


def compare(n_steps, n_rows):
    """Return the lines of the table."""
    lines = []
    for name in DATA:
        for amortized in (False, True):
            arguments = {"name": name, "amortized": amortized, "n_steps": n_steps, "n_rows": n_rows}
            returned = call("benchmarks.decoder_step:measure", arguments)
            line = [name, "A-VI" if amortized else "F-VI"]
            if returned.value is None:
                lines.append([*line, None, None, None, False, returned.load])
                print(returned.error, file=sys.stderr)
                continue
            ours, theirs = (1e3 * statistics.median(times) for times in returned.value)
            ratio = ours / theirs
            lines.append([*line, ours, theirs, ratio, ratio <= WANTED, returned.load])
    return lines


def main(arguments=None):
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 steps in place of 200")
    parser.add_argument("--rows", type=int, help="fewer rows: to see that everything runs")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder to write to")
    options = parser.parse_args(arguments)
    begin, n_steps = perf_counter(), 20 if options.quick else 200
    columns = ["data", "method", "skavi ms", "bare loop ms", "ratio", "kept", "load"]
    report = Report(
        "decoder_step",
        "A step of the decoder beside a bare torch loop",
        {"steps": n_steps, "rows": options.rows, "wanted": WANTED},
        [Table("Medians of milliseconds a step", columns, compare(n_steps, options.rows))],
        ["Above a load of one, times mean little; ratios of steps taken in turn still do."],
    )
    print(report.text())
    report.write(options.output, perf_counter() - begin)


if __name__ == "__main__":
    main()
