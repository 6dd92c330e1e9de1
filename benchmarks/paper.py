"""The paper's experiments: `python benchmarks/paper.py EXPERIMENT [--quick]`.

EXPERIMENT is one of linear, nonlinear, saw, decoder, hmm, all.

Margossian & Blei (2024), "Amortized variational inference: when and why?". Prints published beside
measured and writes a JSON file and figures. --quick has fewer rows in the races and fewer widths:
under ten minutes for all on two cores; without it each experiment takes about that long, ten seeds
at the published settings (the decoder on FashionMNIST, where it can be fetched: days).
"""

import argparse
import os
import sys
from pathlib import Path
from time import perf_counter

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "tests")]  # skavi, and the tests' closed forms

import torch  # noqa: E402
from paper_experiments import decoder, hmm, linear, nonlinear, saw  # noqa: E402

EXPERIMENTS = {"linear": linear, "nonlinear": nonlinear, "saw": saw, "decoder": decoder, "hmm": hmm}


def main(arguments=None):
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "all"])
    parser.add_argument("--quick", action="store_true", help="fewer seeds, draws and iterations")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder to write to")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = list(EXPERIMENTS) if options.experiment == "all" else [options.experiment]
    begin = perf_counter()
    for name in names:
        start, experiment = perf_counter(), EXPERIMENTS[name]
        settings = experiment.QUICK if options.quick else experiment.Settings()
        report = experiment.run(settings, options.jobs)
        seconds = perf_counter() - start
        print(report.text())
        files = ", ".join(path.name for path in report.write(options.output, seconds))
        print(f"\n{name}: {seconds:.0f} s; wrote {files} to {options.output}\n", flush=True)
    print(f"all: {perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
