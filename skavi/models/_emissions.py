"""What a row shows of its state: cells that are independent given it, with globals for each state.

One object for mixtures and Markov models: the prior of the states' globals, the log likelihood of
every row in every state, its expectation under q(theta), and the best factors of the globals given
the states' probabilities. One likelihood has "means", of shape (n_states, n_features), among them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    LogNormal,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
)

from skavi._data.missing_cells import Cells
from skavi._data.process_ranks import total
from skavi.distributions import PriorOfVariance
from skavi.families import LOG_2PI
from skavi.models._best_normals import best_normals, exponential, logistic, with_normal_prior
from skavi.models._binomial_cells import BinomialCells
from skavi.models._closed_forms import log_inverse_gamma
from skavi.models._likelihood import Likelihood
from skavi.models._likelihoods import LIKELIHOODS

Globals = Mapping[str, Tensor]
#: Prior sd of a state's log rates and logits.
_WIDE_ETA = 3.0
_BINOMIAL = BinomialCells()
#: Of a column's variance: least variance of a state at the start.
LEAST_SHARE = 1e-3


class Emissions(ABC):
    """p(x_n | s_n, theta) for `n_states` states.

    Parameters
    ----------
    n_states : int
    mean_loc, mean_scale : array of shape (n_features,) or None
        Prior mean and sd of the means on the scale of eta, as `Likelihood` has it.
    variance_shape : float
    variance_scale : array of shape (n_features,) or None
        Of the inverse gamma prior of variances.
    """

    #: The likelihood of a cell, by its name in `LIKELIHOODS`.
    likelihood: str
    #: Dimensions that `variance_scale` may have.
    scale_dims = 1
    #: What a cell costs, in passes of normal cells.
    passes_a_cell = 1

    def __init__(self, n_states, mean_loc, mean_scale, variance_shape=1.5, variance_scale=None):
        self.n_states = n_states
        self.mean_loc, self.mean_scale = mean_loc, mean_scale
        self.variance_shape, self.variance_scale = variance_shape, variance_scale

    @property
    def cell(self) -> Likelihood:
        """The likelihood of a cell."""
        return LIKELIHOODS[self.likelihood]

    # --- the model ------------------------------------------------------------------------------

    @abstractmethod
    def prior(self, n_features: int) -> dict[str, Distribution]:
        """Return the priors of the states' globals, "means" first where there are any."""

    @property
    def dims(self) -> dict[str, tuple[str, ...]]:
        """Names of the globals' dimensions; the first one is called "component"."""
        return {"means": ("component", "feature")}

    def n_numbers(self, n_features: int) -> int:
        """Count the numbers of its globals, a cell of each column being one."""
        columns = (n_features if "feature" in dims else 1 for dims in self.dims.values())
        return self.n_states * sum(columns)

    @abstractmethod
    def eta(self, theta: Globals, state: Tensor) -> Tensor:
        """Return the cells' eta of rows in given states, shape (n_rows, n_features)."""

    def own(self, theta: Globals, state: Tensor) -> dict[str, Tensor]:
        """Return the likelihood's own globals for rows in given states."""
        return {}

    def distribution(self, theta: Globals, state: Tensor) -> Distribution:
        """Return the distribution of rows in given states, (n_rows,) of whole numbers."""
        return self.cell.distribution(self.eta(theta, state), self.own(theta, state))

    def mean(self, theta: Globals, state: Tensor) -> Tensor:
        """Return E[x_n | s_n, theta], shape (n_rows, n_features)."""
        return self.cell.mean(self.eta(theta, state), self.own(theta, state))

    def moments(
        self, theta: Globals, state: Tensor, X: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return means and variances of cells in given states, of rows X where there are any."""
        eta, own = self.eta(theta, state), self.own(theta, state)
        return self.cell.mean(eta, own), self.cell.variance(eta, own)

    def cells(self, X: Tensor) -> Cells:
        """Return the observed cells of rows, as a model gives them."""
        return Cells.of(X)

    def log_likelihood(self, theta: Globals, state: Tensor, X: Tensor) -> Tensor:
        """Return log p(x_n | s_n, theta) of the observed cells, shape (n_rows,)."""
        cells, own = self.cells(X), self.own(theta, state)
        density = self.cell.kernel(cells.values, self.eta(theta, state), own)
        return cells.masked(density + self.cell.constant(cells.values, own)).sum(-1)

    # --- closed forms ---------------------------------------------------------------------------
    # `mean` and `sd` are those of the normal q of all numbers of `prior`, in its order, without
    # constraints.

    @abstractmethod
    def expected_log_likelihoods(self, mean: Tensor, sd: Tensor, X: Tensor) -> Tensor:
        """Return E log p(x_n | s, theta) of every row in every state, (n_rows, n_states)."""

    #: Whether `optimum` is there.
    has_optimum = True

    def optimum(self, mean: Tensor, sd: Tensor, shares: Tensor, X: Tensor):
        """Return means and sds after a sweep over the globals' factors: the ELBO does not fall.

        Parameters
        ----------
        mean, sd : Tensor
            Those before.
        shares : Tensor of shape (n_rows, n_states)
            The states' probabilities times the rows' weights.
        X : Tensor of shape (n_rows, n_features)
        """
        raise NotImplementedError

    @abstractmethod
    def permuted(self, numbers: Tensor, order: Tensor, n_features: int) -> Tensor:
        """Return means or sds of q with the states in another order."""

    # --- from data ------------------------------------------------------------------------------

    def defaults(self, X: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Return the prior's numbers for weighted rows."""
        mean = self._mean(X, weights)
        wide = torch.full_like(mean, _WIDE_ETA)
        return {"mean_loc": self.cell.location(mean), "mean_scale": wide}

    def summary(self, X: Tensor) -> Tensor:
        """Return what inference functions read of explained columns, NaN where a cell is missing.

        Log likelihoods are to be linear in it wherever they can be.
        """
        return X

    def standardised(self, X: Tensor, weights: Tensor) -> Tensor:
        """Return coordinates of rows in which k-means looks for clusters.

        A column has mean 0 and variance 1; its missing cells are at the mean.
        """
        return _standardised(self.cells(X), weights)

    @abstractmethod
    def start(self, shares: Tensor, X: Tensor) -> dict[str, Tensor]:
        """Return the states' globals to start from, given `shares`."""

    def _mean(self, X, weights):
        """Return the columns' means."""
        return self.cells(X).mean_and_variance(weights)[0]

    def _counts(self, shares, X):
        """Return how often each column was seen in every state, (n_states, n_features or 1)."""
        cells = self.cells(X)
        if cells.observed is None:
            return total(shares.sum(0)).unsqueeze(-1)
        return total(shares.mT @ cells.observed.to(shares))

    def _centres(self, shares, X):
        """Return the states' means and counts, each with one row at the columns' means."""
        count, mean = self._counts(shares, X) + 1, self._mean(X, shares.sum(1))
        return (total(shares.mT @ self.cells(X).values) + mean) / count, count

    def _eta_prior(self, n_features) -> tuple[Tensor, Tensor]:
        ones = torch.ones(self.n_states, n_features)
        loc, scale = (torch.as_tensor(v) for v in (self.mean_loc, self.mean_scale))
        return ones * loc, ones * scale


class NormalEmissions(Emissions):
    """Normal cells, with a mean and a variance for each state and column."""

    likelihood = "normal"

    def prior(self, n_features):
        loc, scale = self._eta_prior(n_features)
        shape, rate = (torch.as_tensor(v) for v in (self.variance_shape, self.variance_scale))
        variances = PriorOfVariance(shape * torch.ones_like(loc), rate * torch.ones_like(loc))
        return {"means": Normal(loc, scale), "variances": variances}

    @property
    def dims(self):
        return super().dims | {"variances": ("component", "feature")}

    def eta(self, theta, state):
        return theta["means"][state]

    def own(self, theta, state):
        return {"noise_variance": theta["variances"][state]}

    def expected_log_likelihoods(self, mean, sd, X):
        cells, centre = Cells.of(X), torch.as_tensor(self.mean_loc).to(X)
        eta, eta_variance, log_variance, precision = self._moments(mean, sd, X.shape[1])
        x, eta = cells.masked(cells.values - centre), eta - centre
        squares = x**2 @ precision.mT - 2 * x @ (precision * eta).mT
        constant = precision * (eta**2 + eta_variance) + log_variance + LOG_2PI
        return -0.5 * (squares + cells.over_columns(constant.mT))

    def optimum(self, mean, sd, shares, X):
        d, cells, centre = X.shape[1], Cells.of(X), torch.as_tensor(self.mean_loc).to(X)
        *_, precision = self._moments(mean, sd, d)
        x, count = cells.masked(cells.values - centre), self._counts(shares, X)
        first, second = total(shares.mT @ x), total(shares.mT @ x**2)
        own = torch.as_tensor(self.mean_scale).to(X) ** -2 + precision * count
        eta, variance = precision * first / own, 1 / own
        squares = second - 2 * first * eta + count * (eta**2 + variance)
        rate = torch.as_tensor(self.variance_scale).to(X) + 0.5 * squares.clamp_min(0)
        log_mean, log_variance = log_inverse_gamma(self.variance_shape + 0.5 * count, rate)
        means = [(eta + centre).reshape(-1), log_mean.reshape(-1)]
        variances = [variance.reshape(-1), log_variance.expand_as(eta).reshape(-1)]
        return torch.cat(means), torch.cat(variances).sqrt()

    def permuted(self, numbers, order, n_features):
        return numbers.reshape(2, self.n_states, n_features)[:, order].reshape(-1)

    def _moments(self, mean, sd, d):
        eta, log_variance = mean.reshape(2, self.n_states, d)
        eta_sd, log_sd = sd.reshape(2, self.n_states, d)
        return eta, eta_sd**2, log_variance, (0.5 * log_sd**2 - log_variance).exp()

    def defaults(self, X, weights):
        """States lie as far apart as rows, and share the volume in which these lie.

        Source of the scale, and of a shape of 1.5: Fraley & Raftery (2007), "Bayesian
        regularization for normal mixture estimation and model-based clustering", section 3.
        """
        mean, variance = self._column_moments(X, weights)
        scale = self._share_of_spread(X) * variance
        return {"mean_loc": mean, "mean_scale": variance.sqrt(), "variance_scale": scale}

    def _column_moments(self, X, weights):
        mean, variance = self.cells(X).mean_and_variance(weights)
        return mean, torch.where(variance > 1e-24 * (variance + mean**2), variance, 1.0)

    def _share_of_spread(self, X):
        return 0.5 * self.n_states ** (-2 / X.shape[1])

    def start(self, shares, X):
        centre, count = self._centres(shares, X)
        cells = self.cells(X)
        variance = cells.mean_and_variance(shares.sum(1))[1]
        squares = [cells.masked(cells.values - each) ** 2 for each in centre]
        own = total(torch.stack([s @ q for s, q in zip(shares.mT, squares, strict=True)]))
        spread = (own + LEAST_SHARE * variance) / count
        return {"means": centre, "variances": spread.clamp_min(1e-12)}


class _OneNumber(Emissions):
    """Cells with one number each a state and column, eta: log rate or logit."""

    def known(self, X: Tensor) -> dict[str, Tensor]:
        """Return what the likelihood needs to know of rows."""
        return {}

    def expected_log_likelihoods(self, mean, sd, X):
        cells, known = self.cells(X), self.known(X)
        x, shape = cells.values, (self.n_states, cells.values.shape[1])
        rows = [
            self.cell.expected_log_rows(cells, eta.expand_as(x), (sd**2).expand_as(x), known)
            for eta, sd in zip(mean.reshape(shape), sd.reshape(shape), strict=True)
        ]
        return torch.stack(rows, -1)

    def optimum(self, mean, sd, shares, X):
        cells = self.cells(X)
        shape = self.n_states, cells.values.shape[1]
        first, count = total(shares.mT @ cells.values), self._counts(shares, X)
        loc, scale = (torch.as_tensor(v).to(X) for v in (self.mean_loc, self.mean_scale))
        expectation = with_normal_prior(self._expectation(first, count), loc, scale)
        best = best_normals(expectation, mean.reshape(shape), sd.reshape(shape))
        return best[0].reshape(-1), best[1].reshape(-1)

    def permuted(self, numbers, order, n_features):
        return numbers.reshape(self.n_states, n_features)[order].reshape(-1)

    @abstractmethod
    def _expectation(self, first, count):
        """Return the expectation of what `count` cells of sum `first` say of eta."""

    def start(self, shares, X):
        (centre, _), mean = self._centres(shares, X), self._mean(X, shares.sum(1))
        return {"means": torch.maximum(centre, 0.01 * mean.clamp_min(1e-3))}


class PoissonEmissions(_OneNumber):
    """Poisson cells, with a rate for each state and column."""

    likelihood = "poisson"

    def prior(self, n_features):
        return {"means": LogNormal(*self._eta_prior(n_features))}

    def eta(self, theta, state):
        return theta["means"][state].log()

    def _expectation(self, first, count):
        return exponential(first, count.expand_as(first))


class BernoulliEmissions(_OneNumber):
    """Cells of 0 and 1, with a probability of 1 for each state and column."""

    likelihood = "bernoulli"

    def prior(self, n_features):
        logit = Normal(*self._eta_prior(n_features))
        return {"means": TransformedDistribution(logit, [SigmoidTransform()])}

    def eta(self, theta, state):
        return theta["means"][state].logit()

    def _expectation(self, first, count):
        return logistic(first, count - first, n_nodes=len(self.cell.rule[0]))

    def start(self, shares, X):
        return {"means": super().start(shares, X)["means"].clamp_max(0.99)}


class BinomialEmissions(BernoulliEmissions):
    """Successes, with a probability for each state and column; rows have trials beside them.

    A row has its successes first, then as many numbers of trials. A draw of theta that predicts
    cells has them as "trials".
    """

    @property
    def cell(self):
        return _BINOMIAL

    def cells(self, X):
        return Cells.of(X[:, : X.shape[1] // 2])

    def known(self, X):
        return {"trials": X[:, X.shape[1] // 2 :]}

    def own(self, theta, state):
        return {"trials": theta["trials"]}

    def _counts(self, shares, X):
        return total(shares.mT @ self.cells(X).masked(self.known(X)["trials"]))

    def _mean(self, X, weights):
        cells, tried = self.cells(X), self.known(X)["trials"]
        return total(weights @ cells.values) / total(weights @ cells.masked(tried)).clamp_min(1)

    def standardised(self, X, weights):
        cells, tried = self.cells(X), self.known(X)["trials"].clamp_min(1)
        return _standardised(Cells(cells.values / tried, cells.observed), weights)


def _standardised(cells, weights):
    mean, variance = cells.mean_and_variance(weights)
    return cells.masked((cells.values - mean) / variance.clamp_min(1e-300).sqrt())
