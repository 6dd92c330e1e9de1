"""Cells with noise of their own: Student t, and negative binomial counts, for each state.

A state's numbers are a cell's eta and the logs of the likelihood's own globals, all of them normal
under q. Expected log densities take one dimension of nodes for eta and one for the noise, as those
of `FactorAnalysis` do (`Likelihood.expected_over_noise`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Exponential, Gamma

from skavi._curvature import gradient_of
from skavi._data.blockwise import EVALUATED_NUMBERS
from skavi._data.missing_cells import Cells
from skavi._data.process_ranks import stacked, total
from skavi._numerics.quadrature import hermite_rule
from skavi.distributions import known_expectation
from skavi.models._best_normals import Expectation, best_normals
from skavi.models._emissions import Emissions, NormalEmissions, PoissonEmissions
from skavi.models._noise_factors import NoiseFactors

#: Sds, by quartiles, from a column's median: further cells say nothing of where clusters are.
_TAIL = 3.0
#: Quartiles of a standard normal are this far apart.
_BETWEEN_QUARTILES = 1.349
#: Of a negative binomial column at the start: least and largest dispersion. Not measured.
_DISPERSIONS = 0.05, 3.0

#: Newton steps a number and sweep: two leave about as many sweeps.
_STEPS = 1
#: Of a number that is known.
_ONE_NODE = hermite_rule(1)

Numbers = Mapping[str, Tensor]


class NoisyEmissions(Emissions):
    """States' cells whose likelihood has globals of its own."""

    #: What the states' globals call the likelihood's own ones, in its order.
    own_names: tuple[str, ...]

    @property
    def passes_a_cell(self) -> int:  # type: ignore[override]
        """What a cell costs: an evaluation at each pair of nodes."""
        return len(self.cell.rule[0]) * self.cell.n_noise_nodes

    # --- closed forms ---------------------------------------------------------------------------

    def expected_log_likelihoods(self, mean, sd, X):
        cells = _Distinct.of(self.cells(X))
        means, sds = (self._split(each, X.shape[1]) for each in (mean, sd))
        tables = [self._expected(means, sds, cells.values[some]) for some in self._pieces(cells)]
        return cells.over_columns(torch.cat(tables))

    def optimum(self, mean, sd, shares, X):
        cells = _Distinct.of(self.cells(X))
        counts = cells.counted(shares)
        means, sds = (dict(self._split(each, X.shape[1])) for each in (mean, sd))
        for name, prior in self.prior(X.shape[1]).items():
            rows = self._over_cells(name, means, sds, counts, cells)
            own = _differentiated(_of_prior(prior, shares))
            means[name], sds[name] = best_normals(_added(rows, own), means[name], sds[name], _STEPS)
        joined = [torch.cat([p.reshape(-1) for p in each.values()]) for each in (means, sds)]
        return joined[0], joined[1]

    def _over_cells(self, name, means, sds, counts, cells) -> Expectation:
        """Return what the cells say of a global, as an expectation over its own numbers alone."""

        def piece(some):
            def expected(mean, sd):
                own = means | {name: mean}, sds | {name: sd}
                found = (counts[some] * self._expected(*own, cells.values[some])).sum(0)
                return found if mean.shape == found.shape else found.sum(-1, keepdim=True)

            return _differentiated(expected)

        def expectation(mean, sd):
            each = [piece(some)(mean, sd) for some in self._pieces(cells)]
            value, slope, curvature = (total(sum(parts)) for parts in zip(*each, strict=True))
            return value, slope, curvature

        return expectation

    def _expected(self, means: Numbers, sds: Numbers, values: Tensor) -> Tensor:
        """Return the expected log densities of cells (m, d) in all states, (m, n_states, d)."""
        x, own = values.unsqueeze(1), self.own_names
        shape = len(x), self.n_states, x.shape[-1]
        log, spread = (
            torch.stack([each[name].expand(shape[1:]).reshape(-1) for name in own], -1)
            for each in (means, sds)
        )
        noise = NoiseFactors(log, spread, self.cell.n_noise_nodes)
        nodes, weights = (torch.as_tensor(part).to(x) for part in self.cell.rule)
        centre, sd = means["means"].reshape(-1), sds["means"].reshape(-1)
        eta = (centre + nodes.unsqueeze(-1) * sd).unsqueeze(1)  # all nodes at once
        at_node = self.cell.with_rule(_ONE_NODE)
        table = at_node.expected_over_noise(
            x.expand(shape).flatten(1), eta, torch.zeros_like(eta), noise
        )
        return torch.tensordot(weights, table, 1).reshape(shape)

    def _split(self, numbers: Tensor, d: int) -> Numbers:
        """Return numbers by global, each (n_states, d), or (n_states, 1) where columns share it."""
        sizes = {name: d if "feature" in dims else 1 for name, dims in self.dims.items()}
        parts = numbers.split([self.n_states * size for size in sizes.values()])
        return {
            name: part.reshape(self.n_states, size)
            for (name, size), part in zip(sizes.items(), parts, strict=True)
        }

    def _pieces(self, cells: "_Distinct") -> list[slice]:
        """Return where pieces of few cells are."""
        numbers = len(self.cell.rule[0]) * self.n_states * cells.values.shape[1]
        size = max(1, EVALUATED_NUMBERS // numbers)
        return [slice(first, first + size) for first in range(0, len(cells.values), size)]

    def permuted(self, numbers, order, n_features):
        parts = self._split(numbers, n_features).values()
        return torch.cat([part[order].reshape(-1) for part in parts])


@dataclass(frozen=True)
class _Distinct:
    """The distinct values of every column: counts repeat, and each is evaluated once.

    Attributes
    ----------
    values : Tensor of shape (m, n_columns)
        Below a column's own values its last one is repeated.
    place : Tensor of int of shape (n_rows, n_columns)
        Of every cell among all values.
    observed : Tensor of bool of shape (n_rows, n_columns), or None
    """

    values: Tensor
    place: Tensor
    observed: Tensor | None

    @classmethod
    def of(cls, cells: Cells) -> "_Distinct":
        """Return those of the observed cells, and 0 for missing ones."""
        d = cells.values.shape[1]
        found = [torch.unique(column, return_inverse=True) for column in cells.values.mT]
        m = max(len(values) for values, _ in found)
        padded = [torch.cat([v, v[-1:].expand(m - len(v))]) for v, _ in found]
        place = torch.stack([index * d + i for i, (_, index) in enumerate(found)], 1)
        return cls(torch.stack(padded, 1), place, cells.observed)

    def counted(self, shares: Tensor) -> Tensor:
        """Add up rows' shares (n_rows, n_states) by value, (m, n_states, n_columns)."""
        k = shares.shape[1]
        each = self._seen(shares.unsqueeze(1).expand(*self.place.shape, -1))
        index = self.place.unsqueeze(-1) * k + torch.arange(k, device=shares.device)
        sums = shares.new_zeros(self.values.numel() * k)
        sums = sums.index_add(0, index.reshape(-1), each.reshape(-1))
        return sums.reshape(*self.values.shape, k).mT

    def over_columns(self, table: Tensor) -> Tensor:
        """Sum a table of values (m, n_states, n_columns) over rows' cells, (n_rows, n_states)."""
        return self._seen(table.mT.flatten(0, 1)[self.place]).sum(1)

    def _seen(self, each):
        """Return numbers of cells (n_rows, n_columns, n_states), zeros for missing ones."""
        return each if self.observed is None else each * self.observed.unsqueeze(-1)


def _of_prior(prior, like) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the expectation of a prior's log density, in the numbers' own shape."""
    known, shape = known_expectation(prior, like), prior.batch_shape
    assert known is not None
    return lambda mean, sd: known(mean.reshape(shape), sd.reshape(shape)).reshape(mean.shape)


def _differentiated(expected: Callable[[Tensor, Tensor], Tensor]) -> Expectation:
    """Return values, one a number, with slopes and curvatures: E f'' is the sd's slope over it."""

    def expectation(mean, sd):
        with torch.enable_grad():
            at = [each.detach().requires_grad_(True) for each in (mean, sd)]
            value = expected(*at)
            slope, by_sd = gradient_of(value.sum(), at)
        return value.detach(), slope, by_sd / sd

    return expectation


def _added(one: Expectation, other: Expectation) -> Expectation:
    """Return the sum of two expectations."""

    def both(mean, sd):
        value, slope, curvature = map(sum, zip(one(mean, sd), other(mean, sd), strict=True))
        return value, slope, curvature

    return both


class NegativeBinomialEmissions(NoisyEmissions, PoissonEmissions):
    """Counts with a mean and a dispersion for each state and column."""

    likelihood = "negative_binomial"
    own_names = ("dispersion",)

    def prior(self, n_features):
        ones = torch.ones(self.n_states, n_features, dtype=torch.float64)
        return super().prior(n_features) | {"dispersion": Exponential(ones)}

    @property
    def dims(self):
        return super().dims | {"dispersion": ("component", "feature")}

    def own(self, theta, state):
        return {"dispersion": theta["dispersion"][state]}

    def start(self, shares, X):
        """Dispersions are those of the states' means and variances."""
        means, cells = super().start(shares, X)["means"], self.cells(X)
        squares = [cells.masked(cells.values - each) ** 2 for each in means]
        own = total(torch.stack([s @ q for s, q in zip(shares.mT, squares, strict=True)]))
        variance = own / (self._counts(shares, X) + 1)
        dispersion = ((variance - means) / means**2).clamp(*_DISPERSIONS)
        return {"means": means, "dispersion": dispersion}


class StudentTEmissions(NoisyEmissions, NormalEmissions):
    """Cells with a centre and a squared scale for each state and column, and tails of a state.

    Priors and starts are those of normal cells that are drawn in to where most cells are.
    """

    likelihood = "student_t"
    own_names = ("degrees_of_freedom", "variances")

    def prior(self, n_features):
        shape = torch.full((self.n_states,), 2.0, dtype=torch.float64)
        return super().prior(n_features) | {"degrees_of_freedom": Gamma(shape, 0.05 * shape)}

    @property
    def dims(self):
        return super().dims | {"degrees_of_freedom": ("component",)}

    def own(self, theta, state):
        degrees = theta["degrees_of_freedom"][state].unsqueeze(-1)
        return {"degrees_of_freedom": degrees, "noise_variance": theta["variances"][state]}

    def defaults(self, X, weights):
        return super().defaults(self._drawn_in(X, weights), weights)

    def standardised(self, X, weights):
        return super().standardised(self._drawn_in(X, weights), weights)

    def start(self, shares, X):
        normal = super().start(shares, self._drawn_in(X, shares.sum(1)))
        own = self.cell.start(normal["variances"])
        degrees = own["degrees_of_freedom"].expand(self.n_states)
        return normal | {"variances": own["noise_variance"], "degrees_of_freedom": degrees}

    def _drawn_in(self, X, weights):
        """Return rows whose far cells are at most so many sds from their column's median."""
        low, middle, high = _quartiles(stacked(X), stacked(weights))
        reach = _TAIL / _BETWEEN_QUARTILES * (high - low)
        reach = torch.where(reach > 0, reach, torch.inf)
        return torch.maximum(torch.minimum(X, middle + reach), middle - reach)


def _quartiles(X: Tensor, weights: Tensor) -> list[Tensor]:
    """Return the columns' weighted quartiles, of the cells that are there."""
    values, order = torch.nan_to_num(X, nan=torch.inf).sort(0)
    weight = torch.where(X.isnan(), 0.0, weights[:, None]).gather(0, order).cumsum(0)
    found = []
    for share in (0.25, 0.5, 0.75):
        place = (weight < share * weight[-1]).sum(0, keepdim=True)
        found.append(values.gather(0, place.clamp_max(len(X) - 1))[0])
    return found
