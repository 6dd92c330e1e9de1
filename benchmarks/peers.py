"""skavi beside its rivals: `python benchmarks/peers.py [MODEL ...] [--quick] [--write FOLDER]`.

MODEL is any of linear, saw, nonlinear, factors, decoder, digits; none means all. Rivals (`pip
install "skavi[bench]"`): NumPyro, Pyro, PyMC's ADVI and the paper's own Adam loop. Same data, one
exact evaluator for everyone's factors, every rival at its best of four learning rates, every run in
a fresh process with two threads; imports are not counted. "cold" is set-up and compilation, and the
marks are seconds of stepping after it; skavi has no such phase: all that `fit` does counts, in the
first fit of a process and (warm) in the second. --quick takes one usual rate and less time.
"""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

os.environ.setdefault("OMP_NUM_THREADS", "2")
HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "tests")]  # skavi, and the tests' closed forms

from benchmarks.paper_experiments.report import Report  # noqa: E402
from benchmarks.peer_runs import decoder, digits  # noqa: E402
from benchmarks.peer_runs.contests import CONTESTS, hold  # noqa: E402
from benchmarks.peer_runs.verdicts import (  # noqa: E402
    contest_table,
    draw,
    promises,
    verdict_table,
)

MODELS = ("linear", "saw", "nonlinear", "factors", "decoder", "digits")
BUSY = 0.7


def main(arguments=None):
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--quick", action="store_true", help="one rate each and less time")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="where to write JSON and PNG")
    parser.add_argument("--rows", type=int, help="fewer rows: to see that everything runs")
    options = parser.parse_args(arguments)
    unknown = set(options.models) - set(MODELS)
    if unknown:
        parser.error(f"unknown models {sorted(unknown)}; known: {', '.join(MODELS)}")
    report, seconds = compare(options.models or MODELS, options.quick, options.rows)
    print(report.text())
    print(f"\n{seconds:.0f} s")
    if options.write:
        names = [path.name for path in report.write(options.write, seconds)]
        print(f"wrote {', '.join(names)} to {options.write}")


def compare(models, quick=False, rows=None):
    """Return the report of some models and the seconds that it took."""
    begin, load = perf_counter(), os.getloadavg()[0]
    outcomes, tables, kept = [], [], []
    for contest in CONTESTS:
        if contest.model in models:
            _tell(contest.name)
            outcomes.append(hold(contest, quick, rows))
            tables.append(contest_table(outcomes[-1]))
            kept += promises(outcomes[-1])
    for name, part in (("decoder", decoder), ("digits", digits)):
        if name in models:
            _tell(name)
            table, promised = part.compare(quick, rows)
            tables.append(table)
            kept += promised
    settings = {"quick": quick, "rows": rows, "models": list(models)}
    figures = {"suboptimality": lambda figure: draw(figure, outcomes)} if outcomes else {}
    runs = {outcome.contest.name: [_plain(e) for e in outcome.entries] for outcome in outcomes}
    return Report(
        "peers",
        "skavi beside its rivals",
        settings,
        [*tables, verdict_table(kept)],
        _remarks(quick, load),
        figures,
        {"runs": runs},
    ), perf_counter() - begin


def _tell(name):
    print(f"{name} ...", file=sys.stderr, flush=True)


def _plain(entry):
    """Return a run as it is written: without its snapshots."""
    trace = None if entry.trace is None else {k: _listed(v) for k, v in asdict(entry.trace).items()}
    cost = {n: getattr(entry.returned, n) for n in ("seconds", "peak_mb", "load")}
    cost["error"] = entry.returned.reason
    named = {"method": entry.contestant, "rate": entry.rate, "n_draws": entry.n_draws}
    return named | cost | {"trace": trace}


def _listed(value):
    return value.tolist() if hasattr(value, "tolist") else value


def _remarks(quick, load):
    remarks = [
        "Losses are exact, of the factors themselves; those of the paper's models in its "
        "convention (constants dropped).",
        "Rivals' times to a mark are the first time that a snapshot is below it: noisy ones leave "
        "again. Less than 30% between two times is a tie.",
        "Rivals' networks read standardised inputs, as skavi's do; the paper's loop has its own "
        "start, and two networks for the nonlinear model.",
    ]
    if quick:
        remarks.append("Quick: rivals are not tuned, so the promises are not tested strictly.")
    if load > BUSY:
        remarks.append(f"The machine was BUSY (load {load:.1f} at the start): times mean little.")
    return remarks


if __name__ == "__main__":
    main()
