"""A stream from disk: `python benchmarks/streaming.py [--rows 10000 100000 1000000] [--folder F]`.

Factor analysis of two components on ten columns of float32 in a file, read once, 65,536 rows at a
time, by ``AmortizedVI.partial_fit`` with a linear inference function; then one ``transform`` of the
whole mapped file. Each size in a fresh process with two threads. Prints seconds, peak memory (of
the imports too, and of pages of the mapped file, which the system could drop), how far the plane of
the loadings is from the true one, and the exponent of the seconds from 100,000 rows on: about 1.
Ten million rows (--rows 10000000) take 400 MB of disk.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter

os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.fresh import call
from skavi import AmortizedVI
from skavi.inference_functions import Polynomial
from skavi.models import FactorAnalysis
from skavi.solvers import LBFGS

SIZES = (10_000, 100_000, 1_000_000)
N_FEATURES, N_LATENTS, CHUNK, FROM = 10, 2, 65_536, 100_000
LOADINGS = np.random.default_rng(1).normal(size=(N_LATENTS, N_FEATURES))


def write(path, n_rows):
    """Write rows x = z W + e, a chunk at a time."""
    rng = np.random.default_rng(0)
    shape = n_rows, N_FEATURES
    X = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for first in range(0, n_rows, CHUNK):
        n = len(X[first : first + CHUNK])
        noise = rng.normal(size=(n, N_FEATURES))
        X[first : first + CHUNK] = rng.normal(size=(n, N_LATENTS)) @ LOADINGS + noise
    X.flush()


def measure(path):
    """Stream the file through one estimator; return seconds and how good the fit is."""
    X = np.load(path, mmap_mode="r")
    model, function = FactorAnalysis(N_LATENTS), Polynomial()
    vi = AmortizedVI(model, function, solver=LBFGS(), tol=1e-4, random_state=0)
    begin = perf_counter()
    for first in range(0, len(X), CHUNK):
        vi.partial_fit(X[first : first + CHUNK])
    fitted = perf_counter()
    Z = vi.transform(X)
    found = vi.global_posterior_.mean["loadings"].reshape(N_FEATURES, N_LATENTS)
    return {
        "rows": len(X),
        "fit": fitted - begin,
        "transform": perf_counter() - fitted,
        "angle": _largest_angle(found, LOADINGS.T),
        "shape": Z.shape,
    }


def _largest_angle(A, B):
    """Return the largest principal angle between two column spaces, in radians."""
    left, right = np.linalg.qr(A)[0], np.linalg.qr(B)[0]
    return float(np.arcsin(min(1.0, np.linalg.norm(right - left @ (left.T @ right), 2))))


def exponent(rows, seconds):
    """Return the slope of log seconds on log rows from FROM rows on; NaN with fewer than two."""
    pairs = [(n, s) for n, s in zip(rows, seconds, strict=True) if n >= FROM]
    if len(pairs) < 2:
        return float("nan")
    n, s = np.log(np.array(pairs)).T
    return float(np.polyfit(n, s, 1)[0])


def main():
    """Run the sizes asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=SIZES)
    parser.add_argument("--folder", type=Path, default=None, help="where the files may lie")
    parser.add_argument("--limit", type=float, default=7200.0, help="seconds a size")
    asked = parser.parse_args()
    print(f"{'rows':>12} {'fit s':>9} {'us a row':>9} {'transform s':>12} {'peak MB':>8} angle")
    done = []
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for n_rows in asked.rows:
            path = Path(folder) / "X.npy"
            write(path, n_rows)
            returned = call("benchmarks.streaming:measure", {"path": str(path)}, asked.limit)
            if returned.value is None:
                sys.exit(f"{n_rows:,} rows: {returned.error}")
            o = returned.value
            done.append((n_rows, o["fit"]))
            print(
                f"{n_rows:>12,} {o['fit']:>9.1f} {1e6 * o['fit'] / n_rows:>9.1f} "
                f"{o['transform']:>12.2f} {returned.peak_mb:>8.0f} {o['angle']:.1e}",
                flush=True,
            )
    print(f"exponent of the fit from {FROM:,} rows on: {exponent(*zip(*done, strict=True)):.2f}")


if __name__ == "__main__":
    main()
