"""Factor analysis of any table, beside scikit-learn's: `python benchmarks/factor_analysis.py`.

Scikit-learn's FactorAnalysis maximises the likelihood to ``tol=1e-6``; skavi fits a posterior of
everything to its default ``tol``, so that equal seconds are not expected: at most ten times theirs,
or 0.3 s. With holes, which scikit-learn does not take, theirs is fitted to the columns' means. Both
in one warm process, on one thread, in seconds of processor time, best of several. ``--command``
also times ``python -m skavi`` on each table, imports included: processor and wall seconds.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
import sklearn.decomposition  # noqa: E402
import torch  # noqa: E402
from sklearn.datasets import load_breast_cancer, load_digits, load_wine  # noqa: E402

from skavi import FactorizedVI  # noqa: E402
from skavi.models import FactorAnalysis  # noqa: E402

WANTED, ENOUGH, OF_COMMAND = 10.0, 0.3, 10.0  # times theirs, or seconds; seconds of the command


def standardised(X):
    """Return the table in standard deviations of its columns."""
    return (X - X.mean(0)) / X.std(0)


def tables():
    """Return tables and numbers of components, by name."""
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(30, 5)) @ rng.normal(size=(5, 300)) + rng.normal(size=(30, 300))
    wide[rng.random(wide.shape) < 0.2] = np.nan
    two = rng.normal(size=(150, 2)) @ rng.normal(size=(2, 6)) + 0.3 * rng.normal(size=(150, 6))
    return {
        "breast cancer": (standardised(load_breast_cancer().data), 3),
        "wine": (standardised(load_wine().data), 3),
        "digits": (load_digits().data, 10),
        "30 x 300, holes": (wide, 3),
        "one column": (rng.normal(size=(200, 1)), 1),
        "ten collinear columns": (rng.normal(size=(200, 1)) * np.arange(1, 11), 2),
        "an index column": (np.column_stack([np.arange(150), two]), 2),
    }


def best_seconds(fit, repeats):
    """Return the fitted estimator, and the fewest processor seconds of several fits."""
    seconds = []
    for _ in range(repeats):
        begin = process_time()
        fitted = fit()
        seconds.append(process_time() - begin)
    return fitted, min(seconds)


def compared(X, k, noise="diagonal", repeats=3):
    """Return sweeps, ELBO, seconds of both, and their ratio."""
    ours, seconds = best_seconds(lambda: FactorizedVI(FactorAnalysis(k, noise)).fit(X), repeats)
    filled = np.where(np.isnan(X), np.nanmean(X, 0), X)
    theirs = sklearn.decomposition.FactorAnalysis(k, tol=1e-6, max_iter=100_000)
    _, other = best_seconds(lambda: theirs.fit(filled), repeats)
    return {
        "sweeps": ours.n_iter_,
        "converged": ours.converged_,
        "elbo": ours.elbo_,
        "seconds": seconds,
        "sklearn_seconds": other,
        "ratio": seconds / other,
        "kept": bool(seconds <= max(WANTED * other, ENOUGH) and ours.converged_),
    }


def seconds_of_command(X, folder):
    """Return seconds of ``python -m skavi`` on the table, imports included, by kind."""
    path = Path(folder) / "table.csv"
    head = ",".join(f"x{i}" for i in range(X.shape[1]))
    rows = [",".join("" if np.isnan(v) else repr(float(v)) for v in row) for row in X]
    path.write_text("\n".join([head, *rows]) + "\n")
    outputs = ["--output", "latents.csv", "--figure", "figure.png", "--force"]
    command = [sys.executable, "-m", "skavi", str(path), *outputs]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    begin, before = perf_counter(), _processor_seconds_of_children()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return f"exit code {done.returncode}: {done.stderr[-200:]}"
    processor = _processor_seconds_of_children() - before
    return {"processor": processor, "wall": perf_counter() - begin}


def _processor_seconds_of_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments=None):
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="; ".join(tables()))
    parser.add_argument("--noise", default="diagonal", help="diagonal or isotropic")
    parser.add_argument("--command", action="store_true", help="time the command, too")
    parser.add_argument("--out", type=Path, help="JSON file to write to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warm = np.random.default_rng(0).normal(size=(20, 4))
    FactorizedVI(FactorAnalysis(2, options.noise)).fit(warm)
    results = {}
    for name, (X, k) in tables().items():
        if options.tables and name not in options.tables:
            continue
        row = results[name] = compared(X, k, options.noise)
        if options.command:
            with tempfile.TemporaryDirectory() as folder:
                row["command"] = seconds_of_command(X, folder)
        print(
            f"{name:22s} {row['sweeps']:5d} sweeps  ELBO {row['elbo']:.6f}  {row['seconds']:.3f} s"
            f"  scikit-learn {row['sklearn_seconds']:.3f} s  ratio {row['ratio']:6.1f}"
            f"  {'kept' if row['kept'] else 'NOT KEPT'}  {row.get('command', '')}",
            flush=True,
        )
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    return results


if __name__ == "__main__":
    main()
