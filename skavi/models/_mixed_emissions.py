"""What a row of columns of different kinds shows of its state: emissions of sets of columns."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from skavi._data.column_kinds import LEVELLED, Kind
from skavi.models._emissions import (
    BernoulliEmissions,
    BinomialEmissions,
    Emissions,
    Globals,
    NormalEmissions,
    PoissonEmissions,
)
from skavi.models._emissions_noisy import NegativeBinomialEmissions, StudentTEmissions
from skavi.models._level_emissions import LevelEmissions, OrderedLevelEmissions
from skavi.models._mixed_cells import mixed_cells

#: Emissions of columns of each kind, and names of their globals in a table of mixed columns.
_SETS: dict[str, tuple[type[Emissions], dict[str, str]]] = {
    "normal": (NormalEmissions, {"means": "means", "variances": "variances"}),
    "student_t": (
        StudentTEmissions,
        {
            "means": "centres",
            "variances": "squared_scales",
            "degrees_of_freedom": "degrees_of_freedom",
        },
    ),
    "bernoulli": (BernoulliEmissions, {"means": "probabilities"}),
    "poisson": (PoissonEmissions, {"means": "rates"}),
    "negative_binomial": (
        NegativeBinomialEmissions,
        {"means": "mean_counts", "dispersion": "dispersion"},
    ),
    "binomial": (BinomialEmissions, {"means": "success_rates"}),
}
#: Of a column of levels.
_LEVELS: dict[str, type[LevelEmissions]] = {
    "categorical": LevelEmissions,
    "ordinal": OrderedLevelEmissions,
}
#: Kinds of columns that states may have.
EMITTED = (*(name for name in _SETS if name != "binomial"), "ordinal", "categorical", "binomial")


@dataclass(frozen=True)
class _Part:
    """Columns with one kind of emissions.

    Attributes
    ----------
    emissions : Emissions
    names : Mapping of str to str
        What its globals are called.
    columns : tuple of int
        Their places among the explained ones.
    places : tuple of int
        Of what it reads of a row: its columns, then their trials.
    size : int
        How many free numbers its globals have.
    dim : str
        Name of the dimension along its columns: its kind of columns.
    """

    emissions: Emissions
    names: Mapping[str, str]
    columns: tuple[int, ...]
    places: tuple[int, ...]
    size: int
    dim: str

    def theta(self, theta: Globals) -> dict[str, Tensor]:
        """Return its globals, and the trials, by the names that its emissions have for them."""
        own = {inner: theta[name] for inner, name in self.names.items()}
        return own | {name: theta[name] for name in ("trials",) if name in theta}

    def rows(self, X: Tensor) -> Tensor:
        """Return what it reads of rows."""
        return X[:, list(self.places)]


class MixedEmissions(Emissions):
    """Cells of columns of different kinds, independent given the state.

    A row has its explained columns first, then the trials of each binomial one.

    Parameters
    ----------
    kinds : tuple of Kind
        Of the explained columns.
    n_states, mean_loc, mean_scale, variance_shape, variance_scale
        As `Emissions` has them; numbers of columns that have no such prior are not read.
    """

    def __init__(self, kinds: tuple[Kind, ...], *arguments):
        super().__init__(*arguments)
        self.kinds, self.table = kinds, mixed_cells(kinds)
        self.parts: list[_Part] = []
        for each in self.table.sets:
            name = each.kinds[0].likelihood
            if name in LEVELLED:
                pairs = zip(each.columns, each.kinds, strict=True)
                self.parts += [self._of_levels(column, kind) for column, kind in pairs]
            else:
                self.parts.append(self._of_columns(name, each.columns))

    @property
    def passes_a_cell(self) -> int:  # type: ignore[override]
        """What the dearest cell costs."""
        return max(part.emissions.passes_a_cell for part in self.parts)

    def _of_columns(self, name, columns):
        made, names = _SETS[name]
        n_own, n_explained = len(columns), len(self.kinds)
        given = [self.mean_loc, self.mean_scale, self.variance_shape, self.variance_scale]
        for i in (0, 1, 3):
            if given[i] is not None:
                given[i] = torch.as_tensor(given[i]).expand(n_explained)[list(columns)]
        trials = range(n_explained, n_explained + n_own) if name == "binomial" else ()
        emissions = made(self.n_states, *given)
        places, size = (*columns, *trials), emissions.n_numbers(n_own)
        return _Part(emissions, names, columns, places, size, name)

    def _of_levels(self, column, kind):
        made = _LEVELS[kind.likelihood](self.n_states, kind.n_levels, f"level{column}")
        names, size = {"levels": f"levels_{column}"}, self.n_states * (kind.n_levels - 1)
        return _Part(made, names, (column,), (column,), size, kind.likelihood)

    # --- the model ------------------------------------------------------------------------------

    def prior(self, n_features):
        return {
            part.names[name]: prior
            for part in self.parts
            for name, prior in part.emissions.prior(len(part.columns)).items()
        }

    @property
    def dims(self):
        found = {}
        for part in self.parts:
            for name, (first, *others) in part.emissions.dims.items():
                own = [part.dim if other == "feature" else other for other in others]
                found[part.names[name]] = (first, *own)
        return found

    def eta(self, theta, state):
        each = [part.emissions.eta(part.theta(theta), state) for part in self.parts]
        return torch.cat(each, 1)

    def distribution(self, theta, state):
        return RowsOfStates(self, theta, state)

    def mean(self, theta, state):
        """Return what the sets of columns show, as `MixedCells` orders it."""
        return self.moments(theta, state)[0]

    def moments(self, theta, state, X=None):
        theta = self._with_trials(theta, X)
        pairs = [part.emissions.moments(part.theta(theta), state) for part in self.parts]
        mean, variance = (torch.cat(each, 1) for each in zip(*pairs, strict=True))
        return mean, variance

    def log_likelihood(self, theta, state, X):
        theta = self._with_trials(theta, X)
        return sum(
            part.emissions.log_likelihood(part.theta(theta), state, part.rows(X))
            for part in self.parts
        )

    def _with_trials(self, theta, X):
        n = len(self.kinds)
        return theta if X is None or X.shape[1] == n else dict(theta) | {"trials": X[:, n:]}

    # --- closed forms ---------------------------------------------------------------------------

    def _split(self, mean, sd):
        sizes = [part.size for part in self.parts]
        return zip(self.parts, mean.split(sizes), sd.split(sizes), strict=True)

    def expected_log_likelihoods(self, mean, sd, X):
        return sum(
            part.emissions.expected_log_likelihoods(m, s, part.rows(X))
            for part, m, s in self._split(mean, sd)
        )

    def optimum(self, mean, sd, shares, X):
        found = [
            part.emissions.optimum(m, s, shares, part.rows(X))
            for part, m, s in self._split(mean, sd)
        ]
        return tuple(torch.cat(each) for each in zip(*found, strict=True))

    def permuted(self, numbers, order, n_features):
        each = [
            part.emissions.permuted(own, order, len(part.columns))
            for part, own, _ in self._split(numbers, numbers)
        ]
        return torch.cat(each)

    # --- from data ------------------------------------------------------------------------------

    def defaults(self, X, weights):
        n = len(self.kinds)
        found = {name: X.new_ones(n) for name in ("mean_loc", "mean_scale", "variance_scale")}
        for part in self.parts:
            for name, values in part.emissions.defaults(part.rows(X), weights).items():
                found[name][list(part.columns)] = values.to(X)
        return found

    def summary(self, X):
        return torch.cat([p.emissions.summary(X[:, list(p.columns)]) for p in self.parts], 1)

    def standardised(self, X, weights):
        return torch.cat([p.emissions.standardised(p.rows(X), weights) for p in self.parts], 1)

    def start(self, shares, X):
        return {
            part.names[name]: value
            for part in self.parts
            for name, value in part.emissions.start(shares, part.rows(X)).items()
        }


class RowsOfStates(Distribution):
    """Rows of columns of different kinds, given their states."""

    arg_constraints: dict = {}
    support = constraints.real_vector

    def __init__(self, emissions: MixedEmissions, theta: Globals, state: Tensor):
        self.emissions, self.theta, self.state = emissions, theta, state
        shape = torch.Size([len(emissions.kinds)])
        super().__init__(state.shape, shape, validate_args=False)

    def sample(self, sample_shape=()):
        if tuple(sample_shape):
            raise NotImplementedError("one draw at a time")
        parts = self.emissions.parts
        drawn = [p.emissions.distribution(p.theta(self.theta), self.state).sample() for p in parts]
        order = torch.tensor([column for part in parts for column in part.columns]).argsort()
        like = next(iter(self.theta.values()))
        return torch.cat([each.to(like) for each in drawn], 1)[:, order.to(like.device)]
