"""Plots of loadings: which columns a latent moves, as a heatmap or beside the rows' latents."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from skavi._estimators.base import VariationalInference
from skavi._platform.forks_and_threads import guarded
from skavi.displays._axes import Display, check_latent, explained_names, how_many, rows_drawn, short
from skavi.displays._classes import RowColours
from skavi.posterior import LatentPosterior

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches a column's name and a latent need, and what is around them.
_ROW, _COLUMN, _MARGIN = 0.2, 0.42, 1.3
#: Latents of which loadings are drawn.
_MOST_LATENTS = 20
#: In half-widths of the rows' cloud: the longest arrow, the distance of two labels, and the axes'
#: half-width, which leaves room for labels. Judged by eye.
_REACH, _GAP, _ROOM = 0.95, 0.11, 2.0
#: Characters of a label for which that is room.
_LONGEST = 16


@guarded
class LoadingsDisplay(Display):
    """The loadings of a fitted `FactorAnalysis`.

    Loadings of columns of numbers are drawn as correlations of the column with the latent; of
    counts and answers, as what one sd of the latent adds to the log rate or the logit.

    Parameters
    ----------
    loadings : ndarray of shape (n_features, n_latents)
    names : sequence of n_features str
        Of the columns.
    latents : sequence of n_latents str
        Names of the latents.
    label : str, default="loading"
        What the numbers are.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skavi import FactorizedVI
    >>> from skavi.displays import LoadingsDisplay
    >>> from skavi.models import FactorAnalysis
    >>> X = load_iris(as_frame=True).data
    >>> vi = FactorizedVI(FactorAnalysis(2, noise="diagonal"), random_state=0).fit(X)
    >>> display = LoadingsDisplay.from_estimator(vi)
    >>> display.names[0], display.loadings.shape
    ('sepal length (cm)', (4, 2))
    """

    def __init__(self, loadings, names, latents, label="loading"):
        self.loadings, self.names, self.latents = loadings, names, latents
        self.label = label

    @classmethod
    def from_estimator(
        cls, estimator: VariationalInference, *, most: int = 40, ax: "Axes | None" = None
    ) -> Self:
        """Draw the loadings of a fit as a heatmap.

        Parameters
        ----------
        estimator : FactorizedVI or AmortizedVI
            Fitted with a `FactorAnalysis`.
        most : int, default=40
            Columns that are drawn at most: those with the largest loadings.
        ax : matplotlib Axes, default=None
            None: a new figure, as large as its names need.

        Returns
        -------
        LoadingsDisplay

        Raises
        ------
        ValueError
            If the model has no global "loadings".
        """
        theta = estimator.global_posterior_.mean
        if "loadings" not in theta:
            raise ValueError(
                f"LoadingsDisplay draws the global 'loadings', which "
                f"{type(estimator.model_).__name__} has not: fit a FactorAnalysis."
            )
        loadings, label = theta["loadings"], "loading, on the predictor's scale"
        if "noise_variance" in theta:
            total = (loadings**2).sum(1) + theta["noise_variance"]
            loadings, label = loadings / np.sqrt(total)[:, None], "correlation with the latent"
        k = loadings.shape[1]
        latents = [f"factor {i}" for i in range(k)]
        display = cls(loadings, explained_names(estimator), latents, label)
        return display.plot(most=most, ax=ax)

    def plot(self, *, most: int = 40, ax: "Axes | None" = None) -> Self:
        """Draw a heatmap: a row for each column of X, a column for each latent.

        Parameters
        ----------
        most : int, default=40
            Columns of X that are drawn at most.
        ax : matplotlib Axes, default=None

        Returns
        -------
        LoadingsDisplay
        """
        columns, latents = self._largest(most), range(min(len(self.latents), _MOST_LATENTS))
        width = _MARGIN + 2.4 + _COLUMN * len(latents)
        self._begin(ax, figsize=(max(4.2, width), max(2.4, _MARGIN + _ROW * len(columns))))
        shown = self.loadings[np.ix_(columns, latents)]
        limit = np.abs(shown).max() or 1.0
        image = self.ax_.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        self.figure_.colorbar(image, ax=self.ax_, label=self.label)
        self.ax_.set_yticks(range(len(columns)), [short(self.names[i]) for i in columns])
        self.ax_.tick_params(axis="y", labelsize="small")
        names = [self.latents[i] for i in latents]
        turned = {"rotation": 90} if len(names) > 4 else {}
        self.ax_.set_xticks(range(len(names)), names, fontsize="small", **turned)
        said = how_many(len(columns), len(self.names), "columns")
        said += how_many(len(names), len(self.latents), "latents")
        self.ax_.set_title(said.removeprefix("; "), fontsize="medium")
        return self

    def plot_biplot(
        self,
        posterior: LatentPosterior,
        labels: ArrayLike | None = None,
        *,
        latents: Sequence[int] = (0, 1),
        most: int = 8,
        ax: "Axes | None" = None,
    ) -> Self:
        """Draw rows at their posterior means, and columns as arrows along their loadings.

        Parameters
        ----------
        posterior : LatentPosterior
            Of the rows: ``estimator.posterior(X)``.
        labels : array-like of shape (n_rows,), default=None
            Classes, or numbers, to colour by.
        latents : (int, int), default=(0, 1)
            Which latents.
        most : int, default=8
            Arrows that are drawn at most: the longest.
        ax : matplotlib Axes, default=None

        Returns
        -------
        LoadingsDisplay
        """
        for latent in latents:
            check_latent(latent, posterior.mean.shape[1])
        pair, colours = list(latents), RowColours(labels, len(posterior.mean))
        points, arrows = posterior.mean[:, pair], self.loadings[:, pair]
        self._begin(ax, figsize=colours.figsize(6.4, 5.2))
        rows = rows_drawn(len(points))
        for same, shades, marker in colours.groups(rows, self._ink):
            dots = {"s": 12, "c": shades, "marker": marker, "linewidths": 0, "alpha": 0.55}
            self.ax_.scatter(*points[same].T, **dots)
        lengths = np.linalg.norm(arrows, axis=1)
        chosen = np.argsort(-lengths, kind="stable")[:most]
        size = np.abs(points).max()
        ends = _REACH * size / (lengths.max() or 1.0) * arrows[chosen]
        for i, end, height in zip(chosen, ends, _apart(ends, _GAP * size), strict=True):
            look = {"arrowstyle": "->", "color": self._ink, "lw": 1.2}
            self.ax_.annotate("", end, (0, 0), arrowprops=look)
            side = {"ha": "left" if end[0] >= 0 else "right", "va": "center"}
            words = {"fontsize": "small", "color": self._ink}
            self.ax_.text(1.05 * end[0], height, short(self.names[i], _LONGEST), **side, **words)
        self.ax_.set(xlim=(-_ROOM * size, _ROOM * size), ylim=(-1.2 * size, 1.2 * size))
        self.ax_.set(xlabel=self.latents[pair[0]], ylabel=self.latents[pair[1]])
        said = "arrows point where a column grows"
        said += how_many(len(chosen), len(self.names), "columns")
        self.ax_.set_title(said + how_many(len(rows), len(points)), fontsize="medium")
        colours.key(self)
        return self

    def _largest(self, most):
        """Return the columns with the largest loadings, in the order of X."""
        size = np.abs(self.loadings).max(1)
        return np.sort(np.argsort(-size, kind="stable")[:most])


def _apart(ends, gap):
    """Return heights of the labels at arrows' ends: on either side none nearer than a gap."""
    heights = ends[:, 1].copy()
    for right in (True, False):
        side = np.flatnonzero((ends[:, 0] >= 0) == right)
        side = side[np.argsort(heights[side], kind="stable")]
        steps = gap * np.arange(len(side))
        # The nearest heights, in least squares, of which each is a gap above the one before.
        heights[side] = isotonic_regression(heights[side] - steps).x + steps if len(side) else 0
    return heights
