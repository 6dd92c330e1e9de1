"""Two processes beside one: `python benchmarks/distributed.py [--quick] [--rows N] [--rounds 2]`.

One fit of `NonlinearModel` for each method, by `skavi.distributed.fit` in one process and in two,
each with one thread: seconds of the whole call, start of the processes included, and of a call with
next to no rows; the speed of two over one, with and without that start; and how far ELBO and
parameters of the two fits are apart, relative to their largest. Then one of two processes is
killed, and the seconds until the other has ended and the call has named the cause are measured.
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from time import perf_counter

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
from sklearn.base import clone

from skavi import AmortizedVI, FactorizedVI, distributed
from skavi.inference_functions import Polynomial
from skavi.models import NonlinearModel

METHODS = {
    "F-VI": FactorizedVI(NonlinearModel(), random_state=0),
    "A-VI": AmortizedVI(NonlinearModel(), Polynomial(5), random_state=0),
}


def rows(n):
    """Return n rows of the paper's nonlinear data: theta = 0."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=n)
    return (z * np.sin(z) + z + np.exp(np.cos(z)) * rng.normal(size=n))[:, None]


def timed(vi, path, n_workers):
    """Return a fit in so many processes, and its seconds."""
    begin = perf_counter()
    fitted = distributed.fit(clone(vi), path, n_workers=n_workers, n_threads=1)
    return fitted, perf_counter() - begin


def apart(one, two):
    """Return the largest difference between two fits' ELBOs and parameters, relative."""
    pairs = [(one.elbo_, two.elbo_), (one._raw_globals, two._raw_globals)]
    pairs += [(value, two._parameters[name]) for name, value in one._parameters.items()]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def seconds_to_name_a_killed_worker(vi, path, after):
    """Kill one of two workers some seconds into a fit; return what followed, and after how long."""
    killed = []

    def kill():
        workers = psutil.Process().children()
        killed.append(perf_counter())
        workers[-1].send_signal(signal.SIGKILL)

    timer = threading.Timer(after, kill)
    timer.start()
    try:
        timed(vi, path, 2)
        return "the fit was over first", 0.0
    except distributed.DeadRankError as error:
        return str(error).splitlines()[0], perf_counter() - killed[0]
    finally:
        timer.cancel()


def main():
    """Run the methods and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=2, help="of which the fastest counts")
    parser.add_argument("--quick", action="store_true", help="2,000 rows, one round: that it runs")
    asked = parser.parse_args()
    n, rounds = (2_000, 1) if asked.quick else (asked.rows, asked.rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "X.npy", rows(n))
        np.save(folder / "few.npy", rows(50))
        print(
            f"{'':6}{'rows':>9}{'one s':>9}{'two s':>9}{'start s':>9}{'speed':>7}{'bare':>7} apart"
        )
        for method, vi in METHODS.items():
            runs = {k: [timed(vi, folder / "X.npy", k) for _ in range(rounds)] for k in (1, 2)}
            (one, t_one), (two, t_two) = (min(runs[k], key=lambda run: run[1]) for k in (1, 2))
            start = timed(vi, folder / "few.npy", 2)[1]
            print(
                f"{method:6}{n:9,}{t_one:9.1f}{t_two:9.1f}{start:9.1f}{t_one / t_two:7.2f}"
                f"{(t_one - start) / (t_two - start):7.2f} {apart(one, two):.1e}",
                flush=True,
            )
            after = start + 0.5 * (t_two - start)
            what, seconds = seconds_to_name_a_killed_worker(vi, folder / "X.npy", after)
            print(f"      killed one: {seconds:.1f} s to {what!r}", flush=True)


if __name__ == "__main__":
    main()
