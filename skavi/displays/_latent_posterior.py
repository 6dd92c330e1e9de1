"""Plots of rows' latents: a map with ellipses, intervals, or a series with bands."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike

from skavi._estimators.base import VariationalInference
from skavi._platform.array_types import TableLike
from skavi._platform.forks_and_threads import guarded
from skavi._platform.optional_imports import require
from skavi.displays._axes import (
    BESIDE,
    COLOURS,
    MOST_ROWS,
    Display,
    check_latent,
    colour,
    how_many,
    rows_drawn,
    short,
)
from skavi.displays._classes import RowColours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Half-width in sds of the ellipse that holds 50 % of a plane: sqrt(2 log 2).
_ELLIPSE = 1.17741
#: Half-width in sds of the interval that holds 90 % of a normal: its 95 % quantile.
_INTERVAL = 1.644854
#: Rows that get a label each: 40 need 7.6 inches, at 0.17 inches a row. Judged by eye.
_MOST_LABELLED = 40
#: Rows with an ellipse each: more are a cloud. Judged by eye.
_MOST_ELLIPSES = 300
#: Widths of a bar and areas of a dot: so much over the number of rows, between two ends.
_SIZES = ((120, (0.3, 1.3)), (900, (4, 18)))
#: Latents of which every pair is drawn.
_MOST_PAIRED = 5


@guarded
class LatentPosteriorDisplay(Display):
    """Posteriors of rows' latents.

    `from_estimator` draws a map of two latents; `plot_pairs`, `plot_intervals` and `plot_series`
    draw the same posterior by pairs of latents, row by row, or in time order. Of more than 2,000
    rows a random 2,000 are drawn (of a series, evenly spaced ones), and the title says so.

    Parameters
    ----------
    posterior : LatentPosterior
        Result of `estimator.posterior(X)`.
    labels : array-like of shape (n_rows,), default=None
        Classes of the rows, or numbers: they colour the map.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import FactorizedVI
    >>> from skavi.displays import LatentPosteriorDisplay
    >>> from skavi.models import FactorAnalysis
    >>> X = np.random.default_rng(0).normal(size=(30, 4))
    >>> vi = FactorizedVI(FactorAnalysis(2), random_state=0).fit(X)
    >>> display = LatentPosteriorDisplay.from_estimator(vi, X)
    >>> display.ax_.get_xlabel()
    'factor0'
    >>> display.plot_intervals().ax_.get_ylabel()
    'row'
    """

    def __init__(self, posterior, labels=None):
        self.posterior, self.labels = posterior, labels

    @classmethod
    def from_estimator(
        cls,
        estimator: VariationalInference,
        X: TableLike,
        labels: ArrayLike | None = None,
        *,
        latents: Sequence[int] = (0, 1),
        ax: "Axes | None" = None,
    ) -> Self:
        """Infer the rows' latents and draw two of them (or the one there is, as intervals).

        Parameters
        ----------
        estimator : FactorizedVI or AmortizedVI
            A fitted estimator.
        X : array-like of shape (n_samples, n_features)
        labels : array-like of shape (n_samples,), default=None
            Classes, or numbers (more than ten different ones), to colour by.
        latents : (int, int), default=(0, 1)
            Which latents.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        LatentPosteriorDisplay
        """
        display = cls(estimator.posterior(X), labels)
        if display.posterior.mean.shape[1] == 1:
            return display.plot_intervals(latent=0, ax=ax)
        return display.plot(latents=latents, ax=ax)

    def plot(self, *, latents: Sequence[int] = (0, 1), ax: "Axes | None" = None) -> Self:
        """Draw posterior means of two latents, each with the ellipse that holds half of q.

        Returns
        -------
        LatentPosteriorDisplay
        """
        pair, colours = [self._check_latent(latent) for latent in latents], self._colours()
        self._begin(ax, figsize=colours.figsize(6.4, 4.2))
        n, rows = len(self.posterior.mean), rows_drawn(len(self.posterior.mean))
        ellipses = n <= _MOST_ELLIPSES
        for same, shades, marker in colours.groups(rows, self._ink):
            if ellipses:
                self._draw_ellipses(same, pair, shades)
            points = self.posterior.mean[np.ix_(same, pair)].T
            self.ax_.scatter(*points, s=16, c=shades, marker=marker, linewidths=0, zorder=3)
        self._make_room(pair)
        names = self.posterior.coords["latent"]
        self.ax_.set(xlabel=names[pair[0]], ylabel=names[pair[1]])
        said = "posterior means" + ("; ellipses hold 50 %" if ellipses else "")
        self.ax_.set_title(said + how_many(len(rows), n) + colours.unnamed, fontsize="medium")
        colours.key(self)
        return self

    def plot_pairs(
        self, *, latents: Sequence[int] | None = None, figure: "Figure | None" = None
    ) -> Self:
        """Draw posterior means of every pair of latents, and a histogram of each on the diagonal.

        Parameters
        ----------
        latents : sequence of int, default=None
            Which latents. None: all, at most the five whose posterior means vary most.
        figure : matplotlib Figure, default=None
            An empty one. None: a new figure.

        Returns
        -------
        LatentPosteriorDisplay
            ``axes_`` has the axes, an array of shape (n, n); ``ax_`` is the first of them.
        """
        mean, names = self.posterior.mean, self.posterior.coords["latent"]
        if latents is None:
            order = np.argsort(-mean.std(0), kind="stable")[:_MOST_PAIRED]
            latents = np.sort(order).tolist()
        chosen, colours = [self._check_latent(latent) for latent in latents], self._colours()
        n, rows = len(chosen), rows_drawn(len(mean))
        if figure is None:
            pyplot = require("matplotlib.pyplot", "skavi[plot]")
            size = colours.figsize(1.0 + 1.7 * n, 0.8 + 1.7 * n)
            figure = pyplot.figure(figsize=size, layout="constrained")
        self.axes_ = figure.subplots(n, n, sharex="col", squeeze=False)
        self._begin(self.axes_[0, 0])
        for (i, j), ax in np.ndenumerate(self.axes_):
            if i == j:
                ax.hist(mean[:, chosen[i]], 30, color=COLOURS[4], alpha=0.8)
                ax.set_yticks([])
            for same, shades, marker in colours.groups(rows, self._ink) if i != j else ():
                points = mean[same][:, [chosen[j], chosen[i]]].T
                ax.scatter(*points, s=6, c=shades, marker=marker, linewidths=0)
            ax.set_xlabel(names[chosen[j]] if i == n - 1 else "", fontsize="small")
            ax.set_ylabel(names[chosen[i]] if j == 0 else "", fontsize="small")
            ax.tick_params(labelsize="small")
        said = how_many(n, mean.shape[1], "latents") + how_many(len(rows), len(mean))
        figure.suptitle("posterior means" + said + colours.unnamed, fontsize="medium")
        colours.key(self, self.axes_)
        return self

    def plot_intervals(self, *, latent: int = 0, ax: "Axes | None" = None) -> Self:
        """Draw each row's 90 % interval of one latent, sorted by its mean.

        Returns
        -------
        LatentPosteriorDisplay
        """
        k, n, colours = self._check_latent(latent), len(self.posterior.mean), self._colours()
        rows = rows_drawn(n)
        mean, sd = self.posterior.mean[:, k], self.posterior.sd[:, k]
        height = max(4.2, 0.8 + 0.17 * n) if n <= _MOST_LABELLED else 4.2
        self._begin(ax, figsize=colours.figsize(6.4, height))
        order = rows[np.argsort(mean[rows], kind="stable")]
        place = np.zeros(n)
        place[order] = np.arange(len(order))
        width, size = (float(np.clip(a / len(order), *b)) for a, b in _SIZES)
        for same, shades, marker in colours.groups(rows, self._ink):
            bars = {"fmt": "none", "lw": width, "alpha": 0.8}
            bars["ecolor"] = "0.6" if colours.continuous else shades
            self.ax_.errorbar(mean[same], place[same], xerr=_INTERVAL * sd[same], **bars)
            dots = {"c": shades, "marker": marker, "s": size, "linewidths": 0, "zorder": 3}
            self.ax_.scatter(mean[same], place[same], **dots)
        if n <= _MOST_LABELLED:
            named = self.posterior.coords["row"][order]
            self.ax_.set_yticks(np.arange(n), [short(label) for label in named])
            self.ax_.tick_params(axis="y", labelsize="small")
        else:
            self.ax_.set_yticks([])
        self.ax_.set(xlabel=self.posterior.coords["latent"][k], ylabel="row")
        said = "posterior means and 90 % intervals" + how_many(len(rows), n) + colours.unnamed
        self.ax_.set_title(said, fontsize="medium")
        self.ax_.grid(alpha=0.25, axis="x")
        colours.key(self)
        return self

    def plot_series(
        self,
        X: TableLike | None = None,
        *,
        times: ArrayLike | None = None,
        latents: Sequence[int] | None = None,
        forecast: tuple[ArrayLike, ArrayLike] | None = None,
        ax: "Axes | None" = None,
    ) -> Self:
        """Draw latents against time with bands that hold 50 and 90 %.

        Parameters
        ----------
        X : array-like of shape (n_rows, 1), default=None
            Observations to draw as dots, if they are on the latents' scale.
        times : array-like of shape (n_rows,), default=None
            Where the rows are. None: the rows' labels if they are numbers or dates, else 0, 1, ...
        latents : sequence of int, default=None
            Which latents. None: all, at most the first seven, and the title says so.
        forecast : (mean, sd), default=None
            What `forecast` returned for one column, drawn after the series with the same bands.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        LatentPosteriorDisplay
        """
        self._begin(ax, figsize=(7.6, 3.8))
        times = self._times() if times is None else np.asarray(times)
        n, n_latents = self.posterior.mean.shape
        chosen = range(min(n_latents, len(COLOURS))) if latents is None else latents
        steps = np.linspace(0, n - 1, min(n, MOST_ROWS)).round().astype(int)
        for i, latent in enumerate(chosen):
            k = self._check_latent(latent)
            mean, sd = self.posterior.mean[steps, k], self.posterior.sd[steps, k]
            name = self.posterior.coords["latent"][k]
            self._draw_band(times[steps], mean, sd, color=colour(i), label=name)
        if forecast is not None:
            mean, sd = (np.asarray(each, dtype=float).reshape(-1) for each in forecast)
            ahead = times[-1] + (times[-1] - times[-2]) * np.arange(1, len(mean) + 1)
            self._draw_band(ahead, mean, sd, color=colour(len(chosen)), label="forecast")
        if X is not None:
            observed = np.asarray(X, dtype=float).reshape(n)[steps]
            dots = {"s": 12, "color": self._ink, "alpha": 0.75, "zorder": 3, "linewidths": 0}
            self.ax_.scatter(times[steps], observed, label="observed", **dots)
        self.ax_.set(xlabel="time", ylabel="latent")
        left_out = how_many(len(chosen), n_latents, "latents") if latents is None else ""
        said = "posterior means; bands hold 50 and 90 %" + left_out
        self.ax_.set_title(said + how_many(len(steps), n, "steps"), fontsize="medium")
        return self._end(**BESIDE)

    def _draw_band(self, times, mean, sd, **look):
        """Draw means with bands that hold 50 and 90 %."""
        for width, alpha in ((_INTERVAL, 0.18), (0.6745, 0.28)):
            band = {"color": look["color"], "alpha": alpha, "lw": 0}
            self.ax_.fill_between(times, mean - width * sd, mean + width * sd, **band)
        self.ax_.plot(times, mean, lw=1.8, **look)

    def _times(self):
        labels = self.posterior.coords["row"]
        return np.arange(len(labels)) if labels.dtype.kind in "OUS" else labels

    def _check_latent(self, latent):
        check_latent(latent, self.posterior.mean.shape[1])
        return latent

    def _colours(self):
        return RowColours(self.labels, len(self.posterior.mean))

    def _draw_ellipses(self, rows, pair, shades):
        import matplotlib
        from matplotlib.collections import EllipseCollection

        scale = self.posterior.scale[rows][:, pair]
        values, vectors = np.linalg.eigh(scale @ np.swapaxes(scale, 1, 2))
        widths, heights = 2 * _ELLIPSE * np.sqrt(np.maximum(values, 0)).T
        angles = np.degrees(np.arctan2(vectors[:, 1, 0], vectors[:, 0, 0]))
        faces = matplotlib.colors.to_rgba_array(
            shades, 0.5 / max(1, len(self.posterior.mean) / 25) ** 0.5
        )
        ellipses = EllipseCollection(
            widths, heights, angles, units="xy", offsets=self.posterior.mean[np.ix_(rows, pair)],
            offset_transform=self.ax_.transData, facecolors=faces,
            edgecolors=matplotlib.colors.to_rgba_array(shades, 0.35), linewidths=0.6,
        )  # fmt: skip
        self.ax_.add_collection(ellipses)

    def _make_room(self, pair):
        """Widen the limits to hold every ellipse, which extends 1.18 sds along an axis."""
        mean, reach = self.posterior.mean[:, pair], _ELLIPSE * self.posterior.sd[:, pair]
        low, high = (mean - reach).min(0), (mean + reach).max(0)
        pad = 0.03 * (high - low)
        self.ax_.set_xlim(low[0] - pad[0], high[0] + pad[0])
        self.ax_.set_ylim(low[1] - pad[1], high[1] + pad[1])
