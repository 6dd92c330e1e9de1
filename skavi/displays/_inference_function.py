"""A plot of an inference function of x, beside the table of factors that it replaces."""

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import clone

from skavi._estimators.base import VariationalInference
from skavi._estimators.factorized import FactorizedVI
from skavi._platform.array_types import TableLike
from skavi._platform.forks_and_threads import guarded
from skavi.displays._axes import (
    Display,
    check_latent,
    colour,
    column_of,
    how_many,
    rows_drawn,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Points of the line: about one for each pixel across the axes.
_N_GRID = 400


@guarded
class InferenceFunctionDisplay(Display):
    """Mean and sd of q(z_n) against x: A-VI's function as a line with a band, F-VI's table as dots.

    Use `from_estimator`. Where the function reads one number a row (one column, no neighbours) it
    is drawn as a line with a band; otherwise at the rows, as hollow markers.

    Parameters
    ----------
    x : ndarray of shape (n_rows,)
        The rows' feature.
    table : LatentPosterior
        F-VI's factors of the rows.
    amortized : LatentPosterior
        A-VI's factors of `at`.
    at : ndarray
        Where the function is drawn: a grid, or `x` itself.
    line : bool
        Whether `at` is a grid.
    labels : (str, str)
        Labels of the axes.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from skavi import AmortizedVI
    >>> from skavi.displays import InferenceFunctionDisplay
    >>> from skavi.inference_functions import Polynomial
    >>> from skavi.models import LinearModel
    >>> X = [[0.0], [1.0], [5.0]]
    >>> vi = AmortizedVI(LinearModel(), Polynomial(1)).fit(X)
    >>> InferenceFunctionDisplay.from_estimator(vi, X).ax_.get_xlabel()
    'feature 0'
    """

    def __init__(self, x, table, amortized, at, line, labels):
        self.x, self.table, self.amortized = x, table, amortized
        self.at, self.line, self.labels = at, line, labels

    @classmethod
    def from_estimator(
        cls,
        amortized: VariationalInference,
        X: TableLike,
        factorized: VariationalInference | None = None,
        *,
        feature: int | str = 0,
        latent: int = 0,
        ax: "Axes | None" = None,
    ) -> Self:
        """Draw a function beside the table of a factorized fit.

        Parameters
        ----------
        amortized : AmortizedVI
            A fitted estimator.
        X : array-like of shape (n_samples, n_features)
            The rows it was fitted on.
        factorized : FactorizedVI, default=None
            A fit of the same model to the same rows. None: one is made.
        feature : int or str, default=0
            Column of X along the axis.
        latent : int, default=0
            Which latent.
        ax : matplotlib Axes, default=None
            None: a new figure.

        Returns
        -------
        InferenceFunctionDisplay
        """
        x, x_label = column_of(X, feature)
        if factorized is None:
            factorized = FactorizedVI(clone(amortized.model_), init=amortized).fit(X)
        table = factorized.posterior(X)
        check_latent(latent, table.mean.shape[1])
        model, function = amortized.model_, amortized.inference_function_
        context = function.context if function.context is not None else model.context
        line = amortized.n_features_in_ == 1 and tuple(context or (0, 0)) == (0, 0)
        low, high = x.min(), x.max()
        pad = 0.04 * (high - low)
        at = np.linspace(low - pad, high + pad, _N_GRID) if line else x
        rows: Any = at[:, None] if line else X
        if line and hasattr(X, "columns"):
            frame: Any = type(X)
            rows = frame(rows, columns=list(X.columns))
        names = x_label, f"latent {latent}"
        display = cls(x, table, amortized.posterior(rows), at, line, names)
        return display.plot(latent=latent, ax=ax)

    def plot(self, *, latent: int = 0, ax: "Axes | None" = None) -> Self:
        """Draw on `ax`, or on a new figure.

        Returns
        -------
        InferenceFunctionDisplay
        """
        self._begin(ax)
        mean, sd = self.amortized.mean[:, latent], self.amortized.sd[:, latent]
        rows = rows_drawn(len(self.x))
        x, centre, spread = self.x[rows], self.table.mean[rows, latent], self.table.sd[rows, latent]
        alpha = 0.85 if len(self.x) <= 150 else 0.4
        dots = {"color": colour(1), "alpha": alpha, "zorder": 5, "linestyle": "none"}
        self.ax_.plot(x, centre, "o", ms=3.5, label="F-VI's table: mean", **dots)
        for i, edge in enumerate((centre - spread, centre + spread)):
            label = None if i else "F-VI's table: mean ± sd"
            self.ax_.plot(x, edge, "_", ms=6, mew=1.3, label=label, **dots)
        line = {"color": colour(0), "zorder": 4}
        if self.line:
            self.ax_.plot(self.at, mean, lw=2, label="A-VI's function: mean", **line)
            band = {
                "color": colour(0),
                "alpha": 0.2,
                "lw": 0,
                "label": "A-VI's function: mean ± sd",
            }
            self.ax_.fill_between(self.at, mean - sd, mean + sd, **band)
        else:
            hollow = {"mfc": "none", "linestyle": "none", "alpha": alpha} | line
            at, mean, sd = self.at[rows], mean[rows], sd[rows]
            self.ax_.plot(at, mean, "s", ms=7, label="A-VI's function: mean", **hollow)
            for i, edge in enumerate((mean - sd, mean + sd)):
                label = None if i else "A-VI's function: mean ± sd"
                self.ax_.plot(at, edge, "_", ms=11, mew=1, label=label, **hollow)
        x_label = self.labels[0] + how_many(len(rows), len(self.x))
        self.ax_.set(xlabel=x_label, ylabel=self.labels[1])
        return self._end()
