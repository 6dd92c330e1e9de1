"""The options of the command, read and checked without a library that takes seconds to import."""

import argparse
import csv
import os
import re
import sys
from importlib.metadata import PackageNotFoundError, version

from skavi._command_line.table import shorten

#: Latents a row for the digits where none is asked for. Not measured: a round number.
DIGITS_COMPONENTS = 10
FIGURE = "skavi.png"
#: The largest seed that scikit-learn takes.
_LARGEST_SEED = 2**32 - 1

#: Options that a model takes beside --components and the outputs.
MODELS: dict[str, set[str]] = {
    "factor-analysis": {"likelihood", "covariates", "impute"},
    "decoder": {"likelihood", "covariates", "impute"},
    "topics": set(),
    "mixture": {"likelihood", "impute"},
    "hidden-markov": {"likelihood", "groups", "impute"},
    "mixed-effects": {"likelihood", "covariates", "groups", "response", "impute"},
}
_LIKELIHOODS = ("normal", "student_t", "bernoulli", "poisson", "negative_binomial")
#: Options that ask for one fit of one model, in place of a comparison.
_OF_ONE_FIT = (
    "model",
    "likelihood",
    "covariates",
    "groups",
    "response",
    "amortized",
    "impute",
    "save",
)

_DESCRIPTION = """\
Without --model, or another option marked *: fit FactorizedVI and AmortizedVI to 70 % of the rows of
a table with the same model, and compare them on the rest: ELBO, seconds, and the amortization gap.
Without a file the table is scikit-learn's handwritten digits (1797 x 64), and latents are also
compared by how well a logistic regression tells the digits from them. The model is probabilistic
PCA for the digits and factor analysis (one noise variance a column, so that units do not matter)
for your own table.

With one of them: fit one model to all rows, and print the fit on a page.

The table is a CSV file, or a Parquet file where pandas (with pyarrow) or polars is installed.
Missing cells (empty, NA, NaN, null, ?) are marginalised; an index in front, and columns of labels,
of dates or of one value are left out, and named, unless an option names them. Columns without a
header are called 1, 2, ...
"""
_EPILOG = """\
exit codes: 0 done; 2 an argument, a file or the table was refused, in one sentence;
130 interrupted; 1 anything else, such as a reader of the output that has closed.
"""


class Parser(argparse.ArgumentParser):
    """A parser that refuses in one sentence."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser() -> Parser:
    """Return the parser of the command's options."""
    # Without abbreviations, an option that is added later changes no command of today.
    made = Parser(
        prog=program_name(),
        description=_DESCRIPTION,
        epilog=_EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "data", nargs="?", help="CSV or Parquet file, with or without a header; default: digits"
    )
    _add_model(made)
    _add_outputs(made)
    made.add_argument(
        "--seed", type=_seed, default=0, help="of the split and the fits (default: 0)"
    )
    made.add_argument("--version", action="version", version=f"skavi {_version()}")
    made.add_argument(
        "--force", action="store_true", help="overwrite outputs that exist, never the input"
    )
    return made


def _add_model(made):
    made.add_argument(
        "--components",
        type=_whole_number,
        metavar="K",
        help=f"latents a row, topics, components or states; default: {DIGITS_COMPONENTS} for "
        "digits, else as many as have more than average variance among the standardised columns, "
        "at most 20; 10 topics; 2 components or states",
    )
    made.add_argument("--model", choices=list(MODELS), help="* fit this model")
    made.add_argument(
        "--likelihood", choices=_LIKELIHOODS, help="* of a cell (default: normal); not for topics"
    )
    made.add_argument(
        "--covariates",
        type=_names,
        default=(),
        metavar="NAMES",
        help="* columns that are given, not explained, separated by commas (factor-analysis, "
        "decoder), or the fixed effects (mixed-effects); text counts a level at a time",
    )
    made.add_argument(
        "--groups",
        metavar="NAME",
        help="* column of labels: of the groups (mixed-effects), or of the series (hidden-markov)",
    )
    made.add_argument("--response", metavar="NAME", help="* column to explain (mixed-effects)")
    made.add_argument(
        "--amortized", action="store_true", help="* fit AmortizedVI in place of FactorizedVI"
    )


def _add_outputs(made):
    made.add_argument(
        "--output",
        metavar="FILE",
        help="write posterior means and standard deviations of all rows' latents (of groups, "
        "probabilities of states) to this CSV or .parquet file",
    )
    made.add_argument(
        "--impute",
        metavar="FILE",
        help="* write the table with its missing cells filled to this CSV or .parquet file; all "
        "else is kept as it was",
    )
    made.add_argument("--save", metavar="FILE", help="* save the fit, for skavi.load")
    made.add_argument(
        "--figure",
        "--plot",
        metavar="FILE",
        help=f"where the figure goes; its ending says the format (default: {FIGURE} of a "
        "comparison, or a number with it where that exists; none of one fit)",
    )


def of_one_fit(arguments) -> bool:
    """Say whether options ask for one fit of one model, in place of a comparison."""
    return any(getattr(arguments, name) for name in _OF_ONE_FIT)


def misplaced(arguments) -> str | None:
    """Return a sentence about an option that the model does not take, or lacks; None: all fit."""
    model = arguments.model or "factor-analysis"
    for name in ("likelihood", "covariates", "groups", "response", "impute"):
        if getattr(arguments, name) and name not in MODELS[model]:
            takers = ", ".join(each for each, options in MODELS.items() if name in options)
            return f"--{name} is not for --model {model}, but for {takers}."
    if model == "mixed-effects":
        for name in ("response", "groups"):
            if not getattr(arguments, name):
                return f"--model mixed-effects needs --{name} NAME."
        if arguments.components is not None:
            return "--components is not for --model mixed-effects: it has one effect a group."
    return None


def most_components(arguments, n_rows: int, n_columns: int) -> int:
    """Return how many components one fit may have: factors are no more than columns."""
    columns = n_columns - len(arguments.covariates)
    factors = arguments.model in (None, "factor-analysis")
    return max(1, min(n_rows, columns)) if factors else n_rows


def _version() -> str:
    try:
        return version("skavi")
    except PackageNotFoundError:  # a checkout that is not installed
        return "of an unknown version"


def program_name() -> str:
    """Return the name under which the command was called."""
    return "skavi" if os.path.basename(sys.argv[0]) == "skavi" else "python -m skavi"


def _names(text):
    names = [name.strip() for name in next(csv.reader([text]), [])]
    if not names or not all(names):
        raise argparse.ArgumentTypeError(f"{shorten(text)} names no column somewhere")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{shorten(text)} names a column twice")
    return tuple(names)


def _whole_number(text):
    # Python's int reads more: 1_0, spaces, digits of other scripts.
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{shorten(text)} is not a whole number")
    return int(text)


def _seed(text):
    number = _whole_number(text)
    if not 0 <= number <= _LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{number} is not from 0 to {_LARGEST_SEED}")
    return number
