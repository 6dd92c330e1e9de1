"""Plots of rows' latents: a map with ellipses, intervals, or a series with bands."""

import numpy as np

from skavi._platform.forks_and_threads import guarded
from skavi.displays._axes import BESIDE, COLOURS, MARKERS, Display, check_latent, colour, legend

#: Half-width in sds of the ellipse that holds 50 % of a plane: sqrt(2 log 2).
_ELLIPSE = 1.17741
#: Half-width in sds of the interval that holds 90 % of a normal: its 95 % quantile.
_INTERVAL = 1.644854
#: Classes that a legend names: more do not fit beside the axes. Judged by eye.
_MOST_LABELS = 40
#: Rows that get a label each: 40 need 7.6 inches, at 0.17 inches a row. Judged by eye.
_MOST_ROWS = 40


@guarded
class LatentPosteriorDisplay(Display):
    """Posteriors of rows' latents.

    `from_estimator` draws a map of two latents; `plot_intervals` and `plot_series` draw the same
    posterior row by row, or in time order.

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
    'factorizedvi0'
    >>> display.plot_intervals().ax_.get_ylabel()
    'row'
    """

    def __init__(self, posterior, labels=None):
        self.posterior, self.labels = posterior, labels

    @classmethod
    def from_estimator(cls, estimator, X, labels=None, *, latents=(0, 1), ax=None):
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

    def plot(self, *, latents=(0, 1), ax=None):
        """Draw posterior means of two latents, each with the ellipse that holds half of q.

        Returns
        -------
        LatentPosteriorDisplay
        """
        i, j = (self._check_latent(latent) for latent in latents)
        self._begin(ax)
        for rows, style in self._groups():
            self._draw_ellipses(rows, [i, j], style["color"])
            points = self.posterior.mean[np.ix_(rows, [i, j])].T
            self.ax_.scatter(*points, s=16, linewidths=0, zorder=3, **style)
        self._make_room([i, j])
        names = self.posterior.coords["latent"]
        self.ax_.set(xlabel=names[i], ylabel=names[j])
        self.ax_.set_title("posterior means; ellipses hold 50 %", fontsize="medium")
        self._key()
        return self

    def plot_intervals(self, *, latent=0, ax=None):
        """Draw each row's 90 % interval of one latent, sorted by its mean.

        Returns
        -------
        LatentPosteriorDisplay
        """
        k = self._check_latent(latent)
        mean, sd = self.posterior.mean[:, k], self.posterior.sd[:, k]
        height = max(4.2, 0.8 + 0.17 * len(mean)) if len(mean) <= _MOST_ROWS else 4.2
        self._begin(ax, figsize=(6.4, height))
        order = np.argsort(mean, kind="stable")
        place = np.empty(len(mean))
        place[order] = np.arange(len(mean))
        width = float(np.clip(120 / len(mean), 0.3, 1.3))
        for rows, style in self._groups():
            bars = {"fmt": "none", "lw": width, "alpha": 0.8}
            bars["ecolor"] = "0.6" if self._continuous() else style["color"]
            self.ax_.errorbar(mean[rows], place[rows], xerr=_INTERVAL * sd[rows], **bars)
            size = float(np.clip(900 / len(mean), 4, 18))
            self.ax_.scatter(mean[rows], place[rows], s=size, linewidths=0, zorder=3, **style)
        named = self.posterior.coords["row"][order]
        if len(mean) <= _MOST_ROWS:
            self.ax_.set_yticks(np.arange(len(mean)), [str(label) for label in named])
            self.ax_.tick_params(axis="y", labelsize="small")
        else:
            self.ax_.set_yticks([])
        self.ax_.set(xlabel=self.posterior.coords["latent"][k], ylabel="row")
        self.ax_.set_title("posterior means and 90 % intervals", fontsize="medium")
        self.ax_.grid(alpha=0.25, axis="x")
        self._key()
        return self

    def plot_series(self, X=None, *, times=None, latents=None, forecast=None, ax=None):
        """Draw latents against time with bands that hold 50 and 90 %.

        Parameters
        ----------
        X : array-like of shape (n_rows, 1), default=None
            Observations to draw as dots, if they are on the latents' scale.
        times : array-like of shape (n_rows,), default=None
            Where the rows are. None: the rows' labels if they are numbers or dates, else 0, 1, ...
        latents : sequence of int, default=None
            Which latents. None: all, at most seven.
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
        n_latents = self.posterior.mean.shape[1]
        chosen = range(min(n_latents, len(COLOURS))) if latents is None else latents
        for i, latent in enumerate(chosen):
            k = self._check_latent(latent)
            mean, sd = self.posterior.mean[:, k], self.posterior.sd[:, k]
            name = self.posterior.coords["latent"][k]
            self._draw_band(times, mean, sd, color=colour(i), label=name)
        if forecast is not None:
            mean, sd = (np.asarray(each, dtype=float).reshape(-1) for each in forecast)
            ahead = times[-1] + (times[-1] - times[-2]) * np.arange(1, len(mean) + 1)
            self._draw_band(ahead, mean, sd, color=colour(len(chosen)), label="forecast")
        if X is not None:
            dots = {"s": 12, "color": "0.25", "zorder": 3, "linewidths": 0, "label": "observed"}
            self.ax_.scatter(times, np.asarray(X, dtype=float).reshape(len(times)), **dots)
        self.ax_.set(xlabel="time", ylabel="latent")
        self.ax_.set_title("posterior means; bands hold 50 and 90 %", fontsize="medium")
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

    def _begin(self, ax, **size):
        if self.labels is not None and len(self.labels) != len(self.posterior.mean):
            raise ValueError(
                f"labels has {len(self.labels)} entries for {len(self.posterior.mean)} rows."
            )
        super()._begin(ax, **size)

    def _continuous(self):
        labels = np.asarray(self.labels) if self.labels is not None else np.zeros(0)
        return labels.dtype.kind == "f" and len(np.unique(labels)) > 10

    def _groups(self):
        """Return groups of rows, each with its style."""
        n = len(self.posterior.mean)
        if self.labels is None:
            return [(np.arange(n), {"color": COLOURS[0], "marker": "o"})]
        labels = np.asarray(self.labels)
        if self._continuous():
            shades = self._shades(labels)
            return [(np.arange(n), {"color": shades, "marker": "o"})]
        groups = []
        for i, value in enumerate(np.unique(labels)):
            look = {"color": colour(i), "marker": MARKERS[i // len(COLOURS) % len(MARKERS)]}
            groups.append((np.flatnonzero(labels == value), look | {"label": str(value)}))
        return groups

    def _shades(self, labels):
        import matplotlib

        self.norm_ = matplotlib.colors.Normalize(labels.min(), labels.max())
        return self._palette()(self.norm_(labels))

    @staticmethod
    def _palette():
        """Return cividis, readable with any colour vision, without the end that is too light."""
        import matplotlib

        shades = matplotlib.colormaps["cividis"](np.linspace(0, 0.88, 256))
        return matplotlib.colors.ListedColormap(shades)

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

    def _key(self):
        """Name the labels beside the axes: a legend of classes, or a bar of numbers."""
        if self._continuous():
            import matplotlib

            shades = matplotlib.cm.ScalarMappable(self.norm_, self._palette())
            self.figure_.colorbar(shades, ax=self.ax_, label="label")
        elif self.labels is not None and len(np.unique(self.labels)) <= _MOST_LABELS:
            legend(self.ax_, **BESIDE)
            for handle in self.ax_.get_legend().legend_handles:
                handle.set_sizes([18])
