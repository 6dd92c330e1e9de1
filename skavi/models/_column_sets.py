"""Sets of columns that share a likelihood, in a table of mixed ones.

A set reads its columns as pieces: cells of a likelihood with one bend each, whose predictor is one
of the row's. Most columns are their own piece; an ordinal column has one at each cut point, of the
same predictor, and a categorical one has one at each level but the last, with a predictor each.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from skavi._data.column_kinds import Kind
from skavi._data.missing_cells import Cells, RepeatedCells
from skavi._data.process_ranks import total
from skavi.models._cut_points import CutPoints
from skavi.models._likelihood import Globals
from skavi.models._ordinal_cells import OrdinalCells


@dataclass(frozen=True)
class TriedCells(Cells):
    """Cells beside the numbers of trials of those that are successes.

    Attributes
    ----------
    trials : Tensor of shape (n_rows, n_binomial) or None
    """

    trials: Tensor | None = None

    def __getitem__(self, index):
        trials = None if self.trials is None else self.trials[index]
        observed = None if self.observed is None else self.observed[index]
        return TriedCells(self.values[index], observed, trials)


@dataclass(frozen=True)
class ColumnSet:
    """Columns of one likelihood that reads a column as it is.

    Attributes
    ----------
    likelihood : Likelihood
        Of its pieces.
    kinds : tuple of Kind
        Of its columns.
    columns : tuple of int
        Their places among the explained ones.
    etas : tuple of int
        Places of their predictors in a row's.
    """

    likelihood: Any
    kinds: tuple[Kind, ...]
    columns: tuple[int, ...]
    etas: tuple[int, ...]

    @property
    def predictors(self) -> list[int]:
        """Place of each piece's predictor in a row's."""
        return list(self.etas)

    def own_cells(self, cells: Cells) -> Cells:
        """Return the cells of its columns."""
        at = list(self.columns)
        return Cells(cells.values[:, at], None if cells.observed is None else cells.observed[:, at])

    def pieces(self, cells: Cells) -> Cells:
        """Return the pieces of a table's cells."""
        return self.own_cells(cells)

    def constant(self, cells: Cells) -> Tensor | float:
        """Return what the pieces' densities lack, a number a row that depends on nothing else."""
        return 0.0

    def invalid(self, x: Tensor) -> list[tuple[Tensor, str]]:
        """Return (cells, what they are) as `Likelihood.invalid`."""
        return self.likelihood.invalid(x)

    # --- from data ------------------------------------------------------------------------------

    def pseudo(self, cells: Cells) -> Cells:
        """Return cells on the scale of the predictors, roughly normal."""
        own = self.own_cells(cells)
        return Cells(self.likelihood.pseudo(own.values), own.observed)

    def moments_of(self, cells: Cells, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return predictors of rows at the columns' means, and the columns' scale on it."""
        mean, variance = self.own_cells(cells).mean_and_variance(weights)
        if not self.likelihood.has_variance:
            return self.likelihood.location(mean), torch.ones_like(mean)
        varies = variance > 1e-24 * (variance + mean**2)
        return mean, torch.where(varies, variance, torch.ones_like(mean)).sqrt()

    # --- predictions: of every column one number that is shown, of a category one each level ------

    def moments(self, eta: Tensor, theta: Globals, trials) -> tuple[Tensor, Tensor]:
        """Return means and variances of what is shown, (n_rows, n_shown), given the row's eta."""
        own = eta[:, list(self.etas)]
        return self.likelihood.mean(own, theta), self.likelihood.variance(own, theta)

    def sample(self, eta: Tensor, theta: Globals, trials) -> Tensor:
        """Draw cells, (n_rows, n_columns), from torch's current generator."""
        return self.likelihood.distribution(eta[:, list(self.etas)], theta).sample()

    @property
    def n_shown(self) -> int:
        """How many numbers `moments` has a row."""
        return len(self.columns)

    #: Whether cells are whole numbers.
    whole = False

    def cells_of(self, mean: Tensor, variance: Tensor, filled: bool) -> tuple[Tensor, Tensor]:
        """Return a number for each column, and its variance, from moments of what is shown.

        `filled`: cells as they might be observed; else expectations where there are any.
        """
        return (mean.round() if filled and self.whole else mean), variance


class WholeNumbers(ColumnSet):
    """Columns of counts, or of yes and no."""

    whole = True


class Successes(ColumnSet):
    """Columns of successes: a share of yes that counts as often as there are trials."""

    whole = True

    def _tried(self, cells):
        trials = getattr(cells, "trials", None)
        if trials is None:
            raise ValueError("likelihood='binomial' needs trials: name their columns in `trials`.")
        return self.own_cells(cells), trials.expand(-1, len(self.columns))

    def pieces(self, cells):
        own, trials = self._tried(cells)
        return RepeatedCells(own.values / trials.clamp_min(1), own.masked(trials))

    def constant(self, cells):
        own, n = self._tried(cells)
        chosen = (n + 1).lgamma() - (own.values + 1).lgamma() - (n - own.values + 1).lgamma()
        return own.masked(chosen).sum(-1)

    def invalid(self, x):
        return [(x < 0, "negative entries"), (x != x.round(), "entries that are not whole numbers")]

    def pseudo(self, cells):
        own, trials = self._tried(cells)
        return Cells(((own.values + 0.5) / (trials - own.values + 0.5)).log(), own.observed)

    def moments_of(self, cells, weights):
        own, trials = self._tried(cells)
        tried = total(weights @ own.masked(trials))
        share = (total(weights @ own.values) + 0.5) / (tried + 1)
        return share.logit(), torch.ones_like(share)

    def moments(self, eta, theta, trials):
        share = eta[:, list(self.etas)].sigmoid()
        return trials * share, trials * share * (1 - share)

    def sample(self, eta, theta, trials):
        share = eta[:, list(self.etas)].sigmoid()
        return torch.binomial(trials.expand_as(share).to(share), share)


class _Levels(ColumnSet):
    """Columns of a few levels."""

    whole = True

    @cached_property
    def n_levels(self) -> list[int]:
        """Of each column."""
        return [kind.n_levels for kind in self.kinds]

    def invalid(self, x):
        last = x.new_tensor(self.n_levels) - 1
        return [
            (x < 0, "negative entries"),
            (x != x.round(), "entries that are not whole numbers"),
            (x > last, "entries beyond the last level"),
        ]

    def _frequencies(self, cells, weights):
        """Return how often each level of each column is there, a list of tensors."""
        own = self.own_cells(cells)
        counts = []
        for column, n in enumerate(self.n_levels):
            there = own.values[:, column : column + 1] == torch.arange(n).to(own.values)
            if own.observed is not None:
                there = there & own.observed[:, column : column + 1]
            counts.append(total(weights @ there.to(weights)))
        return counts

    def probabilities(self, eta: Tensor, theta: Globals) -> list[Tensor]:
        """Return chances of the levels of each column, (n_rows, n_levels)."""
        raise NotImplementedError

    def sample(self, eta, theta, trials):
        chances = self.probabilities(eta, theta)
        return torch.cat([torch.multinomial(each, 1) for each in chances], 1).to(eta)


class OrderedLevels(_Levels):
    """Columns of ordered levels: one predictor, and a piece at each cut point."""

    @classmethod
    def of(cls, kinds, columns, etas) -> "OrderedLevels":
        """Return the set, with the likelihood of its columns."""
        places = CutPoints(tuple(kind.n_levels - 1 for kind in kinds))
        return cls(OrdinalCells(places), kinds, columns, etas)

    @property
    def predictors(self):
        return [self.etas[column] for column in self.likelihood.places.column.tolist()]

    def pieces(self, cells):
        return self.likelihood.pieces(self.own_cells(cells))

    def pseudo(self, cells):
        own = self.own_cells(cells)
        return Cells(4 * own.values / (own.values.new_tensor(self.n_levels) - 1) - 2, own.observed)

    def cut_points(self, cells, weights) -> Tensor:
        """Return logits of cumulative frequencies, the cut points of rows that are all alike."""
        found = []
        for counts in self._frequencies(cells, weights):
            share = ((counts + 0.5) / (counts + 0.5).sum()).cumsum(0)[:-1]
            found.append(share.logit())
        return torch.cat(found)

    def moments_of(self, cells, weights):
        middle = -self.cut_points(cells, weights)[self.likelihood.places.middle.tolist()]
        return middle, torch.ones_like(middle)

    def probabilities(self, eta, theta):
        middle, cuts = self.likelihood.places.middle.tolist(), theta["cutpoints"]
        each = cuts.split(list(self.likelihood.places.sizes))
        found = []
        for place, at, own in zip(self.etas, middle, each, strict=True):
            away = own - cuts[at] - eta[:, place : place + 1]
            cumulative = torch.nn.functional.pad(away.sigmoid(), (1, 0))
            found.append(torch.nn.functional.pad(cumulative, (0, 1), value=1.0).diff(dim=-1))
        return [each.clamp_min(0) for each in found]

    def moments(self, eta, theta, trials):
        chances = self.probabilities(eta, theta)
        levels = [torch.arange(n).to(eta) for n in self.n_levels]
        pairs = list(zip(chances, levels, strict=True))
        mean = torch.stack([each @ x for each, x in pairs], 1)
        square = torch.stack([each @ x**2 for each, x in pairs], 1)
        return mean, (square - mean**2).clamp_min(0)


class Categories(_Levels):
    """Columns of levels without an order: one after the other, is it this one?

    P(x = k) = s(eta_k) prod_{j < k} s(-eta_j), s the logistic function: a chain of yes and no, each
    asked as long as the answers are no (Tutz 1991; stick-breaking, as Linderman, Johnson & Adams
    2015 use it), so that the expectation under normal predictors is a sum of one-dimensional ones.
    """

    def pieces(self, cells):
        own, (column, level) = self.own_cells(cells), self._asked(cells.values)
        x = own.values[:, column]
        asked = x >= level
        if own.observed is not None:
            asked = asked & own.observed[:, column]
        return Cells(((x == level) & asked).to(x), asked)

    def _asked(self, like):
        """Return column and level of each piece."""
        pairs = [(c, k) for c, n in enumerate(self.n_levels) for k in range(n - 1)]
        columns, levels = zip(*pairs, strict=True)
        return list(columns), like.new_tensor(levels)

    def pseudo(self, cells):
        own, (column, level) = self.own_cells(cells), self._asked(cells.values)
        observed = None if own.observed is None else own.observed[:, column]
        said = (own.values[:, column] == level).to(own.values)
        return Cells(4 * said - 2, observed)

    def moments_of(self, cells, weights):
        found = []
        for counts in self._frequencies(cells, weights):
            left = counts.flip(0).cumsum(0).flip(0)[1:]  # those that say no
            found.append(((counts[:-1] + 0.5) / (left + 0.5)).log())
        location = torch.cat(found)
        return location, torch.ones_like(location)

    def probabilities(self, eta, theta):
        found, sizes = [], [n - 1 for n in self.n_levels]
        for own in eta[:, list(self.etas)].split(sizes, 1):
            no = torch.nn.functional.pad(torch.sigmoid(-own).cumprod(1), (1, 0), value=1.0)
            found.append(torch.nn.functional.pad(own.sigmoid(), (0, 1), value=1.0) * no)
        return found

    @property
    def n_shown(self):
        return sum(self.n_levels)

    def moments(self, eta, theta, trials):
        chance = torch.cat(self.probabilities(eta, theta), 1)
        return chance, chance * (1 - chance)

    def cells_of(self, mean, variance, filled):
        """The most probable level, and the variance of whether it is the right one."""
        best = [each.max(1) for each in mean.split(self.n_levels, 1)]
        chance = torch.stack([each.values for each in best], 1)
        return torch.stack([each.indices for each in best], 1).to(mean), chance * (1 - chance)
