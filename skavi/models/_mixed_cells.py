"""The likelihood of rows whose columns are of different kinds: a collection of likelihoods.

Its cells are those of the table, a column each; its predictors one for each column, or for each
level but the last of a categorical one. Sets of columns with one likelihood each read both as
pieces (`skavi.models._column_sets`), for which all that is known of one likelihood holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from skavi._data.column_kinds import KINDS, Kind
from skavi._data.missing_cells import Cells
from skavi.models._column_sets import (
    Categories,
    ColumnSet,
    OrderedLevels,
    Successes,
    WholeNumbers,
)
from skavi.models._cut_points import LOG_GAP_SCALE, PriorOfCutPoints
from skavi.models._likelihood import Globals, Likelihood
from skavi.models._likelihoods import (
    BentNormalCells,
    BentPoissonCells,
    BernoulliCells,
    NegativeBinomialCells,
    StudentTCells,
)
from skavi.models._noise_factors import NoiseFactors

#: How columns of each kind are read.
_SETS: dict[str, Callable[..., ColumnSet]] = {
    "normal": partial(ColumnSet, BentNormalCells()),
    "student_t": partial(ColumnSet, StudentTCells()),
    "bernoulli": partial(WholeNumbers, BernoulliCells()),
    "poisson": partial(WholeNumbers, BentPoissonCells()),
    "negative_binomial": partial(WholeNumbers, NegativeBinomialCells()),
    "ordinal": OrderedLevels.of,
    "categorical": partial(Categories, BernoulliCells()),
    "binomial": partial(Successes, BernoulliCells()),
}


@dataclass(frozen=True)
class Part:
    """The pieces of a set of columns, in rows at hand.

    Attributes
    ----------
    likelihood : Likelihood
    cells : Cells
        The pieces.
    predictors : list of int, or slice
        Places of their predictors in a row's.
    noise : Tensor of shape (n_pieces, h)
        Places, among theta's numbers, of their likelihood's own globals.
    constant : Tensor of shape (n_rows,), or float
        Of the rows' log density.
    """

    likelihood: Likelihood
    cells: Cells
    predictors: list[int] | slice
    noise: Tensor
    constant: Tensor | float = 0.0

    def noise_factors(self, mean: Tensor, sd: Tensor) -> NoiseFactors:
        """Return the factors of the pieces' noise, from those of all of theta."""
        return NoiseFactors(mean[self.noise], sd[self.noise], self.likelihood.n_noise_nodes)

    def over_noise(self, mean: Tensor, variance: Tensor, noise: NoiseFactors) -> Tensor:
        """Return `Likelihood.expected_rows_over_noise` for normal predictors of the rows."""
        mean, variance = mean[:, self.predictors], variance[:, self.predictors]
        rows = self.likelihood.expected_rows_over_noise(self.cells, mean, variance, noise)
        return rows + self.constant


