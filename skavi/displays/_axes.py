"""The base of all displays: axes, colours and labels."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from skavi._data.column_roles import as_table
from skavi._estimators.base import VariationalInference
from skavi._platform.optional_imports import require
from skavi._platform.private_names import safe_indexing

#: Several fits, in order or by name.
Fits: TypeAlias = Sequence[VariationalInference] | Mapping[str, VariationalInference]
#: Okabe and Ito's palette without yellow, which is faint on white, and with grey for black, which
#: is not seen on black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
#: Rows that are drawn at most: more hide one another. Judged by eye.
MOST_ROWS = 2000
#: Characters of a label that are shown. Judged by eye.
_LONGEST = 24


def axes_to_draw_on(ax, figsize=(6.4, 4.2)):
    """Return the given axes, or those of a new figure with room for its labels."""
    if ax is not None:
        return ax
    pyplot = require("matplotlib.pyplot", "skavi[plot]")
    _, ax = pyplot.subplots(figsize=figsize, layout="constrained")
    return ax


def panels(figure, n: int, across: int, size):
    """Return a figure, of a size where none is given, and the axes of n panels in its rows."""
    if figure is None:
        pyplot = require("matplotlib.pyplot", "skavi[plot]")
        figure = pyplot.figure(figsize=size, layout="constrained")
    grid = figure.subplots(-(-n // across), across, squeeze=False).ravel()
    for ax in grid[n:]:
        ax.set_axis_off()
    return figure, grid[:n]


class Display:
    """The first and last steps of every display: choose axes, then add a grid and a legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_, fig_ : matplotlib Figure
    """

    def _begin(self, ax, **size):
        self.ax_ = axes_to_draw_on(ax, **size)
        self.figure_ = self.fig_ = self.ax_.figure
        #: What is dark on a light background, and light on a dark one.
        self._ink = self.ax_.xaxis.label.get_color()

    def _end(self, **legend_options):
        self.ax_.grid(alpha=0.25)
        legend(self.ax_, **legend_options)
        return self


def explained_names(estimator) -> list[str]:
    """Return the names of the columns that a fitted model explains, or "feature 3"."""
    names = estimator._explained_names
    if names is None:
        return [f"feature {i}" for i in range(estimator._n_explained)]
    return [str(name) for name in names]


def explained_places(estimator) -> list[int]:
    """Return the places of the columns that a fitted model explains in the user's table."""
    roles = estimator.model_.columns_
    return roles.explained if roles.places else list(range(estimator._n_explained))


def numbers_of(X, places) -> np.ndarray:
    """Return columns of a user's table as numbers, NaN where there is none."""
    part = safe_indexing(as_table(X), places, axis=1)
    return np.array(part.toarray() if hasattr(part, "toarray") else part, dtype=float)


def check_latent(latent, n_latents: int) -> None:
    """Raise a ValueError unless there is such a latent to draw."""
    if not n_latents:
        raise ValueError(f"latent={latent!r}: the model has no latents (n_latents is 0) to draw.")
    if not 0 <= latent < n_latents:
        raise ValueError(f"latent={latent!r} must be one of 0 to {n_latents - 1}.")


def colour(i: int) -> str:
    """Return the i-th colour; after the last they start again."""
    return COLOURS[i % len(COLOURS)]


def short(label, longest: int = _LONGEST) -> str:
    """Return a label that fits beside the axes, without its middle if it is long."""
    text, end = str(label), longest // 3
    return text if len(text) <= longest else f"{text[: longest - end - 3]}...{text[-end:]}"


def rows_drawn(n: int, most: int = MOST_ROWS) -> np.ndarray:
    """Return which of n rows are drawn: all, or a random sample of them."""
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(0).permutation(n)[:most])


def how_many(drawn: int, n: int, what: str = "rows") -> str:
    """Return words for a title where not all are drawn."""
    return "" if drawn >= n else f"; {drawn:,} of {n:,} {what} drawn"


def pair_with_names(estimators, names):
    """Return (name, estimator) pairs: names are those given, keys of a dict, or class names."""
    if isinstance(estimators, dict):
        return list(estimators.items())
    if names is None:
        kinds = [type(estimator).__name__ for estimator in estimators]
        names = [
            f"{kind} {i + 1}" if kinds.count(kind) > 1 else kind for i, kind in enumerate(kinds)
        ]
    if len(names) != len(estimators):
        raise ValueError(f"names has {len(names)} entries for {len(estimators)} estimators.")
    return list(zip(names, estimators, strict=True))


def column_of(X, feature):
    """Return a column's values and its name; `feature` is a position or a frame's column."""
    if hasattr(X, "columns"):
        columns = list(X.columns)
        name = columns[feature] if isinstance(feature, int | np.integer) else feature
        if name not in columns:
            raise ValueError(f"feature={feature!r} is no column of X: {columns}.")
        return np.asarray(X[name], dtype=np.float64), str(name)
    X = np.asarray(X, dtype=np.float64)
    if not isinstance(feature, int | np.integer) or not 0 <= feature < X.shape[1]:
        raise ValueError(f"feature={feature!r} must be a column of X, 0 to {X.shape[1] - 1}.")
    return X[:, feature], f"feature {feature}"


#: Where a legend covers no data, above the axes: (0, 1) is the upper left corner.
ABOVE = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
#: Where a legend covers no data, to the right of the axes.
BESIDE = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "ncols": 1}
#: Characters: two labels of this length fit side by side above a figure. Judged by eye.
_SHORT = 30


def legend(ax, **options):
    """Add a legend where there are labels, above the axes; in two columns if they are short."""
    labels = ax.get_legend_handles_labels()[1]
    if labels:
        columns = {"ncols": 2 if max(map(len, labels)) <= _SHORT else 1}
        ax.legend(frameon=False, fontsize="small", **(ABOVE | columns | options))


def tick_whole_numbers(axis):
    """Set ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
