"""Plots of amortization gaps: of rows, against a feature, and against a setting."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from skavi._estimators.base import VariationalInference
from skavi._platform.array_types import TableLike
from skavi._platform.forks_and_threads import guarded
from skavi.diagnostics.gap import amortization_gap
from skavi.displays._axes import (
    Display,
    Fits,
    colour,
    column_of,
    how_many,
    pair_with_names,
    rows_drawn,
    tick_whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Nats: smaller totals are rounding, and are not written out.
_NOTHING = 1e-6


@guarded
class AmortizationGapDisplay(Display):
    """Amortization gaps: sorted over rows, as a histogram, against a feature, or against a setting.

    Use `from_estimator` or `from_estimators`, and then `plot` (sorted rows), `plot_histogram` or
    `plot_feature` for another picture of the same gap; `from_settings` draws totals.

    Parameters
    ----------
    gaps : list of (str, AmortizationGap)
        Names and gaps.
    X : array-like of shape (n_samples, n_features), default=None
        The rows; `plot_feature` needs them.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from skavi import AmortizedVI
    >>> from skavi.displays import AmortizationGapDisplay
    >>> from skavi.inference_functions import Constant
    >>> from skavi.models import LinearModel
    >>> X = [[0.0], [1.0], [5.0]]
    >>> vi = AmortizedVI(LinearModel(), Constant()).fit(X)
    >>> display = AmortizationGapDisplay.from_estimator(vi, X)
    >>> display.ax_.get_ylabel()
    'gap of the row (nats)'
    """

    def __init__(self, gaps, X=None):
        self.gaps, self.X = gaps, X

    @classmethod
    def from_estimator(
        cls,
        amortized: VariationalInference,
        X: TableLike,
        factorized: VariationalInference | None = None,
        *,
        name: str | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Measure the gap of one fit and draw its rows, largest first.

        Parameters
        ----------
        amortized, X, factorized
            As in `skavi.amortization_gap`.
        name : str, default=None
            Legend entry. None: the inference function.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        AmortizationGapDisplay
        """
        names = [_function(amortized) if name is None else name]
        return cls.from_estimators([amortized], X, factorized, names=names, ax=ax)

    @classmethod
    def from_estimators(
        cls,
        amortized: Fits,
        X: TableLike,
        factorized: VariationalInference | None = None,
        *,
        names: Sequence[str] | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Measure and draw several fits of the same rows.

        Parameters
        ----------
        amortized : list of AmortizedVI, or dict of str to AmortizedVI
        X, factorized
            As in `skavi.amortization_gap`.
        names : list of str, default=None
            Legend entries. None: the dict's keys, or the inference functions.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        AmortizationGapDisplay
        """
        if names is None and not isinstance(amortized, dict):
            names = [_function(vi) for vi in amortized]
        pairs = pair_with_names(amortized, names)
        gaps = [(name, amortization_gap(vi, X, factorized)) for name, vi in pairs]
        return cls(gaps, X).plot(ax=ax)

    def plot(self, *, ax: "Axes | None" = None) -> Self:
        """Draw the rows' gaps from the largest to the smallest.

        Returns
        -------
        AmortizationGapDisplay
        """
        self._begin(ax)
        for i, (name, gap) in enumerate(self.gaps):
            rows = np.sort(np.maximum(gap.per_row, 0))[::-1]
            rank = 1 + np.arange(len(rows))
            line = {"color": colour(i), "drawstyle": "steps-mid", "lw": 1.8}
            self.ax_.plot(rank, rows, label=self._label(name, gap), **line)
        self.ax_.set(xlabel="rows, largest gap first", ylabel="gap of the row (nats)")
        tick_whole_numbers(self.ax_.xaxis)
        return self._end()

    def plot_histogram(self, *, bins: int = 30, ax: "Axes | None" = None) -> Self:
        """Draw a histogram of the rows' gaps.

        Parameters
        ----------
        bins : int, default=30
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        AmortizationGapDisplay
        """
        self._begin(ax)
        edges = np.linspace(0, max(max(gap.per_row.max() for _, gap in self.gaps), 1e-12), bins + 1)
        for i, (name, gap) in enumerate(self.gaps):
            filled = {"color": colour(i), "alpha": 0.35, "histtype": "stepfilled"}
            rows = np.maximum(gap.per_row, 0)
            self.ax_.hist(rows, edges, label=self._label(name, gap), **filled)
            self.ax_.hist(rows, edges, color=colour(i), histtype="step", lw=1.5)
        self.ax_.set(xlabel="gap of the row (nats)", ylabel="rows")
        return self._end()

    def plot_feature(self, feature: int | str = 0, *, ax: "Axes | None" = None) -> Self:
        """Draw the rows' gaps against a column of X.

        Parameters
        ----------
        feature : int or str, default=0
            Column, by position or, in a frame, by name.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        AmortizationGapDisplay
        """
        if self.X is None:
            raise ValueError("plot_feature needs the rows: AmortizationGapDisplay(gaps, X).")
        values, label = column_of(self.X, feature)
        self._begin(ax)
        drawn = rows_drawn(len(values))
        for i, (name, gap) in enumerate(self.gaps):
            dots = {"s": 14, "alpha": 0.6, "color": colour(i), "linewidths": 0}
            self.ax_.scatter(
                values[drawn], gap.per_row[drawn], label=self._label(name, gap), **dots
            )
        label += how_many(len(drawn), len(values))
        self.ax_.set(xlabel=label, ylabel="gap of the row (nats)")
        return self._end()

    @classmethod
    def from_settings(
        cls,
        amortized: Fits,
        X: TableLike,
        settings: Sequence[Any],
        factorized: VariationalInference | None = None,
        *,
        label: str = "width",
        ax: "Axes | None" = None,
    ) -> Self:
        """Draw total gaps against a setting: width of the network, context, rows of data.

        Parameters
        ----------
        amortized : list of AmortizedVI
            One fit a setting, of the same rows.
        X, factorized
            As in `skavi.amortization_gap`.
        settings : list of numbers, or of anything that can be written
            The setting of each fit; numbers are placed at their value, others evenly.
        label : str, default="width"
            Name of the setting.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        AmortizationGapDisplay
        """
        pairs = pair_with_names(amortized, [str(setting) for setting in settings])
        display = cls([(name, amortization_gap(vi, X, factorized)) for name, vi in pairs], X)
        return display.plot_settings(settings, label=label, ax=ax)

    def plot_settings(
        self, settings: Sequence, *, label: str = "width", ax: "Axes | None" = None
    ) -> Self:
        """Draw the total gaps against a setting; see `from_settings`.

        Returns
        -------
        AmortizationGapDisplay
        """
        self._begin(ax)
        total = np.array([gap.total for _, gap in self.gaps])
        error = np.array([gap.standard_error for _, gap in self.gaps])
        numbers = all(isinstance(setting, int | float) for setting in settings)
        x = np.asarray(settings, dtype=float) if numbers else np.arange(len(settings))
        bars = {"marker": "o", "ms": 6, "capsize": 3, "lw": 1.8, "color": colour(0)}
        self.ax_.errorbar(x, total, yerr=2 * error, **bars)
        self.ax_.axhline(0, color="0.5", lw=1)
        self.ax_.annotate(
            "F-VI: no gap", (0.01, 0), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", color=self._ink, fontsize="small",
        )  # fmt: skip
        if numbers and min(x) > 0 and max(x) >= 8 * min(x):
            self.ax_.set_xscale("log")
            self.ax_.minorticks_off()
        self.ax_.margins(x=0.08)
        self.ax_.set_xticks(x, [str(setting) for setting in settings])
        self.ax_.set(xlabel=label, ylabel="amortization gap (nats)")
        return self._end()

    @staticmethod
    def _label(name, gap):
        total = f"{gap.total:.3g}" if abs(gap.total) >= _NOTHING else f"below {_NOTHING:g}"
        return f"{name}: {total} nats in all"


def _function(amortized):
    text = " ".join(repr(amortized.inference_function_).split())
    return text if len(text) < 40 else type(amortized.inference_function_).__name__
