"""Models whose columns may be of different kinds: the arguments, and cells in their own kind."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from skavi._component import Component
from skavi._data.column_kinds import KINDS
from skavi._data.column_roles import are_columns, named_columns
from skavi._data.missing_cells import Cells
from skavi.models._column_sets import TriedCells
from skavi.models._given_columns import GivenColumns
from skavi.models._likelihood import Likelihood
from skavi.models._likelihoods import LIKELIHOODS
from skavi.models._mixed_cells import MixedCells, mixed_cells

#: Likelihoods of all columns that need levels or trials: as kinds of columns have them.
MORE_KINDS = ("ordinal", "categorical", "binomial")


class MixedColumns(GivenColumns, Component):
    """Cells of one likelihood, or of one for each column: `likelihood` is a name or a dict."""

    likelihood: Any = "normal"
    trials: Any = None
    #: One column, or one for each column of successes, may have any number of trials.
    row_roles = ("covariates", "trials")
    #: Names of the likelihoods that the model has.
    known_kinds: tuple[str, ...] = KINDS

    @property
    def cell(self) -> Likelihood:
        """The likelihood that the argument names."""
        if self.named_kinds() is None:
            return LIKELIHOODS[self.likelihood]
        if self.untold:
            raise ValueError(
                f"{type(self).__name__}(likelihood={self.likelihood!r}) learns the kinds of "
                "columns from a table: use the fitted estimator's model_."
            )
        return mixed_cells(self.columns_.kinds)

    @property
    def mixed(self) -> MixedCells | None:
        """The likelihood of columns of different kinds, where they have kinds."""
        return self.cell if self.named_kinds() is not None else None  # type: ignore[return-value]

    def named_kinds(self):
        if isinstance(self.likelihood, Mapping) or self.likelihood in MORE_KINDS:
            return self.likelihood
        return None

    def _are_counts(self) -> bool:
        one = isinstance(self.likelihood, str) and self.likelihood in LIKELIHOODS
        return one and self.cell.counts

    positive_only: Any = property(_are_counts)

    def check_roles(self):
        super().check_roles()
        known = list(self.known_kinds)
        if isinstance(self.likelihood, Mapping):
            fine = all(map(are_columns, self.likelihood.values()))
            fine = fine and set(self.likelihood) <= set(known) and bool(self.likelihood)
            need = f"a dict from some of {known} to names or places of columns, each once"
        else:
            fine = self.likelihood in known
            need = f"one of {known}, or a dict from them to columns"
        self._require("likelihood", fine, need)
        tried = self.likelihood == "binomial"
        if isinstance(self.likelihood, Mapping):
            tried = bool(named_columns(self.likelihood.get("binomial")))
        need = "the columns of trials" if tried else 'None: it is for "binomial" columns'
        self._require("trials", bool(named_columns(self.trials)) == tried, need)

    @property
    def _asked_by(self):
        shown = "{...}" if isinstance(self.likelihood, Mapping) else repr(self.likelihood)
        return f"{type(self).__name__}(likelihood={shown})"

    def _check_trials(self, X):
        """Raise unless successes are at most as many as trials, of which there are enough."""
        mixed = self.mixed
        if mixed is None or mixed.binomial is None:
            return
        trials, x = self.given_columns(X, "trials"), mixed.binomial.own_cells(self.cells_of(X))
        if trials.shape[1] not in (1, x.values.shape[1]):
            raise ValueError(
                f"{type(self).__name__}(trials=...) names {trials.shape[1]} columns, but needs "
                f"one, or one for each of the {x.values.shape[1]} binomial columns."
            )
        bad = (x.masked(x.values - trials) > 0).nonzero()
        if len(bad):
            raise ValueError(
                f"X has {len(bad)} cells with more successes than trials (first at row "
                f"{int(bad[0, 0])})."
            )

    def _require_cells(self, cells, weights):
        """Raise where a column has no observed cell: nothing is known of it."""
        counts = cells.over_rows(weights, torch.ones_like(weights))
        empty = (counts <= 0).nonzero()
        if len(empty):
            raise ValueError(
                f"X has {len(empty)} columns without a single observed cell (first column "
                f"{int(empty[0, 0])}): leave them out."
            )

    def cells_of(self, X: Tensor) -> Cells:
        """Return the observed cells of the columns that are explained."""
        cells = Cells.of(self.explained(X))
        if not self.names_columns("trials"):
            return cells
        return TriedCells(cells.values, cells.observed, self.given_columns(X, "trials"))

    def cells_from(self, mean, variance, filled):
        if self.mixed is None:
            return mean, variance
        return self.mixed.cells_of(mean, variance, filled)
