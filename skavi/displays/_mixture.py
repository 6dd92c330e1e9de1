"""Plot of clusters: rows coloured by their component, and an ellipse for each component."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from skavi._estimators.base import VariationalInference
from skavi._platform.array_types import TableLike
from skavi._platform.forks_and_threads import guarded
from skavi.displays._axes import (
    BESIDE,
    MARKERS,
    Display,
    colour,
    column_of,
    how_many,
    legend,
    rows_drawn,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Half-width in sds of the ellipse that holds 50 % of a plane: sqrt(2 log 2).
_HALF = 1.17741
#: Opacity of a row that may belong to any component, so that it is still seen. Judged by eye.
_FAINTEST = 0.15
#: Weight below which a component is empty, and is not drawn. Not measured: order of magnitude.
_LEAST_WEIGHT = 0.01
#: Components that a legend names: more are numbered where they are. Judged by eye.
_MOST_NAMED = 12


@guarded
class MixtureDisplay(Display):
    """Two columns of a table under a fitted `MixtureModel`.

    Rows have the colour of their most probable component, fainter the less probable it is; rows in
    which one of the two cells is missing are not drawn. Normal components have an ellipse that
    holds half of them, others a cross at their means. Empty components are left out.

    Parameters
    ----------
    points : ndarray of shape (n_rows, 2)
        The two columns.
    probabilities : ndarray of shape (n_rows, n_components)
        Of the components.
    weights : ndarray of shape (n_components,)
        Of the components, posterior means, as what follows.
    means : ndarray of shape (n_components, 2)
    covariances : ndarray of shape (n_components, 2, 2) or None
        None: no ellipses.
    names : (str, str), default=("feature 0", "feature 1")
        Of the two columns.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skavi import FactorizedVI
    >>> from skavi.displays import MixtureDisplay
    >>> from skavi.models import MixtureModel
    >>> X = load_iris(as_frame=True).data
    >>> vi = FactorizedVI(MixtureModel(3), n_init=1, random_state=0).fit(X)
    >>> display = MixtureDisplay.from_estimator(vi, X, features=(2, 3))
    >>> display.ax_.get_xlabel()
    'petal length (cm)'
    """

    def __init__(
        self, points, probabilities, weights, means, covariances, names=("feature 0", "feature 1")
    ):
        self.points, self.probabilities = points, probabilities
        self.weights, self.means, self.covariances = weights, means, covariances
        self.names = names

    @classmethod
    def from_estimator(
        cls,
        estimator: VariationalInference,
        X: TableLike,
        *,
        features: Sequence[int | str] = (0, 1),
        ax: "Axes | None" = None,
    ) -> Self:
        """Find the rows' components and draw two columns.

        Parameters
        ----------
        estimator : FactorizedVI or AmortizedVI
            Fitted with a `MixtureModel`.
        X : array-like of shape (n_samples, n_features)
        features : (int or str, int or str), default=(0, 1)
            Which columns: positions, or a frame's column names. Normal ones, in a table of mixed
            columns.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        MixtureDisplay

        Raises
        ------
        ValueError
            If the fitted model is no mixture, or there is no such column.
        """
        theta = estimator.global_posterior_.mean
        if not {"weights", "means"} <= theta.keys():
            raise ValueError(
                f"MixtureDisplay draws components, but {type(estimator.model_).__name__} has no "
                'globals "weights" and "means": fit a MixtureModel.'
            )
        (first, x), (second, y) = (column_of(X, feature) for feature in features)
        pair = _places_of_means(estimator.model_.columns_, X, features)
        k = len(theta["weights"])
        if "covariances" in theta:
            whole = np.broadcast_to(theta["covariances"], (k, *theta["covariances"].shape[-2:]))
            covariances = whole[:, pair][:, :, pair]
        elif "variances" in theta:
            covariances = theta["variances"][:, pair, None] * np.eye(2)
        else:
            covariances = None
        points, probabilities = np.column_stack([first, second]), estimator.transform(X)[:, :k]
        means = theta["means"][:, pair]
        display = cls(points, probabilities, theta["weights"], means, covariances, (x, y))
        return display.plot(ax=ax)

    def plot(self, *, ax: "Axes | None" = None) -> Self:
        """Draw rows and components.

        Returns
        -------
        MixtureDisplay
        """
        self._begin(ax)
        state, sure = self.probabilities.argmax(1), self.probabilities.max(1)
        k, drawn = len(self.weights), rows_drawn(len(self.points))
        least = 1 / k
        opacity = _FAINTEST + (1 - _FAINTEST) * (sure - least) / max(1 - least, least)
        shown = np.flatnonzero(self.weights >= _LEAST_WEIGHT).tolist()
        seen = np.isfinite(self.points[drawn]).all(1)
        for i in shown:
            rows = drawn[seen & (state[drawn] == i)]
            label = f"component {i} (weight {self.weights[i]:.2f})"
            style = {"color": colour(i), "marker": MARKERS[i % len(MARKERS)], "linewidths": 0}
            faint = np.clip(opacity[rows], 0, 1)
            self.ax_.scatter(*self.points[rows].T, s=16, alpha=faint, **style)
            if len(shown) <= _MOST_NAMED:
                self.ax_.scatter([], [], s=18, label=label, **style)  # for the legend
            self._draw_component(i, len(shown) > _MOST_NAMED)
        self.ax_.set(xlabel=self.names[0], ylabel=self.names[1])
        said = [] if self.covariances is None else ["ellipses hold 50 % of a component"]
        said += [] if len(shown) <= _MOST_NAMED else ["numbers are components"]
        title = "; ".join(said) + how_many(len(drawn), len(self.points))
        self.ax_.set_title(title.removeprefix("; "), fontsize="medium")
        self.ax_.grid(alpha=0.25)
        legend(self.ax_, **BESIDE)
        return self

    def _draw_component(self, i, numbered):
        if numbered:
            box = {"boxstyle": "circle,pad=0.15", "fc": self.ax_.get_facecolor(), "alpha": 0.75}
            words = {"ha": "center", "va": "center", "fontsize": "x-small", "zorder": 4}
            self.ax_.text(*self.means[i], str(i), color=self._ink, bbox=box | {"lw": 0}, **words)
        else:
            self.ax_.plot(*self.means[i], "+", color=self._ink, ms=8, mew=1.4, zorder=4)
        if self.covariances is None:
            return
        from matplotlib.patches import Ellipse

        values, vectors = np.linalg.eigh(self.covariances[i])
        width, height = 2 * _HALF * np.sqrt(np.maximum(values, 0))
        angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
        edge = {"facecolor": "none", "edgecolor": colour(i), "linewidth": 1.6, "zorder": 3}
        self.ax_.add_patch(Ellipse(self.means[i], width, height, angle=angle, **edge))
        self.ax_.autoscale_view()


def _places_of_means(roles, X, features):
    """Return the places of columns of X among those that have means."""
    columns = list(getattr(X, "columns", []))
    places = [f if isinstance(f, int | np.integer) else columns.index(f) for f in features]
    if roles.kinds:
        pairs = zip(roles.explained, roles.kinds, strict=True)
        normal = [place for place, kind in pairs if kind.likelihood == "normal"]
        for feature, place in zip(features, places, strict=True):
            if place not in normal:
                raise ValueError(
                    f"feature={feature!r}: MixtureDisplay draws normal columns, and this one is "
                    "of another kind."
                )
        places = [normal.index(place) for place in places]
    return np.array(places, dtype=int)
