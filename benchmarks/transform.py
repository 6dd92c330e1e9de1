"""Rows a second of transform beside a bare pass: `python benchmarks/transform.py [--quick]`.

A million rows of ten columns through ``AmortizedVI.transform`` and through the same network written
out in torch, in float64 as skavi computes: of all rows at once, and, which is kinder to the caches,
8,192 at a time. Bare passes get a tensor and return one; transform gets an array, checks it, and
returns one, with equal rows equal to the last bit. Best of several, taken in turn in one fresh
process. float32 rows are computed in float64 and rounded once; a bare pass in float32 is shown
beside them. F-VI's transform, which solves every row's own problem, is reported, and promises
nothing.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path
from time import perf_counter

os.environ.setdefault("OMP_NUM_THREADS", "2")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402

from benchmarks.fresh import call  # noqa: E402
from benchmarks.paper_experiments.report import Report, Table  # noqa: E402
from skavi import AmortizedVI, FactorizedVI  # noqa: E402
from skavi.inference_functions import MLP  # noqa: E402
from skavi.models import FactorAnalysis, NonlinearModel  # noqa: E402

WANTED, N_FEATURES, N_LATENTS, _TRAINING, _CHUNK = 0.9, 10, 4, 2000, 8192
NETWORKS = ((16, 16), (64, 64), (256, 256))
WAYS = ("at once", "in chunks")
FACTORIZED = {"factor analysis": FactorAnalysis(N_LATENTS), "nonlinear": NonlinearModel()}


def _rows(n_rows, n_features, dtype):
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(N_LATENTS, n_features))
    X = rng.normal(size=(n_rows, N_LATENTS)) @ loadings
    return (X + rng.normal(size=X.shape)).astype(dtype)


def _fitted(estimator, X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return estimator.fit(X[:_TRAINING])


def _bare(vi, dtype):
    """Return the fitted network as a function from rows to means, in torch alone."""
    function, k = vi.inference_function_, N_LATENTS
    own = (function.input_mean_, function.input_scale_)
    mean, scale = (torch.tensor(values, dtype=dtype) for values in own)
    layers = range(len(function.hidden_layer_sizes) + 1)
    named = {n: torch.tensor(v, dtype=dtype) for n, v in vi._parameters.items()}

    def forward(X):
        hidden = (X.to(dtype) - mean) / scale
        for layer in layers:
            hidden = torch.addmm(named[f"bias_{layer}"], hidden, named[f"weight_{layer}"])
            hidden = hidden if layer == layers[-1] else torch.relu(hidden)
        return hidden[:, :k]

    return forward


def amortized(hidden, dtype, n_rows, repeats):
    """Return the best seconds of transform and of bare passes."""
    X = _rows(n_rows, N_FEATURES, dtype)
    vi = AmortizedVI(FactorAnalysis(N_LATENTS), MLP(hidden), max_iter=3, random_state=0)
    vi, tensor = _fitted(vi, X), torch.tensor(X)
    double, single = _bare(vi, torch.float64), _bare(vi, torch.float32)
    ways = {
        "transform": lambda: vi.transform(X),
        "bare at once": lambda: double(tensor),
        "bare in chunks": lambda: torch.cat([double(part) for part in tensor.split(_CHUNK)]),
        "bare float32": lambda: torch.cat([single(part) for part in tensor.split(_CHUNK)]),
    }
    with torch.no_grad():
        apart = float(np.abs(ways["transform"]() - double(tensor).numpy()).max())
        return _best(ways, repeats), apart


def factorized(name, n_rows, repeats):
    """Return the best seconds of transform."""
    X = _rows(n_rows, 1 if name == "nonlinear" else N_FEATURES, np.float64)
    vi = _fitted(FactorizedVI(FACTORIZED[name], random_state=0), X)
    return _best({"transform": lambda: vi.transform(X)}, repeats)


def _best(ways, repeats):
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            begin = perf_counter()
            way()
            best[name] = min(best[name], perf_counter() - begin)
    return best


def compare(n_rows, repeats):
    """Return the two tables."""
    lines, others = [], []
    for hidden in NETWORKS:
        for dtype in ("float64", "float32"):
            arguments = {"hidden": hidden, "dtype": dtype, "n_rows": n_rows, "repeats": repeats}
            returned = call("benchmarks.transform:amortized", arguments)
            if returned.value is None:
                sys.exit(returned.error)
            best, apart = returned.value
            ratio, chunked = (best[f"bare {way}"] / best["transform"] for way in WAYS)
            rates = [n_rows / seconds for seconds in best.values()]
            line = [str(hidden), dtype, *rates, ratio, ratio >= WANTED, chunked, apart]
            lines.append([*line, returned.peak_mb, returned.load])
    for name in FACTORIZED:
        arguments = {"name": name, "n_rows": n_rows, "repeats": min(repeats, 2)}
        returned = call("benchmarks.transform:factorized", arguments)
        if returned.value is None:
            sys.exit(returned.error)
        rate = n_rows / returned.value["transform"]
        others.append([name, rate, returned.peak_mb, returned.load])
    columns = ["hidden", "rows", "transform", "bare at once", "in chunks", "in float32"]
    columns += ["over bare", "kept", "over chunks", "largest difference", "peak MB", "load"]
    return [
        Table("AmortizedVI: rows a second", columns, lines),
        Table("FactorizedVI: rows a second", ["model", "transform", "peak MB", "load"], others),
    ]


def main(arguments=None):
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100,000 rows, two repeats")
    parser.add_argument("--rows", type=int, help="how many rows")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder to write to")
    options = parser.parse_args(arguments)
    begin, n_rows = perf_counter(), options.rows or (100_000 if options.quick else 1_000_000)
    repeats = 2 if options.quick else 5
    report = Report(
        "transform",
        "Rows a second of transform",
        {"rows": n_rows, "repeats": repeats, "wanted": WANTED},
        compare(n_rows, repeats),
        ["Above a load of one, times mean little."],
    )
    print(report.text())
    report.write(options.output, perf_counter() - begin)


if __name__ == "__main__":
    main()
