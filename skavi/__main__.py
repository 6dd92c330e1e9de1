"""`python -m skavi`: factorized and amortized VI on handwritten digits, or on the user's table."""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from skavi._command_line.comparison import as_text, compare, draw
from skavi._command_line.csv_table import TableError, read_table
from skavi._fit.defaults import default_model

#: Latents a row for the digits where none is asked for. Not measured: a round number.
_DIGITS_COMPONENTS = 10
#: Rows: 7 to train on and 3 to test on. Not measured: order of magnitude.
_FEWEST_ROWS = 10
_FIGURE = "skavi.png"

_DESCRIPTION = """\
Fit FactorizedVI and AmortizedVI to 70 % of the rows of a table with the same model, and compare
them on the rest: ELBO, seconds, and the amortization gap. Without a file the table is
scikit-learn's handwritten digits (1797 x 64), and latents are also compared by how well a logistic
regression tells the digits from them. The model is probabilistic PCA for the digits and factor
analysis (one noise variance a column, so that units do not matter) for your own table.
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
        0. For invalid arguments and files the process ends with status 2 and a message.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        X, labels = _read(arguments.data)
        n_components = _n_components(arguments.components, X, labels)
        figure = _figure_path(arguments.figure)
        if arguments.output is not None:
            _require_writable("--output", arguments.output, arguments.data)
    except TableError as error:
        parser.error(str(error))
    source = arguments.data or "handwritten digits"
    noise = "isotropic" if arguments.data is None else "diagonal"
    print(
        f"{source}: {len(X)} rows x {X.shape[1]} columns, 70 % to train; "
        f"FactorAnalysis(n_components={n_components}, noise={noise!r})",
        flush=True,
    )
    comparison = compare(X, labels, n_components, noise, arguments.seed, verbose=_verbose())
    print("\n" + as_text(comparison))
    if arguments.output is not None:
        _write_latents(comparison.results[0].estimator, X, arguments.output)
        print(f"Latents of all {len(X)} rows (FactorizedVI, mean and sd): {arguments.output}")
    if figure is not None:
        draw(comparison, figure, f"{Path(source).name}, n_components={n_components}")
        print(f"Figure: {figure}")
    return 0


def _parser():
    parser = argparse.ArgumentParser(prog="python -m skavi", description=_DESCRIPTION)
    parser.add_argument(
        "data", nargs="?", help="CSV file of numbers, with or without a header; default: digits"
    )
    parser.add_argument(
        "--components",
        type=int,
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
        help=f"where the figure goes; its ending says the format (default: {_FIGURE})",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split and the fits (default: 0)"
    )
    return parser


def _read(path):
    if path is None:
        digits = load_digits()
        return digits.data, digits.target
    X, _ = read_table(path)
    if len(X) < _FEWEST_ROWS:
        raise TableError(
            f"{path} has {len(X)} rows: at least {_FEWEST_ROWS} are needed to train and to test."
        )
    return X, None


def _n_components(asked, X, labels):
    if asked is None:
        if labels is not None:
            return _DIGITS_COMPONENTS
        scaled = torch.as_tensor(StandardScaler().fit_transform(X))
        return default_model(scaled, scaled.new_ones(len(scaled))).n_components
    # Each component needs one training row.
    most = min(X.shape[1], int(0.7 * len(X)))
    if not 1 <= asked <= most:
        raise TableError(
            f"--components {asked}: must be from 1 to {most} for {len(X)} rows of {X.shape[1]} "
            "columns."
        )
    return asked


def _figure_path(asked):
    """Return the path of the figure; None if matplotlib is not installed and no path was given."""
    if importlib.util.find_spec("matplotlib") is None:
        if asked is not None:
            raise TableError(f'--figure {asked} needs matplotlib: pip install "skavi[plot]"')
        print('No figure: pip install "skavi[plot]" to get one.')
        return None
    path = _FIGURE if asked is None else asked
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix.lstrip(".").lower() not in formats:
        raise TableError(
            f"--figure {path}: its ending must name a format, one of {', '.join(sorted(formats))}."
        )
    _require_writable("--figure", path)
    return path


def _require_writable(option, path, source=None):
    path = Path(path)
    if source is not None and path.exists() and path.samefile(source):
        raise TableError(f"{option} {path} is the input file: choose another name.")
    existed = path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise TableError(f"{option} {path} cannot be written: {error.strerror}.") from None
    if not existed:
        path.unlink()


def _verbose():
    if importlib.util.find_spec("rich") is None:
        print('No progress bar: pip install "skavi[progress]" to get one.')
        return 0
    return 1


def _write_latents(estimator, X, path):
    posterior = estimator.posterior(X)
    names = [f"z{i + 1}" for i in range(posterior.mean.shape[1])]
    header = ",".join(names + [f"{name}_sd" for name in names])
    values = np.hstack([posterior.mean, posterior.sd])
    np.savetxt(path, values, delimiter=",", header=header, comments="", fmt="%.10g")


if __name__ == "__main__":
    sys.exit(main())
