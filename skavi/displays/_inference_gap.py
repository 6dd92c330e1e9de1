"""Plots of inference gaps: what the family, the function and the solver lose, and in which rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike

from skavi._estimators.base import VariationalInference
from skavi._platform.array_types import Seed, TableLike
from skavi._platform.forks_and_threads import guarded
from skavi.diagnostics.gap_parts import NOT_KNOWN, PARTS, InferenceGap, inference_gap
from skavi.displays._axes import (
    Display,
    Fits,
    colour,
    column_of,
    how_many,
    pair_with_names,
    rows_drawn,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Largest number of values of a label for which each has a column of dots of its own.
_FEW_VALUES = 12
#: Characters a line of advice above a figure of the default width. Judged by eye.
_WIDTH = 72
#: Share of the distance of two labels that the lanes of all fits take.
_LANES = 0.8
#: Nats a row: smaller parts of all bars are rounding, or not there (the solver's, in A-VI).
_NOTHING = 1e-6


@guarded
class InferenceGapDisplay(Display):
    """Inference gaps: parts stacked in a bar for each fit, or each row's gap against a feature.

    Use `from_estimator`, `from_estimators` or `from_result`, and then `plot` (stacked parts) or
    `plot_feature` for another picture of the same gaps.

    Parameters
    ----------
    gaps : list of (str, InferenceGap)
        Names and gaps.
    X : array-like of shape (n_samples, n_features), default=None
        The rows; `plot_feature` needs them, or labels.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from skavi import AmortizedVI
    >>> from skavi.displays import InferenceGapDisplay
    >>> from skavi.inference_functions import Constant
    >>> from skavi.models import LinearModel
    >>> X = [[0.0], [1.0], [5.0]]
    >>> vi = AmortizedVI(LinearModel(), Constant()).fit(X)
    >>> display = InferenceGapDisplay.from_estimator(vi, X, random_state=0)
    >>> display.ax_.get_xlabel()
    'nats a row below the log likelihood'
    """

    def __init__(self, gaps, X=None):
        self.gaps, self.X = gaps, X

    @classmethod
    def from_estimator(
        cls,
        estimator: VariationalInference,
        X: TableLike,
        X_test: TableLike | None = None,
        *,
        random_state: Seed = None,
        name: str | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Measure the gap of one fit and draw its parts.

        Parameters
        ----------
        estimator, X, X_test, random_state
            As in `skavi.diagnostics.inference_gap`.
        name : str, default=None
            Label of the bar. None: the class's name.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        InferenceGapDisplay
        """
        names = None if name is None else [name]
        return cls.from_estimators(
            [estimator], X, X_test, random_state=random_state, names=names, ax=ax
        )

    @classmethod
    def from_estimators(
        cls,
        estimators: Fits,
        X: TableLike,
        X_test: TableLike | None = None,
        *,
        random_state: Seed = None,
        names: Sequence[str] | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Measure and draw several fits of the same rows.

        Parameters
        ----------
        estimators : list of estimators, or dict of str to estimator
        X, X_test, random_state
            As in `skavi.diagnostics.inference_gap`.
        names : list of str, default=None
            Labels of the bars. None: the dict's keys, or the classes' names.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        InferenceGapDisplay
        """
        pairs = pair_with_names(estimators, names)
        gaps = [(name, inference_gap(vi, X, X_test, random_state)) for name, vi in pairs]
        return cls(gaps, X).plot(ax=ax)

    @classmethod
    def from_result(
        cls,
        gap: InferenceGap,
        X: TableLike | None = None,
        *,
        name: str | None = "fit",
        ax: "Axes | None" = None,
    ) -> Self:
        """Draw the parts of a gap that has been measured.

        Parameters
        ----------
        gap : InferenceGap
        X : array-like of shape (n_samples, n_features), default=None
            The rows, for `plot_feature`.
        name : str, default="fit"
            Label of the bar.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        InferenceGapDisplay
        """
        return cls([(name, gap)], X).plot(ax=ax)

    def plot(self, *, ax: "Axes | None" = None) -> Self:
        """Draw the mean of each part over the rows, stacked: a bar for X, and one for X_test.

        Rows whose log likelihood is not known are left out.

        Returns
        -------
        InferenceGapDisplay
        """
        bars = []
        for name, gap in self.gaps:
            test = gap.generalization
            bars.append((name if test is None else f"{name}, fitted rows", gap))
            bars += [] if test is None else [(f"{name}, new rows", test)]
        self._begin(ax, figsize=(6.4, 2.6 + 0.45 * len(bars)))
        place, left = np.arange(len(bars)), np.zeros(len(bars))
        for i, part in enumerate(PARTS):
            size = np.array([_known_mean(gap, getattr(gap, part)) for _, gap in bars])
            if np.abs(size).max() < _NOTHING:
                continue
            self.ax_.barh(place, size, left=left, height=0.62, color=colour(i), label=part)
            left = left + size
        error = [_error(gap) for _, gap in bars]
        self.ax_.errorbar(left, place, xerr=error, fmt="none", ecolor=self._ink, capsize=3)
        self.ax_.set_yticks(place, [name for name, _ in bars])
        self.ax_.invert_yaxis()
        first, last = self.ax_.get_xlim()
        self.ax_.set_xlim(min(0.0, first), last + 0.04 * (last - first))
        self.ax_.set(xlabel="nats a row below the log likelihood", ylabel="fit")
        if len(self.gaps) == 1:
            self.ax_.set_title(
                self.gaps[0][1].advice, fontsize="small", loc="left", pad=24, wrap=True
            )
        return self._end(ncols=3)

    def plot_feature(
        self, feature: int | str = 0, *, labels: ArrayLike | None = None, ax: "Axes | None" = None
    ) -> Self:
        """Draw each row's whole gap against a column of X, or against labels.

        Parameters
        ----------
        feature : int or str, default=0
            Column, by position or, in a frame, by name.
        labels : array-like of shape (n_rows,), default=None
            In place of a column: numbers or names, one a row.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        InferenceGapDisplay
        """
        if labels is None and self.X is None:
            raise ValueError(
                "plot_feature needs the rows: InferenceGapDisplay(gaps, X); or labels."
            )
        values, label = column_of(self.X, feature) if labels is None else (labels, "label")
        values = np.asarray(values)
        sizes = {len(gap.per_row) for _, gap in self.gaps}
        if sizes != {len(values)}:
            raise ValueError(
                f"{'X' if labels is None else 'labels'} has {len(values)} rows for gaps of "
                f"{sorted(sizes)}: a series, or a group, has one gap."
            )
        kinds, codes = np.unique(values, return_inverse=True)
        few = len(kinds) <= _FEW_VALUES and labels is not None
        self._begin(ax)
        drawn = rows_drawn(len(values))
        for i, (name, gap) in enumerate(self.gaps):
            known = gap.how != NOT_KNOWN
            at = codes + _aside(len(values), i, len(self.gaps)) if few else values
            dots = {"s": 14, "alpha": 0.6, "color": colour(i), "linewidths": 0}
            rows = drawn[known[drawn]]
            self.ax_.scatter(at[rows], gap.per_row[rows], label=name, **dots)
            if few:
                means = [gap.per_row[known & (codes == k)].mean() for k in range(len(kinds))]
                centre = np.arange(len(kinds)) + _centre_of_lane(i, len(self.gaps))
                self.ax_.plot(centre, means, "_", ms=22, mew=2.5, color=self._ink)
        if few:
            self.ax_.set_xticks(np.arange(len(kinds)), [str(kind) for kind in kinds])
        label += how_many(len(drawn), len(values))
        self.ax_.set(xlabel=label, ylabel="gap of the row (nats)")
        return self._end()


def _known_mean(gap, values):
    known = gap.how != NOT_KNOWN
    return float(values[known].mean()) if known.any() else 0.0


def _error(gap):
    """Two standard errors of the mean over rows, whose errors go together."""
    return 2 * _known_mean(gap, gap.standard_error)


def _aside(n, i, n_fits):
    """Spread dots sideways, each fit in a lane of its own."""
    spread = np.random.default_rng(0).uniform(-0.4, 0.4, n) * _LANES / n_fits
    return spread + _centre_of_lane(i, n_fits)


def _centre_of_lane(i, n_fits):
    return (i - (n_fits - 1) / 2) * _LANES / n_fits
