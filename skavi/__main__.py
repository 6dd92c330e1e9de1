"""`python -m skavi`: factorized and amortized VI on handwritten digits, or on the user's table."""

import argparse
import importlib.util
import io
import os
import re
import sys

from skavi._command_line.csv_table import TableError, printable, read_table, shorten
from skavi._command_line.output_files import OutputError, check_outputs, free_name, write

# torch and scikit-learn take seconds to import: help and refusals do without them, so the modules
# that need them are imported where they are used.

#: Latents a row for the digits where none is asked for. Not measured: a round number.
_DIGITS_COMPONENTS = 10
#: Rows: 7 to train on and 3 to test on. Not measured: order of magnitude.
_FEWEST_ROWS = 10
#: The largest seed that scikit-learn takes.
_LARGEST_SEED = 2**32 - 1
_FIGURE = "skavi.png"
_EXTRA = 'pip install "skavi[%s]"'

_DESCRIPTION = """\
Fit FactorizedVI and AmortizedVI to 70 % of the rows of a table with the same model, and compare
them on the rest: ELBO, seconds, and the amortization gap. Without a file the table is
scikit-learn's handwritten digits (1797 x 64), and latents are also compared by how well a logistic
regression tells the digits from them. The model is probabilistic PCA for the digits and factor
analysis (one noise variance a column, so that units do not matter) for your own table. Missing
cells (empty, NA, NaN, null, ?) are marginalised; an index in front, and columns of labels, of dates
or of one value are left out, and named.
"""


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, default=None
        Arguments; None: those of the process.

    Returns
    -------
    int
        0. For arguments and files that are refused the process ends with status 2 and one sentence.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        _run(arguments)
    except (TableError, OutputError, _ArgumentError) as error:
        parser.error(str(error))
    return 0


class _ArgumentError(ValueError):
    """An argument does not fit the table or the installation; the message says which and why."""


def _run(arguments):
    X, labels, summary = _read(arguments.data)
    _check_components(arguments.components, X)
    figure = _figure_path(arguments)
    outputs = {"--output": arguments.output, "--figure": figure}
    outputs = {option: path for option, path in outputs.items() if path is not None}
    check_outputs(outputs, arguments.data, arguments.force)
    source = "handwritten digits" if arguments.data is None else printable(arguments.data)
    try:
        comparison = _fit(X, labels, arguments, source, summary)
    except (ValueError, ArithmeticError) as error:
        raise _ArgumentError(
            f"{source} cannot be fitted: {' '.join(str(error).split())}"
        ) from error
    if arguments.output is not None:
        write("--output", arguments.output, comparison.latents_as_csv(X), arguments.force)
        where = printable(arguments.output)
        print(f"Latents of all {len(X)} rows (FactorizedVI, mean and sd): {where}")
    if figure is not None:
        write("--figure", figure, _drawn(comparison, figure, source), arguments.force)
        print(f"Figure: {printable(figure)}")


def _fit(X, labels, arguments, source, summary):
    from skavi._command_line.comparison import as_text, choose_model, compare

    n_components, noise = arguments.components, "diagonal"
    if labels is not None:
        n_components, noise = n_components or _DIGITS_COMPONENTS, "isotropic"
    model = choose_model(X, n_components, noise)
    print(
        f"{source}: {len(X)} rows x {X.shape[1]} columns, 70 % to train; "
        f"FactorAnalysis(n_components={model.n_components}, noise={noise!r})"
    )
    print(summary, end="", flush=True)
    comparison = compare(X, labels, model, arguments.seed, verbose=_verbose())
    print("\n" + as_text(comparison))
    return comparison


def _drawn(comparison, path, source):
    from skavi._command_line.comparison import draw

    n_components = comparison.results[0].estimator.model_.n_components
    title = f"{os.path.basename(source)}, n_components={n_components}"
    file = io.BytesIO()
    draw(comparison, file, _ending(path), title)
    return file.getvalue()


class _Parser(argparse.ArgumentParser):
    """A parser that refuses in one sentence."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser():
    # Without abbreviations, an option that is added later changes no command of today.
    parser = _Parser(prog="python -m skavi", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "data", nargs="?", help="CSV file, with or without a header; default: digits"
    )
    parser.add_argument(
        "--components",
        type=_whole_number,
        metavar="K",
        help=f"latents a row; default: {_DIGITS_COMPONENTS} for digits, else as many as have more "
        "than average variance among the standardised columns, at most 20",
    )
    parser.add_argument(
        "--output",
        metavar="CSV",
        help="write posterior means and standard deviations of all rows' latents to this file",
    )
    parser.add_argument(
        "--figure",
        metavar="PATH",
        help=f"where the figure goes; its ending says the format (default: {_FIGURE}, or a number "
        "with it where that exists)",
    )
    parser.add_argument(
        "--seed", type=_seed, default=0, help="of the split and the fits (default: 0)"
    )
    parser.add_argument(
        "--force", action="store_true", help="overwrite outputs that exist, never the input"
    )
    return parser


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


def _read(path):
    """Return the table, its rows' labels or None, and what to say about how it was read."""
    if path is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.data, digits.target, ""
    table = read_table(path)
    if len(table.X) < _FEWEST_ROWS:
        raise TableError(
            f"{printable(path)} has {len(table.X)} rows: at least {_FEWEST_ROWS} are needed to "
            "train and to test."
        )
    return table.X, None, table.summary


def _check_components(asked, X):
    # Each component needs one training row.
    most = min(X.shape[1], int(0.7 * len(X)))
    if asked is not None and not 1 <= asked <= most:
        raise _ArgumentError(
            f"--components {asked}: must be from 1 to {most} for {len(X)} rows of {X.shape[1]} "
            "columns."
        )


def _figure_path(arguments):
    """Return the path of the figure; None if matplotlib is not installed and no path was given."""
    asked = arguments.figure
    if importlib.util.find_spec("matplotlib") is None:
        if asked is not None:
            raise _ArgumentError(f"--figure {printable(asked)} needs matplotlib: {_EXTRA % 'plot'}")
        print(f"No figure: {_EXTRA % 'plot'} to get one.")
        return None
    if asked is None:
        taken = [path for path in (arguments.data, arguments.output) if path is not None]
        return free_name(_FIGURE, taken, arguments.force)
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if _ending(asked) not in formats:
        raise _ArgumentError(
            f"--figure {printable(asked)}: its ending must name a format, one of "
            f"{', '.join(sorted(formats))}."
        )
    return asked


def _ending(path):
    return os.path.splitext(path)[1][1:].lower()


def _verbose():
    if importlib.util.find_spec("rich") is None:
        print(f"No progress bar: {_EXTRA % 'progress'} to get one.")
        return 0
    return 1


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name in the table must not end the command where the terminal lacks one of its letters.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(main())
    except BrokenPipeError:  # whoever read this output has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
