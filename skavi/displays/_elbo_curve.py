"""ELBO curves of fits, as the gap to the best ELBO of any of them, on a log scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from skavi._estimators.base import VariationalInference
from skavi._platform.forks_and_threads import guarded
from skavi.callbacks import ElboMonitor
from skavi.displays._axes import DASHES, Display, Fits, colour, pair_with_names, tick_whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Relative: a fall by less is rounding, and the line does not break there.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Curve:
    """The ELBO during one fit.

    Attributes
    ----------
    name : str
    x : ndarray of shape (n_iterations,)
        Iterations or seconds.
    elbo : ndarray of shape (n_iterations,)
        Nats, under the solver's noise.
    final : float
        ELBO at the end, nats.
    deterministic : bool
        Whether the noise was deterministic. Then a fall means that its rule was refined, and the
        line breaks there.
    """

    name: str
    x: np.ndarray
    elbo: np.ndarray
    final: float
    deterministic: bool = True

    def gaps(self, best: float, floor: float) -> tuple[np.ndarray, np.ndarray]:
        """Return x and nats below `best`, not less than `floor`; NaN where the line breaks."""
        gap = best - self.elbo
        gap = np.where(gap >= -floor, np.maximum(gap, floor), np.nan)
        if not self.deterministic:
            return self.x, gap
        falls = 1 + np.flatnonzero(np.diff(self.elbo) < -_ROUNDING * np.abs(self.elbo[1:]))
        return np.insert(self.x.astype(float), falls, np.nan), np.insert(gap, falls, np.nan)


@guarded
class ElboCurveDisplay(Display):
    """Nats below the best ELBO, on a log axis, against iterations or seconds.

    Use `from_estimator`, `from_estimators` or `from_monitor`.

    Parameters
    ----------
    curves : list of Curve
        The fits to draw.
    x_label : str
        Label of the curves' x.
    best : float, default=None
        ELBO from which gaps are measured, nats. None: the highest final ELBO of a fit. Iterates
        above it (random noise, or a coarse rule) are left out, and a line breaks where the noise
        rule was refined: ELBOs of two rules are not comparable.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    lines_ : list of matplotlib Line2D
        One a curve.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.displays import ElboCurveDisplay
    >>> from skavi.models import NonlinearModel
    >>> vi = FactorizedVI(NonlinearModel()).fit([[0.0], [1.0], [5.0]])
    >>> display = ElboCurveDisplay.from_estimator(vi)
    >>> display.ax_.get_xlabel()
    'iterations'
    """

    def __init__(self, curves, x_label="iterations", best=None):
        self.curves, self.x_label, self.best = curves, x_label, best

    @classmethod
    def from_estimator(
        cls, estimator: VariationalInference, *, name: str | None = None, ax: "Axes | None" = None
    ) -> Self:
        """Draw one fit.

        Parameters
        ----------
        estimator : FactorizedVI or AmortizedVI
            A fitted estimator.
        name : str, default=None
            Legend entry. None: the estimator's class.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        ElboCurveDisplay
        """
        return cls.from_estimators([estimator], names=None if name is None else [name], ax=ax)

    @classmethod
    def from_estimators(
        cls, estimators: Fits, *, names: Sequence[str] | None = None, ax: "Axes | None" = None
    ) -> Self:
        """Draw several fits of the same rows together.

        Parameters
        ----------
        estimators : list of estimators, or dict of str to estimator
            Fitted.
        names : list of str, default=None
            Legend entries. None: the dict's keys, or the classes, numbered where needed.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        ElboCurveDisplay

        Raises
        ------
        ValueError
            If fits are of tables of different shapes, whose ELBOs are not comparable.
        """
        pairs = pair_with_names(estimators, names)
        _check_same_table([vi for _, vi in pairs])
        curves = [
            Curve(
                name,
                1 + np.arange(len(vi.elbo_curve_)),
                vi.elbo_curve_,
                vi.elbo_,
                vi.noise_.deterministic,
            )
            for name, vi in pairs
        ]
        return cls(curves).plot(ax=ax)

    @classmethod
    def from_monitor(
        cls, monitor: ElboMonitor, *, names: Sequence[str] | None = None, ax: "Axes | None" = None
    ) -> Self:
        """Draw every fit that an `ElboMonitor` recorded, against seconds.

        Parameters
        ----------
        monitor : skavi.callbacks.ElboMonitor
        names : list of str, default=None
            One a log. None: "fit 1", "fit 2", ...
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        ElboCurveDisplay
        """
        logs = monitor.logs
        names = [f"fit {i + 1}" for i in range(len(logs))] if names is None else names
        curves = [
            Curve(name, log.seconds, log.elbo, log.elbo[-1], _mostly_rises(log.elbo))
            for name, log in pair_with_names(logs, names)
        ]
        return cls(curves, "seconds").plot(ax=ax)

    def plot(self, *, ax: "Axes | None" = None) -> Self:
        """Draw on `ax`, or on a new figure.

        Returns
        -------
        ElboCurveDisplay
        """
        if not self.curves:
            raise ValueError("There is no curve to draw: no fit was recorded.")
        self._begin(ax)
        best = max(c.final for c in self.curves) if self.best is None else self.best
        floor = self._floor(best)
        self.lines_ = []
        for i, curve in enumerate(self.curves):
            style = {"color": colour(i), "linestyle": DASHES[i // 7 % len(DASHES)], "lw": 1.8}
            marker = {"marker": "o", "ms": 3.5} if len(curve.x) < 60 else {}
            x, gap = curve.gaps(best, floor)
            self.lines_ += self.ax_.plot(x, gap, label=curve.name, **style, **marker)
        self.ax_.set(yscale="log", xlabel=self.x_label, ylabel="nats below the best ELBO")
        if max(len(c.x) for c in self.curves) > 200:
            self.ax_.set_xscale("log")
        elif self.x_label == "iterations":
            tick_whole_numbers(self.ax_.xaxis)
        return self._end()

    def _floor(self, best):
        """Return the height for gaps of zero: half the smallest other gap, or rounding."""
        gaps = np.concatenate([best - curve.elbo for curve in self.curves])
        size = _ROUNDING * max(abs(best), 1.0)
        gaps = gaps[gaps > size]
        return 0.5 * gaps.min() if len(gaps) else size


def _mostly_rises(elbo):
    """Say whether a curve falls so rarely (at refinements only) that its noise is deterministic."""
    return (np.diff(elbo) < 0).mean() < 0.1 if len(elbo) > 1 else True


def _check_same_table(fits):
    """Raise a ValueError if fits are known to be of different tables."""
    shapes = {(vars(vi).get("n_samples_fit_"), vi.n_features_in_) for vi in fits}
    shapes = {shape for shape in shapes if None not in shape}  # old files do not know their rows
    if len(shapes) > 1:
        said = " and ".join(f"{n:,} x {d}" for n, d in sorted(shapes))
        raise ValueError(f"ELBOs of different tables ({said}) are not comparable in one plot.")
