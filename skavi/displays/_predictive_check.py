"""Posterior predictive check: columns of a table beside those of tables that the fit draws."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np

from skavi._data.column_roles import LABELS, as_table
from skavi._estimators.base import VariationalInference
from skavi._platform.array_types import Seed, TableLike
from skavi._platform.forks_and_threads import guarded
from skavi._platform.private_names import safe_indexing
from skavi._platform.random_state import private_state
from skavi.displays._axes import (
    Display,
    colour,
    explained_names,
    explained_places,
    how_many,
    numbers_of,
    panels,
    short,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Panels in a row, and inches of a panel.
_ACROSS, _WIDE, _HIGH = 3, 2.6, 2.1
#: Different values of a column up to which each has a bar of its own.
_FEW_VALUES = 25
#: Places at which distribution functions are compared: about one for every pixel or two.
_N_PLACES = 200
#: Columns that are drawn where none are named.
_MOST = 6


@guarded
class PredictiveCheckDisplay(Display):
    """Observed columns beside replicates: tables of the same size that the fitted model draws.

    A column of few different values is drawn by their shares of the rows, others by their
    distribution functions; the band holds 90 % of the replicates. Where the line leaves the band,
    the model does not know something of that column.

    Parameters
    ----------
    observed : ndarray of shape (n_rows, n_features)
        NaN where a cell is missing.
    replicated : ndarray of shape (n_draws, n_rows, n_features)
        NaN where the observed cell is missing.
    names : sequence of n_features str
        Of the columns.
    n_columns : int, default=None
        How many columns there are, if more than are drawn.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        One a column; ``ax_`` is the first.
    figure_ : matplotlib Figure

    References
    ----------
    Gelman, Meng & Stern (1996), "Posterior predictive assessment of model fitness via realized
    discrepancies", Statistica Sinica 6.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skavi import FactorizedVI
    >>> from skavi.displays import PredictiveCheckDisplay
    >>> from skavi.models import FactorAnalysis
    >>> X = load_iris(as_frame=True).data
    >>> vi = FactorizedVI(FactorAnalysis(2), random_state=0).fit(X)
    >>> display = PredictiveCheckDisplay.from_estimator(vi, X, random_state=0)
    >>> display.replicated.shape
    (20, 150, 4)
    """

    def __init__(self, observed, replicated, names, n_columns=None):
        self.observed, self.replicated = observed, replicated
        self.names, self.n_columns = names, n_columns

    @classmethod
    def from_estimator(
        cls,
        estimator: VariationalInference,
        X: TableLike,
        *,
        features: Sequence[int] | None = None,
        n_draws: int = 20,
        random_state: Seed = None,
        figure: "Figure | None" = None,
    ) -> Self:
        """Draw tables from a fit, and compare.

        Parameters
        ----------
        estimator : FactorizedVI or AmortizedVI
            A fitted estimator.
        X : array-like of shape (n_samples, n_features)
            The observed rows. Columns that the model is given are given to the replicates.
        features : sequence of int, default=None
            Which of the explained columns. None: the first six, at most.
        n_draws : int, default=20
            Tables that are drawn.
        random_state : int, RandomState or None, default=None
        figure : matplotlib Figure, default=None
            An empty one. None: a new figure.

        Returns
        -------
        PredictiveCheckDisplay
        """
        table = as_table(X)
        if "offset" in estimator.model_.columns_.given:
            raise ValueError(
                "PredictiveCheckDisplay: new rows are drawn with an offset of 0, so they cannot be "
                "compared with rows of another offset."
            )
        names, places = explained_names(estimator), explained_places(estimator)
        chosen = list(range(len(places))[:_MOST]) if features is None else list(features)
        columns = [places[i] for i in chosen]
        observed = numbers_of(X, columns)
        state, given = private_state(random_state), _given(table, estimator.model_)
        tables = (estimator.sample(len(observed), state, **given)[0] for _ in range(n_draws))
        drawn = np.stack([numbers_of(each, columns) for each in tables])
        drawn[:, np.isnan(observed)] = np.nan
        left_out = len(places) if features is None else None
        return cls(observed, drawn, [names[i] for i in chosen], left_out).plot(figure=figure)

    def plot(self, *, figure: "Figure | None" = None) -> Self:
        """Draw a panel for each column.

        Parameters
        ----------
        figure : matplotlib Figure, default=None
            An empty one. None: a new figure.

        Returns
        -------
        PredictiveCheckDisplay
        """
        k = len(self.names)
        across = min(_ACROSS, k)
        down = -(-k // across)
        size = max(4.6, _WIDE * across), 0.9 + _HIGH * down
        figure, self.axes_ = panels(figure, k, across, size)
        self._begin(self.axes_[0])
        for j, ax in enumerate(self.axes_):
            self._panel(ax, self.observed[:, j], self.replicated[:, :, j])
            ax.set_title(short(self.names[j]), fontsize="small")
            ax.tick_params(labelsize="small")
        handles, labels = self.axes_[0].get_legend_handles_labels()
        below = {"loc": "outside lower center", "ncols": 2, "frameon": False, "fontsize": "small"}
        figure.legend(handles, labels, **below)
        said = f"{len(self.replicated)} replicates" + how_many(k, self.n_columns or k, "columns")
        figure.suptitle(said, fontsize="medium")
        return self

    def _panel(self, ax, observed, replicated):
        seen = ~np.isnan(observed)
        observed, replicated = observed[seen], replicated[:, seen]
        line = {"color": colour(1), "label": "observed"}
        band = {"color": colour(4), "alpha": 0.6, "lw": 0, "label": "replicates, 90 %"}
        if len(np.unique(observed)) <= _FEW_VALUES:
            values = np.unique(np.concatenate([observed, replicated.ravel()]))[:_N_PLACES]
            low, high, own = _between(
                lambda x: (x[:, None] == values).mean(0), replicated, observed
            )
            width = 0.8 * np.diff(values).min() if len(values) > 1 else 0.8
            ax.bar(values, high - low, width, bottom=low, **band)
            ax.plot(values, own, "o", ms=4, **line)
            return
        first, last = np.quantile(np.concatenate([observed, replicated.ravel()]), [0.001, 0.999])
        at = np.linspace(first, last, _N_PLACES)
        low, high, own = _between(partial(_distribution, at), replicated, observed)
        ax.fill_between(at, low, high, **band)
        ax.plot(at, own, lw=1.6, **line)


def _shares(at, values):
    """Return the shares of values equal to each place."""
    return (values[:, None] == at).mean(0)


def _distribution(at, values):
    """Return the shares of values up to each place."""
    return np.searchsorted(np.sort(values), at, "right") / len(values)


def _between(summary, replicated, observed):
    """Return the ends of 90 % of the replicates' summaries, and the observed one."""
    low, high = np.quantile([summary(each) for each in replicated], [0.05, 0.95], axis=0)
    return low, high, summary(observed)


def _given(table, model):
    """Return a table's given columns, as `sample` takes them."""
    roles: dict[str, dict[int, None]] = {}
    for role, columns in model.columns_.given.items():
        argument = "covariates" if role in model.row_roles else role
        roles.setdefault(argument, {}).update(dict.fromkeys(column.place for column in columns))
    given = {role: safe_indexing(table, list(places), axis=1) for role, places in roles.items()}
    if LABELS in given:
        given[LABELS] = np.asarray(given[LABELS])[:, 0]
    return given