class MixedCells(Likelihood):
    """Cells of columns of different kinds; eta has a number for each predictor.

    Parameters
    ----------
    kinds : tuple of Kind
        Of the columns.
    """

    has_noise = bends = True
    own_globals = ("noise_variance", "degrees_of_freedom", "dispersion", "cutpoints")

    def __init__(self, kinds: tuple[Kind, ...]):
        first = 0
        sets: dict[str, list[tuple[Kind, int, range]]] = {}
        for column, kind in enumerate(kinds):
            etas = range(first, first + kind.n_predictors)
            sets.setdefault(kind.likelihood, []).append((kind, column, etas))
            first += kind.n_predictors
        self.n_predictors, self.n_columns = first, len(kinds)
        self.sets: list[ColumnSet] = []
        for name in KINDS:
            if found := sets.get(name):
                own, columns, ranges = zip(*found, strict=True)
                flat = tuple(eta for each in ranges for eta in each)
                self.sets.append(_SETS[name](own, columns, flat))
        self.ordered = next((s for s in self.sets if isinstance(s, OrderedLevels)), None)
        self.binomial = next((s for s in self.sets if isinstance(s, Successes)), None)
        self._varied = [s for s in self.sets if s.likelihood.has_variance]
        self.has_variance = bool(self._varied)
        self.narrow = any(s.likelihood.narrow for s in self.sets)

    # --- places ---------------------------------------------------------------------------------

    @property
    def with_mean(self) -> list[int]:
        """Places of the predictors that have a mean; those of ordered levels have cut points."""
        moved = set(self.ordered.etas) if self.ordered else set()
        return [eta for eta in range(self.n_predictors) if eta not in moved]

    def _sizes(self):
        """How many numbers each own global has, in their order."""
        by_name = {s.likelihood: len(s.columns) for s in self.sets}
        counts = {type(likelihood): n for likelihood, n in by_name.items()}
        sizes = {
            "noise_variance": sum(len(s.columns) for s in self._varied),
            "degrees_of_freedom": int(StudentTCells in counts),
            "dispersion": counts.get(NegativeBinomialCells, 0),
            "cutpoints": len(self.ordered.predictors) if self.ordered else 0,
        }
        return {name: size for name, size in sizes.items() if size}

    def _first(self):
        """Place of the first number of each own global, before all other globals."""
        first, places = 0, {}
        for name, size in self._sizes().items():
            places[name], first = first, first + size
        return places

    def mean_places(self, first: int) -> list[int]:
        """Places of each predictor's mean or middle cut point, the means being from `first` on."""
        places = [0] * self.n_predictors
        for i, eta in enumerate(self.with_mean):
            places[eta] = first + i
        if self.ordered:
            cuts, middle = self._first()["cutpoints"], self.ordered.likelihood.places.middle
            for eta, place in zip(self.ordered.etas, middle.tolist(), strict=True):
                places[eta] = cuts + place
        return places

    def _noise_places(self, columns: ColumnSet) -> Tensor:
        """Places of the pieces' own globals, (n_pieces, h)."""
        first = self._first()
        if columns is self.ordered:
            return first["cutpoints"] + columns.likelihood.places.others
        n = len(columns.predictors)
        each = [
            torch.full((n,), first[name])
            if name == "degrees_of_freedom"
            else first[name] + self._slice(name, columns).start + torch.arange(n)
            for name in columns.likelihood.own_globals
        ]
        return torch.stack(each, -1) if each else torch.zeros(n, 0, dtype=torch.long)

    def _slice(self, name, columns):
        """Return which numbers of an own global a set has."""
        first = 0
        for other in self._varied if name == "noise_variance" else [columns]:
            if other is columns:
                return slice(first, first + len(columns.columns))
            first += len(other.columns)
        raise ValueError(name)

    def own(self, columns: ColumnSet, theta: Globals) -> dict[str, Tensor]:
        """Return the globals of a set's likelihood."""
        found = {}
        for name in columns.likelihood.own_globals:
            whole = name in ("cutpoints", "degrees_of_freedom")
            found[name] = theta[name] if whole else theta[name][self._slice(name, columns)]
        return found

    def parts(self, cells: Cells) -> list[Part]:
        """Return the pieces of a table's cells, set by set."""
        return [
            Part(
                each.likelihood,
                each.pieces(cells),
                each.predictors,
                self._noise_places(each).to(cells.values.device),
                each.constant(cells),
            )
            for each in self.sets
        ]

    # --- the likelihood -------------------------------------------------------------------------

    def global_prior(self, shape, variance):
        prior: dict[str, Distribution] = {}
        for each in self.sets:
            if each is self.ordered:
                continue
            own = each.likelihood.global_prior((len(each.columns),), variance)
            prior |= {name: own[name] for name in each.likelihood.own_globals}
        return {name: prior[name] for name in self._sizes() if name in prior}

    def start(self, variance):
        found: dict[str, list[Tensor]] = {}
        for each in self.sets:
            if each is self.ordered:
                continue
            own = each.likelihood.start(variance[list(each.etas)])
            for name in each.likelihood.own_globals:
                found.setdefault(name, []).append(own[name])
        return {n: torch.cat(v) if v[0].dim() else v[0] for n, v in found.items()}

    def cut_points_prior(self, loc: Tensor, scale: Tensor) -> dict[str, Distribution]:
        """Return the prior of "cutpoints", where there are any: given that of intercepts."""
        if self.ordered is None:
            return {}
        places, etas = self.ordered.likelihood.places, list(self.ordered.etas)
        free, width = loc.new_zeros(len(places.anchor)), loc.new_ones(len(places.anchor))
        middle = places.middle.to(loc.device)
        free = free.index_put((middle,), loc[etas])
        width = (LOG_GAP_SCALE * width).index_put((middle,), scale[etas])
        return {"cutpoints": PriorOfCutPoints(places, free, width)}

    def intercepts(self, theta: Globals) -> Tensor:
        """Return the predictors of a row whose latents are 0."""
        if self.ordered is None:
            return theta["mean"]
        middle = theta["cutpoints"][self.ordered.likelihood.places.middle.to(theta["mean"].device)]
        order = torch.tensor([*self.with_mean, *self.ordered.etas]).argsort()
        return torch.cat([theta["mean"], -middle])[order.to(middle.device)]

    def apart(self, intercepts: Tensor, cells: Cells, weights: Tensor) -> dict[str, Tensor]:
        """Return "mean", and cut points to start from, whose `intercepts` are these."""
        found = {"mean": intercepts[self.with_mean]}
        if self.ordered is not None:
            places, etas = self.ordered.likelihood.places, list(self.ordered.etas)
            cuts = self.ordered.cut_points(cells, weights)
            away = -intercepts[etas] - cuts[places.middle.to(cuts.device)]
            found["cutpoints"] = cuts + away[places.column.to(cuts.device)]
        return found

    def log_rows(self, cells, eta, theta):
        return sum(
            part.likelihood.log_rows(part.cells, eta[:, part.predictors], self.own(each, theta))
            + part.constant
            for each, part in zip(self.sets, self.parts(cells), strict=True)
        )

    def expected_log_rows(self, cells, mean, variance, theta):
        total = 0.0
        for each, part in zip(self.sets, self.parts(cells), strict=True):
            normal = mean[:, part.predictors], variance[:, part.predictors]
            own = self.own(each, theta)
            total = total + part.likelihood.expected_log_rows(part.cells, *normal, own)
            total = total + part.constant
        return total

    def kernel(self, x, eta, theta):
        raise NotImplementedError("cells of different kinds have no one kernel")

    def constant(self, x, theta):
        return self.kernel(x, x, theta)

    def require_valid(self, x, asked_by, first_column=0):
        for each in self.sets:
            for place, column in enumerate(each.columns):
                for bad, what in each.invalid(x[:, list(each.columns)]):
                    where = bad[:, place].nonzero()
                    if len(where):
                        raise ValueError(
                            f"{each.likelihood.refusal}: X has {len(where)} {what} (first at row "
                            f"{int(where[0, 0])}, column {first_column + column}), but {asked_by} "
                            f"needs {each.likelihood.needs} there, as "
                            f"{each.kinds[0].likelihood!r} has it."
                        )

    def require_reach(self, cells, weights, asked_by):
        for each in self.sets:
            asked = f"{asked_by} with {each.kinds[0].likelihood!r} columns"
            each.likelihood.require_reach(each.own_cells(cells), weights, asked)

    # --- from data ------------------------------------------------------------------------------

    def _gathered(self, found):
        """Return numbers of sets' predictors in the order of a row's, along the last dimension."""
        order = torch.tensor([eta for each in self.sets for eta in each.etas]).argsort()
        together = torch.cat(found, -1)
        return together[..., order.to(together.device)]

    def pseudo_cells(self, cells):
        found = [each.pseudo(cells) for each in self.sets]
        values = self._gathered([each.masked(each.values) for each in found])
        if cells.observed is None:
            return Cells(values, None)
        return Cells(values, self._gathered([each.observed for each in found]))

    def moments_of(self, cells: Cells, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predictors of a row at the columns' means, and their columns' scales."""
        pairs = [each.moments_of(cells, weights) for each in self.sets]
        location, scale = map(self._gathered, zip(*pairs, strict=True))
        return location, scale

    @property
    def with_variance(self) -> list[int]:
        """Places of the predictors of columns with a noise variance, in its order."""
        return [eta for each in self._varied for eta in each.etas]

    # --- predictions ----------------------------------------------------------------------------

    def distribution(self, eta, theta):
        return MixedRows(self, eta, theta)

    def _shown(self, eta, theta):
        trials = theta.get("trials")
        return [each.moments(eta, self.own(each, theta), trials) for each in self.sets]

    def mean(self, eta, theta):
        return torch.cat([mean for mean, _ in self._shown(eta, theta)], 1)

    def variance(self, eta, theta):
        return torch.cat([variance for _, variance in self._shown(eta, theta)], 1)

    def sample(self, eta: Tensor, theta: Globals) -> Tensor:
        """Draw rows, (n_rows, n_columns), from torch's current generator."""
        trials = theta.get("trials")
        drawn = [each.sample(eta, self.own(each, theta), trials) for each in self.sets]
        return self._in_order([each.to(eta) for each in drawn])

    def _in_order(self, found):
        """Return numbers of sets' columns in the order of the table's."""
        order = [column for each in self.sets for column in each.columns]
        return torch.cat(found, 1)[:, torch.tensor(order).argsort().to(found[0].device)]

    def cells_of(self, mean: Tensor, variance: Tensor, filled: bool) -> tuple[Tensor, Tensor]:
        """Return a number a column, and its variance, from means and variances of what is shown.

        `filled`: cells as they might be observed, whole numbers and levels; else expectations, and
        of a category the most probable level.
        """
        sizes = [each.n_shown for each in self.sets]
        split = zip(self.sets, mean.split(sizes, 1), variance.split(sizes, 1), strict=True)
        pairs = [each.cells_of(m, v, filled) for each, m, v in split]
        of_mean, of_variance = (self._in_order(list(each)) for each in zip(*pairs, strict=True))
        return of_mean, of_variance


class MixedRows(Distribution):
    """Rows of columns of different kinds, given their predictors."""

    arg_constraints: dict = {}
    support = constraints.real_vector

    def __init__(self, cells: MixedCells, eta: Tensor, theta: Globals):
        self.cells, self.eta, self.theta = cells, eta, theta
        shape = torch.Size([cells.n_columns])
        super().__init__(eta.shape[:-1], shape, validate_args=False)

    @property
    def mean(self):
        mean, variance = (f(self.eta, self.theta) for f in (self.cells.mean, self.cells.variance))
        return self.cells.cells_of(mean, variance, False)[0]

    def sample(self, sample_shape=()):
        if tuple(sample_shape):
            raise NotImplementedError("one draw at a time")
        return self.cells.sample(self.eta, self.theta)


@lru_cache(maxsize=32)
def mixed_cells(kinds: tuple[Kind, ...]) -> MixedCells:
    """Return the likelihood of columns of these kinds."""
    return MixedCells(kinds)
