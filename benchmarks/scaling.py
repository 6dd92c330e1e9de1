"""Cost against the number of rows: `python benchmarks/scaling.py [CASE ...] [--quick]`.

Every solver from 1,000 to 1,000,000 rows, each fit in a fresh process with two threads, after a fit
of 200 rows that warms it up. Deterministic solvers run until they have converged, Adam for one
epoch, L-BFGS on a network for 30 iterations. Prints seconds (of the whole fit, and of it until the
last iterate: the rest evaluates the ELBO), iterations and peak memory, and the exponent of the cost
from 10,000 rows on, which should be 1.0; Newton should need no more iterations at a million rows
than at ten thousand (and two). --quick stops at 100,000 rows.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

os.environ.setdefault("OMP_NUM_THREADS", "2")
HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "tests")]  # skavi, and the tests' closed forms

import numpy as np  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402

from benchmarks.fresh import call  # noqa: E402
from benchmarks.paper_experiments.report import Report, Table  # noqa: E402
from benchmarks.watched import watched  # noqa: E402
from skavi import AmortizedVI, FactorizedVI  # noqa: E402
from skavi.inference_functions import MLP  # noqa: E402
from skavi.models import (  # noqa: E402
    BayesianDecoder,
    FactorAnalysis,
    LinearModel,
    NonlinearModel,
)
from skavi.noise import GaussHermite, MonteCarlo  # noqa: E402
from skavi.solvers import LBFGS, Adam, CoordinateAscent, Newton  # noqa: E402

SIZES = (1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
FROM, WANTED, WITHIN, MORE_ITERATIONS = 10_000, 1.0, 0.05, 2
_WARM_UP_ROWS, _BATCH = 200, 200


@dataclass(frozen=True)
class Case:
    """How to draw rows and what to fit.

    Attributes
    ----------
    name : str
    draw : callable
        Map (generator, n_rows) to X.
    estimator : callable
        Map n_rows to an unfitted estimator.
    iterates : bool
        Whether its number of iterations is its own affair, and is held to `MORE_ITERATIONS`.
    """

    name: str
    draw: Callable
    estimator: Callable
    iterates: bool = False


def _column(rng, n):
    return 1.155 * rng.normal(size=(n, 1)) + 2.43 * rng.normal(size=(n, 1))


def _waves(rng, n):
    z = 2 * rng.normal(size=(n, 1))
    return 0.3 + z * np.sin(z) + z + rng.normal(size=(n, 1)) * np.exp(np.cos(z))


def _factors(rng, n, n_features=8, n_latents=2):
    loadings = np.random.default_rng(1).normal(size=(n_latents, n_features))
    return rng.normal(size=(n, n_latents)) @ loadings + rng.normal(size=(n, n_features))


def _epoch(n):
    return max(1, n // _BATCH)


def _minibatches(estimator, model, n, *function):
    arguments = {"noise": MonteCarlo(), "solver": Adam(batch_size=_BATCH), "max_iter": _epoch(n)}
    return estimator(model, *function, random_state=0, **arguments)


_WAVE_NOISE = GaussHermite((10, 3))
CASES = (
    Case(
        "Newton, linear",
        _column,
        lambda n: FactorizedVI(LinearModel(), solver=Newton(), noise=GaussHermite(3)),
        iterates=True,
    ),
    Case(
        "Newton, nonlinear",
        _waves,
        lambda n: FactorizedVI(NonlinearModel(), solver=Newton(), noise=_WAVE_NOISE),
        iterates=True,
    ),
    Case(
        "coordinate ascent, factor analysis",
        _factors,
        lambda n: FactorizedVI(FactorAnalysis(2, "diagonal"), solver=CoordinateAscent()),
        iterates=True,
    ),
    Case(
        "Adam, factor analysis, F-VI",
        _factors,
        lambda n: _minibatches(FactorizedVI, FactorAnalysis(2), n),
    ),
    Case(
        "Adam, decoder, A-VI",
        _factors,
        lambda n: _minibatches(AmortizedVI, BayesianDecoder(2, (16,)), n, MLP((16,))),
    ),
    Case(
        "L-BFGS, nonlinear, A-VI",
        _waves,
        lambda n: AmortizedVI(
            NonlinearModel(),
            MLP((8, 8)),
            solver=LBFGS(),
            noise=_WAVE_NOISE,
            max_iter=30,
            random_state=0,
        ),
    ),
    Case("default, linear", _column, lambda n: FactorizedVI(LinearModel(), random_state=0)),
    Case("default, nonlinear", _waves, lambda n: FactorizedVI(NonlinearModel(), random_state=0)),
)


def measure(name, n_rows):
    """Fit one case, warmed up, and return what it cost and what was chosen."""
    case = next(case for case in CASES if case.name == name)
    rng = np.random.default_rng(0)
    X = case.draw(rng, n_rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        case.estimator(_WARM_UP_ROWS).fit(X[:_WARM_UP_ROWS])
        last = begin = perf_counter()

        def note(_):
            nonlocal last
            last = perf_counter()

        with watched(note):
            estimator = case.estimator(n_rows).fit(X)
        seconds = perf_counter() - begin
    return {
        "rows": n_rows,
        "seconds": seconds,
        "climbing": last - begin,
        "iterations": estimator.n_iter_,
        "converged": estimator.converged_,
        "elbo_per_row": estimator.elbo_ / n_rows,
        "noise": repr(estimator.noise_),
        "solver": repr(estimator.solver_),
    }


def exponent(rows, seconds):
    """Return the slope of log seconds on log rows, from FROM rows on; NaN with fewer than two."""
    rows, seconds = np.array(rows, dtype=float), np.array(seconds, dtype=float)
    far = rows >= FROM
    if far.sum() < 2:
        return float("nan")
    return float(np.polyfit(np.log(rows[far]), np.log(seconds[far]), 1)[0])


def scale(case, sizes, limit):
    """Return a row a size; sizes after one that fails or takes too long are left out."""
    outcomes = []
    for n_rows in sizes:
        print(f"{case.name}, {n_rows:,} rows ...", file=sys.stderr, flush=True)
        returned = call("benchmarks.scaling:measure", {"name": case.name, "n_rows": n_rows}, limit)
        cost = {"peak_mb": returned.peak_mb, "load": returned.load}
        if returned.value is None:
            outcomes.append({"rows": n_rows, "error": returned.reason} | cost)
            break
        outcomes.append(returned.value | cost)
    return outcomes


def details(case, outcomes):
    """Return the table of one case."""
    columns = ["rows", "seconds", "climbing", "us a row", "iterations", "converged", "ELBO a row"]
    columns += ["peak MB", "noise", "solver", "load"]
    lines = []
    for o in outcomes:
        if "error" in o:
            lines.append([o["rows"], o["error"][:80], *[None] * (len(columns) - 2)])
            continue
        per_row = 1e6 * o["seconds"] / o["rows"]
        line = [o["rows"], o["seconds"], o["climbing"], per_row, o["iterations"], o["converged"]]
        line += [o["elbo_per_row"], round(o["peak_mb"]), o["noise"], o["solver"], o["load"]]
        lines.append(line)
    return Table(case.name, columns, lines)


def verdicts(results):
    """Return the table of exponents and iterations, wanted and measured."""
    lines = []
    for case, outcomes in results.items():
        good = [o for o in outcomes if "error" not in o]
        rows = [o["rows"] for o in good]
        slope = exponent(rows, [o["seconds"] for o in good])
        climbing = exponent(rows, [o["climbing"] for o in good])
        each = exponent(rows, [o["climbing"] / max(o["iterations"], 1) for o in good])
        memory = exponent(rows, [o["peak_mb"] for o in good])
        at = {o["rows"]: o["iterations"] for o in good}
        more = at[max(at)] - at.get(FROM, at[max(at)]) if at else None
        kept = abs(slope - WANTED) <= WITHIN
        if case.iterates and more is not None:
            kept = kept and more <= MORE_ITERATIONS
        largest = max(rows, default=None)
        lines.append([case.name, largest, slope, climbing, each, memory, more, kept])
    columns = ["case", "largest", "exponent", "of climbing", "of one iteration", "of memory"]
    columns.append("more iterations")
    title = f"Cost as a power of the rows, from {FROM:,} (wanted: {WANTED} +- {WITHIN})"
    return Table(title, [*columns, "kept"], lines)


def draw(figure, results):
    """Draw seconds against rows."""
    axes = figure.subplots()
    for case, outcomes in results.items():
        good = [o for o in outcomes if "error" not in o]
        axes.plot([o["rows"] for o in good], [o["seconds"] for o in good], "o-", label=case.name)
    low, high = SIZES[2], SIZES[-1]
    axes.plot([low, high], [0.1, 0.1 * high / low], "k:", label="linear")
    axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds of fit")
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))


def main(arguments=None):
    """Run what the command line asks for."""
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="; ".join(names))
    parser.add_argument("--quick", action="store_true", help="up to 100,000 rows")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="most rows")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds a fit may take")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder to write to")
    options = parser.parse_args(arguments)
    unknown = set(options.cases) - set(names)
    if unknown:
        parser.error(f"unknown cases {sorted(unknown)}; known: {'; '.join(names)}")
    largest = min(options.largest, 100_000) if options.quick else options.largest
    sizes = [size for size in SIZES if size <= largest]
    chosen = [case for case in CASES if not options.cases or case.name in options.cases]
    begin = perf_counter()
    results = {case: scale(case, sizes, options.limit) for case in chosen}
    report = Report(
        "scaling",
        "Cost against the number of rows",
        {"sizes": sizes, "quick": options.quick},
        [*(details(case, outcomes) for case, outcomes in results.items()), verdicts(results)],
        [
            "Where a solver's own work is small beside a fixed cost, the exponent is below one: "
            "that is no fault. Normal factor analysis reads the rows' second moments alone.",
            "The default choice may change noise and solver with the rows; it is listed.",
        ],
        {"seconds": lambda figure: draw(figure, results)},
        {"runs": {case.name: outcomes for case, outcomes in results.items()}},
    )
    print(report.text())
    report.write(options.output, perf_counter() - begin)


if __name__ == "__main__":
    main()
