"""A column of a few levels, with a probability of each level for each state."""

import torch
from torch import Tensor
from torch.distributions import Categorical, Dirichlet
from torch.nn import functional as F

from skavi._data.process_ranks import total
from skavi.models._best_normals import best_weights
from skavi.models._emissions import Emissions
from skavi.models._global_space import expected_log_weights


class LevelEmissions(Emissions):
    """One column of levels 0, ..., K - 1 without an order; the prior is Dirichlet(1, ..., 1).

    Its one global is "levels", of shape (n_states, n_levels). What predictions show of a row are
    the chances of its levels.

    Parameters
    ----------
    n_states, n_levels : int
    dim : str
        Name of the dimension along levels.
    """

    def __init__(self, n_states, n_levels, dim):
        super().__init__(n_states, None, None)
        self.n_levels, self.dim = n_levels, dim

    # --- the model ------------------------------------------------------------------------------

    def prior(self, n_features):
        return {"levels": Dirichlet(torch.ones(self.n_states, self.n_levels))}

    @property
    def dims(self):
        return {"levels": ("component", self.dim)}

    def eta(self, theta, state):
        return theta["levels"][state].log()

    def distribution(self, theta, state):
        return Categorical(theta["levels"][state].unsqueeze(1), validate_args=False)

    def mean(self, theta, state):
        return self.moments(theta, state)[0]

    def moments(self, theta, state, X=None):
        chances = theta["levels"][state]
        return chances, chances * (1 - chances)

    def log_likelihood(self, theta, state, X):
        eta = self.eta(theta, state)
        return torch.where(self._is_at(X), eta, torch.zeros_like(eta)).sum(-1)

    def _is_at(self, X):
        """Say of each level whether a row has it: of a missing cell no one, (n_rows, n_levels)."""
        return X[:, :1] == torch.arange(self.n_levels).to(X)

    # --- closed forms ---------------------------------------------------------------------------

    def expected_log_likelihoods(self, mean, sd, X):
        shape = self.n_states, self.n_levels - 1
        logs = expected_log_weights(mean.reshape(shape), sd.reshape(shape))
        return self._is_at(X).to(logs) @ logs.mT

    def optimum(self, mean, sd, shares, X):
        shape = self.n_states, self.n_levels - 1
        counts = total(shares.mT @ self._is_at(X).to(shares)) + 1  # the prior's
        best = best_weights(counts, mean.reshape(shape), sd.reshape(shape))
        return best[0].reshape(-1), best[1].reshape(-1)

    def permuted(self, numbers, order, n_features):
        return numbers.reshape(self.n_states, -1)[order].reshape(-1)

    # --- from data ------------------------------------------------------------------------------

    def defaults(self, X, weights):
        """Numbers that are not read: a level has no location."""
        return {"mean_loc": X.new_zeros(1), "mean_scale": X.new_ones(1)}

    def summary(self, X):
        """Return whether a row is at each level but the first."""
        return torch.where(X.isnan(), X, self._is_at(X).to(X))[:, 1:]

    def standardised(self, X, weights):
        """A coordinate a level; those of a column have variance 1 together."""
        at, seen = self._is_at(X).to(X), ~X[:, :1].isnan()
        share = total(weights @ at) / total(weights @ seen.to(X)).clamp_min(1e-300)
        spread = (share * (1 - share)).sum().clamp_min(1e-300).sqrt()
        return torch.where(seen, (at - share) / spread, torch.zeros_like(at))

    def start(self, shares, X):
        counts = total(shares.mT @ self._is_at(X).to(shares)) + 1
        return {"levels": F.normalize(counts, 1.0, -1)}


class OrderedLevelEmissions(LevelEmissions):
    """The same for ordered levels: predictions show the number of the level to expect."""

    def moments(self, theta, state, X=None):
        chances = theta["levels"][state]
        levels = torch.arange(self.n_levels).to(chances)
        mean: Tensor = (chances @ levels).unsqueeze(-1)
        return mean, (chances * (levels - mean) ** 2).sum(-1, keepdim=True)
