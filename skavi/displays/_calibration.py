"""Rank histograms of simulation-based calibration."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from scipy.stats import binom

from skavi._estimators.base import VariationalInference
from skavi._platform.forks_and_threads import guarded
from skavi.diagnostics.simulation_based_calibration import Calibration, calibration
from skavi.displays._axes import Display, colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Histograms that are drawn: more make the legend too long. Judged by eye.
_MOST = 5


@guarded
class CalibrationDisplay(Display):
    """Histograms of the truth's ranks under q, with the band where 99 % of level bins would lie.

    Use `from_estimator` or `from_calibration`. A valley means that q is too narrow, a hill that it
    is too wide, a slope that it is shifted.

    Parameters
    ----------
    calibration : Calibration
        Result of `skavi.diagnostics.calibration`.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.displays import CalibrationDisplay
    >>> from skavi.models import LocalLevel
    >>> vi = FactorizedVI(LocalLevel(0.1, 1.0, initial_mean=0.0, initial_sd=1.0))
    >>> display = CalibrationDisplay.from_estimator(vi, 20, n_samples=1, random_state=0)
    >>> display.ax_.get_xlabel()
    'rank of the truth under q'
    """

    def __init__(self, calibration):
        self.calibration = calibration

    @classmethod
    def from_estimator(
        cls,
        estimator: VariationalInference,
        n_simulations: int = 200,
        *,
        ax: "Axes | None" = None,
        **options,
    ) -> Self:
        """Run `skavi.diagnostics.calibration` and draw its result.

        Parameters
        ----------
        estimator : FactorizedVI or AmortizedVI
        n_simulations : int, default=200
        ax : matplotlib Axes, default=None
            None: a new figure.
        **options
            Passed to `skavi.diagnostics.calibration`.

        Returns
        -------
        CalibrationDisplay
        """
        return cls(calibration(estimator, n_simulations, **options)).plot(ax=ax)

    @classmethod
    def from_calibration(
        cls,
        calibration: Calibration,
        *,
        names: Sequence[str] | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Draw the result of a calibration.

        Parameters
        ----------
        calibration : Calibration
        names : list of str, default=None
            Which globals, or "z". None: all.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        CalibrationDisplay
        """
        return cls(calibration).plot(names=names, ax=ax)

    def plot(self, *, names: Sequence[str] | None = None, ax: "Axes | None" = None) -> Self:
        """Draw the five least uniform numbers, or fewer, the first on top.

        Returns
        -------
        CalibrationDisplay
        """
        self._begin(ax)
        report, n_bins = self.calibration, self.calibration.n_bins
        low, high = binom.interval(0.99, report.n_simulations, 1 / n_bins)
        band = {"color": "0.5", "alpha": 0.25, "lw": 0, "label": "99 % of level bins"}
        self.ax_.axhspan(low, high, zorder=0, **band)
        self.ax_.axhline(report.n_simulations / n_bins, color="0.55", lw=1, zorder=1)
        edges = np.linspace(0, 1, n_bins + 1)
        for i, (name, index, p_value) in enumerate(self._least_uniform(names)):
            counts = report.histogram(report.ranks[name][(slice(None), *index)])
            place = f"{name}{list(index) if index else ''}"
            line = {"color": colour(i), "lw": 1.4 if i else 2.2, "baseline": None, "zorder": 9 - i}
            self.ax_.stairs(counts, edges, label=f"{place}: p = {p_value:.2g}", **line)
        self.ax_.set(xlabel="rank of the truth under q", ylabel="simulations", xlim=(0, 1))
        self.ax_.set_ylim(0, 1.05 * max(self.ax_.get_ylim()[1], high))
        return self._end()

    def _least_uniform(self, names):
        """Return (name, index, smaller p-value) of the numbers to draw."""
        report = self.calibration
        chosen = list(report.ranks) if names is None else names
        unknown = [name for name in chosen if name not in report.ranks]
        if unknown:
            raise ValueError(f"names: {unknown[0]!r} is none of {list(report.ranks)}.")
        ks, chi_square = report.p_values, report.chi_square_p_values
        places = [
            (name, index, float(min(ks[name][index], chi_square[name][index])))
            for name in chosen
            for index in np.ndindex(report.ranks[name].shape[1:])
        ]
        return sorted(places, key=lambda place: place[2])[:_MOST]
