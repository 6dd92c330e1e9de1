"""Plot of filled cells: each with its interval, beside the cells that were observed."""

from typing import TYPE_CHECKING, Self

import numpy as np

from skavi._estimators.base import VariationalInference
from skavi._platform.array_types import TableLike
from skavi._platform.forks_and_threads import guarded
from skavi.displays._axes import (
    ABOVE,
    Display,
    colour,
    column_of,
    explained_places,
    how_many,
    numbers_of,
    rows_drawn,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Half-width in sds of the interval that holds 90 % of a normal: its 95 % quantile.
_INTERVAL = 1.644854
#: Cells that are drawn at most: more bars hide one another. Judged by eye.
_MOST_CELLS = 300


@guarded
class ImputationDisplay(Display):
    """The missing cells of one column: how they are filled, and how sure that is.

    Parameters
    ----------
    filled, sd : ndarray of shape (n_missing,)
        Of the missing cells: predictive means and standard deviations.
    observed : ndarray of shape (n_observed,)
        The cells of the column that are there.
    name : str, default="feature"
        Of the column.
    truth : ndarray of shape (n_missing,), default=None
        What the missing cells held, where that is known.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from skavi import FactorizedVI
    >>> from skavi.displays import ImputationDisplay
    >>> from skavi.models import FactorAnalysis
    >>> X = load_iris(as_frame=True).data
    >>> X = X.mask(np.random.default_rng(0).random(X.shape) < 0.2)
    >>> vi = FactorizedVI(FactorAnalysis(2), random_state=0).fit(X)
    >>> display = ImputationDisplay.from_estimator(vi, X, "petal width (cm)")
    >>> len(display.filled) == int(X["petal width (cm)"].isna().sum())
    True
    """

    def __init__(self, filled, sd, observed, name="feature", truth=None):
        self.filled, self.sd, self.observed = filled, sd, observed
        self.name, self.truth = name, truth

    @classmethod
    def from_estimator(
        cls,
        estimator: VariationalInference,
        X: TableLike,
        feature: int | str | None = None,
        *,
        truth: TableLike | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Fill a column and draw it.

        Parameters
        ----------
        estimator : FactorizedVI or AmortizedVI
            A fit of a model that takes missing cells.
        X : array-like of shape (n_samples, n_features)
            Rows with NaN where a cell is missing.
        feature : int or str, default=None
            Column, by position or, in a frame, by name. None: the one with the most holes.
        truth : array-like of shape (n_samples, n_features), default=None
            X without holes, where that is known: it is drawn beside.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        ImputationDisplay

        Raises
        ------
        ValueError
            If the column has no missing cell.
        """
        if feature is None:
            places = explained_places(estimator)
            feature = places[int(np.isnan(numbers_of(X, places)).sum(0).argmax())]
        column, name = column_of(X, feature)
        holes = np.isnan(column)
        if not holes.any():
            raise ValueError(f"feature={feature!r}: no cell of that column is missing.")
        filled, sd = (column_of(_like(X, part), feature)[0] for part in estimator.impute(X, True))
        known = None if truth is None else column_of(_like(X, truth), feature)[0][holes]
        display = cls(filled[holes], sd[holes], column[~holes], name, known)
        return display.plot(ax=ax)

    def plot(self, *, ax: "Axes | None" = None) -> Self:
        """Draw filled cells in the order of their means, with bars that hold 90 %.

        The histogram at the right is of the column's observed cells.

        Returns
        -------
        ImputationDisplay
        """
        self._begin(ax)
        rows = rows_drawn(len(self.filled), _MOST_CELLS)
        rows = rows[np.argsort(self.filled[rows], kind="stable")]
        place = np.arange(len(rows))
        bars = {"fmt": "o", "ms": 3.5, "lw": 1.2, "color": colour(0), "label": "filled, 90 %"}
        self.ax_.errorbar(place, self.filled[rows], _INTERVAL * self.sd[rows], **bars)
        if self.truth is not None:
            inside = np.abs(self.truth - self.filled) <= _INTERVAL * self.sd
            label = f"truth ({inside.mean():.0%} inside)"
            cross = {"ls": "none", "marker": "x", "ms": 5, "color": colour(1), "label": label}
            self.ax_.plot(place, self.truth[rows], **cross)
        beside = self.ax_.inset_axes((1.01, 0.0, 0.16, 1.0), sharey=self.ax_)
        look = {"orientation": "horizontal", "color": colour(6), "alpha": 0.6}
        beside.hist(self.observed, 30, **look)
        beside.set_axis_off()
        label = "missing cells, lowest first" + how_many(len(rows), len(self.filled), "cells")
        self.ax_.set(xlabel=label, ylabel=short(self.name), xticks=[])
        beside.set_title("observed", fontsize="small")
        return self._end(**ABOVE)


def _like(X, values):
    """Return values as a frame with the columns of X, where X is one."""
    values = np.asarray(values)
    return type(X)(values, columns=list(X.columns)) if hasattr(X, "columns") else values
