"""Cells with noise of their own: Student t, and negative binomial counts, for each state.

A state's numbers are a cell's eta and the logs of the likelihood's own globals, all of them normal
under q. Expected log densities take one dimension of nodes for eta and one for the noise, as those
of `FactorAnalysis` do (`Likelihood.expected_over_noise`).
"""

from collections.abc import Callable, Iterator, Mapping

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

#: Of a number that is known.
_ONE_NODE = hermite_rule(1)

Numbers = Mapping[str, Tensor]


class NoisyEmissions(Emissions):
    """States' cells whose likelihood has globals of its own."""

    #: What the states' globals call the likelihood's own ones, in its order.
    own_names: tuple[str, ...]

    # --- closed forms ---------------------------------------------------------------------------

    def expected_log_likelihoods(self, mean, sd, X):
        cells = self.cells(X)
        means, sds = (self._split(each, cells.values.shape[1]) for each in (mean, sd))
        return torch.cat([self._expected(means, sds, c).sum(-1) for c, _ in self._pieces(cells)])

    def optimum(self, mean, sd, shares, X):
        cells = self.cells(X)
        d = cells.values.shape[1]
        means, sds = (dict(self._split(each, d)) for each in (mean, sd))
        for name, prior in self.prior(d).items():
            rows = self._over_rows(name, means, sds, shares, cells)
            own = _differentiated(_of_prior(prior, shares))
            means[name], sds[name] = best_normals(_added(rows, own), means[name], sds[name])
        joined = [torch.cat([p.reshape(-1) for p in each.values()]) for each in (means, sds)]
        return joined[0], joined[1]

    def _over_rows(self, name, means, sds, shares, cells) -> Expectation:
        """Return what the rows say of a global, as an expectation over its own numbers alone."""

        def piece(some, share):
            def expected(mean, sd):
                each = self._expected(means | {name: mean}, sds | {name: sd}, some)
                found = torch.einsum("nk,nkd->kd", share, each)
                return found if mean.shape == found.shape else found.sum(-1, keepdim=True)

            return _differentiated(expected)

        def expectation(mean, sd):
            each = [piece(some, shares[where])(mean, sd) for some, where in self._pieces(cells)]
            value, slope, curvature = (total(sum(parts)) for parts in zip(*each, strict=True))
            return value, slope, curvature

        return expectation

    def _expected(self, means: Numbers, sds: Numbers, cells: Cells) -> Tensor:
        """Return the expected log densities of all cells in all states, (n_rows, n_states, d)."""
        x, own = cells.values.unsqueeze(1), self.own_names
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
        table = torch.tensordot(weights, table, 1).reshape(shape)
        if cells.observed is None:
            return table
        return torch.where(cells.observed.unsqueeze(1), table, torch.zeros_like(table))

    def _split(self, numbers: Tensor, d: int) -> Numbers:
        """Return numbers by global, each (n_states, d), or (n_states, 1) where columns share it."""
        sizes = {name: d if "feature" in dims else 1 for name, dims in self.dims.items()}
        parts = numbers.split([self.n_states * size for size in sizes.values()])
        return {
            name: part.reshape(self.n_states, size)
            for (name, size), part in zip(sizes.items(), parts, strict=True)
        }

    def _pieces(self, cells: Cells) -> Iterator[tuple[Cells, slice]]:
        """Yield cells of few rows, and where these are."""
        numbers = len(self.cell.rule[0]) * self.n_states * cells.values.shape[1]
        size = max(1, EVALUATED_NUMBERS // numbers)
        for first in range(0, len(cells.values), size):
            rows = slice(first, first + size)
            yield cells[rows], rows

    def permuted(self, numbers, order, n_features):
        parts = self._split(numbers, n_features).values()
        return torch.cat([part[order].reshape(-1) for part in parts])


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
