"""`skavi`, or `python -m skavi`: fits of a table, or a comparison of both ways to infer latents."""

import contextlib
import importlib.util
import io
import os
import sys
import warnings

from skavi._command_line.arguments import (
    DIGITS_COMPONENTS,
    FIGURE,
    misplaced,
    most_components,
    of_one_fit,
    parser,
    program_name,
)
from skavi._command_line.output_files import OutputError, check_outputs, free_name, write
from skavi._command_line.table import Table, TableError, printable
from skavi._command_line.table_files import check_formats, read

# torch and scikit-learn take seconds to import: help and refusals do without them, so the modules
# that need them are imported where they are used.

#: Rows: 7 to train on and 3 to test on. Not measured: order of magnitude.
_FEWEST_ROWS = 10
_EXTRA = 'pip install "skavi[%s]"'


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
    options = parser()
    arguments = options.parse_args(argv)
    try:
        if of_one_fit(arguments):
            _run_one_fit(arguments)
        else:
            _run(arguments)
    except (TableError, OutputError, _ArgumentError) as error:
        options.error(str(error))
    return 0


class _ArgumentError(ValueError):
    """An argument does not fit the table or the installation; the message says which and why."""


def _run(arguments):
    table, labels = _read(arguments)
    X, source = table.X, _source(arguments)
    _check_components(arguments.components, X)
    figure = _figure_path(arguments, FIGURE)
    _check_files(arguments, {"--output": arguments.output, "--figure": figure})
    with _refusals(source):
        comparison = _fit(X, labels, arguments, source, _summary(arguments, table))
    if arguments.output is not None:
        content = comparison.latents_as_bytes(arguments.output, X)
        write("--output", arguments.output, content, arguments.force)
        where = printable(arguments.output)
        print(f"Latents of all {len(X)} rows (FactorizedVI, mean and sd): {where}")
    if figure is not None:
        write("--figure", figure, _drawn(comparison, figure, source), arguments.force)
        print(f"Figure: {printable(figure)}")


def _run_one_fit(arguments):
    if wrong := misplaced(arguments):
        raise _ArgumentError(wrong)
    table, _ = _read(arguments)
    most = most_components(arguments, *table.X.shape)
    _require_components(arguments.components, most, table.X)
    outputs = {
        "--output": arguments.output,
        "--impute": arguments.impute,
        "--save": arguments.save,
        "--figure": _figure_path(arguments, None),
    }
    _check_files(arguments, outputs)
    source = _source(arguments)
    print(f"{source}: {len(table.X)} rows x {table.X.shape[1]} columns of numbers")
    print(_summary(arguments, table), end="", flush=True)
    with _refusals(source):
        _fit_one(arguments, table, source)


def _fit_one(arguments, table, source):
    from skavi._command_line import one_fit

    labels = [] if arguments.groups is None else [arguments.groups]
    X, names = one_fit.as_input(table, labels)
    model = one_fit.model_of(arguments, table, names)
    estimator = one_fit.estimator_of(arguments, model, _verbose()).fit(X)
    contents = {
        "output": lambda path: one_fit.latents_as_bytes(path, estimator, X, arguments.groups),
        "impute": lambda path: one_fit.imputed_as_bytes(path, estimator, X, table),
        "save": lambda path: one_fit.saved_as_bytes(estimator),
        "figure": lambda path: one_fit.figure_as_bytes(_ending(path), estimator, X, source),
    }
    said = {"output": "Latents", "impute": "Filled table", "save": "Fit", "figure": "Figure"}
    written = []
    try:  # files before the page: whoever reads it may have enough of it, as `head` has
        for name, content_of in contents.items():
            path = getattr(arguments, name)
            if path is not None:
                write(f"--{name}", path, content_of(path), arguments.force)
                written.append(f"{said[name]}: {printable(path)}")
    finally:
        print("", estimator.summary(), "", *written, sep="\n")


@contextlib.contextmanager
def _refusals(source):
    """Say in one sentence why a table cannot be fitted."""
    try:
        yield
    except (TableError, OutputError):
        raise
    except (ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise _ArgumentError(
            f"{source} cannot be fitted: {' '.join(str(error).split())}"
        ) from error


def _check_files(arguments, outputs):
    outputs = {option: path for option, path in outputs.items() if path is not None}
    check_outputs(outputs, arguments.data, arguments.force)
    check_formats({o: path for o, path in outputs.items() if o in ("--output", "--impute")})


def _summary(arguments, table):
    return "" if arguments.data is None else table.summary


def _source(arguments):
    return "handwritten digits" if arguments.data is None else printable(arguments.data)


def _fit(X, labels, arguments, source, summary):
    from skavi._command_line.comparison import as_text, choose_model, compare

    n_components, noise = arguments.components, "diagonal"
    if labels is not None:
        n_components, noise = n_components or DIGITS_COMPONENTS, "isotropic"
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


def _read(arguments):
    """Return the table, and its rows' labels or None."""
    if arguments.data is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        return Table(digits.data, list(digits.feature_names), [], False), digits.target
    named = [*arguments.covariates, arguments.groups, arguments.response]
    named = list(dict.fromkeys(name for name in named if name is not None))
    table = read(arguments.data, named, whole=arguments.impute is not None)
    fewest, what = (2, "fit") if of_one_fit(arguments) else (_FEWEST_ROWS, "train and to test")
    if len(table.X) < fewest:
        raise TableError(
            f"{printable(arguments.data)} has {len(table.X)} rows: at least {fewest} are needed to "
            f"{what}."
        )
    return table, None


def _check_components(asked, X):
    # Each component needs one training row.
    _require_components(asked, min(X.shape[1], int(0.7 * len(X))), X)


def _require_components(asked, most, X):
    if asked is not None and not 1 <= asked <= most:
        raise _ArgumentError(
            f"--components {asked}: must be from 1 to {most} for {len(X)} rows of {X.shape[1]} "
            "columns."
        )


def _figure_path(arguments, default):
    """Return the path of the figure; None for none, as where matplotlib is not installed."""
    asked = arguments.figure
    if asked is None and default is None:
        return None
    if importlib.util.find_spec("matplotlib") is None:
        if asked is not None:
            raise _ArgumentError(f"--figure {printable(asked)} needs matplotlib: {_EXTRA % 'plot'}")
        print(f"No figure: {_EXTRA % 'plot'} to get one.")
        return None
    if asked is None:
        taken = [path for path in (arguments.data, arguments.output) if path is not None]
        return free_name(default, taken, arguments.force)
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
    """Ask for a progress bar where someone looks: on a terminal, with rich."""
    if not sys.stdout.isatty():
        return 0
    if importlib.util.find_spec("rich") is None:
        print(f"No progress bar: {_EXTRA % 'progress'} to get one.")
        return 0
    return 1


def run():
    """Run the command in a process of its own, and end it with the command's exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name in the table must not end the command where the terminal lacks one of its letters.
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"{program_name()}: warning: {message}\n"
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read this output has enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    run()
