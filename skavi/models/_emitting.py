"""What mixtures and hidden Markov models share: arguments, starts, and what a row shows of it."""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skavi._data.process_ranks import over_ranks, stacked, total
from skavi._numerics.clusters import k_means
from skavi.models._emissions_by_name import COVARIANCES, emissions_of
from skavi.models._mixed_columns import MixedColumns
from skavi.models._mixed_emissions import EMITTED

#: Starts: k-means++ differs from draw to draw. Not measured: order of magnitude.
_STARTS = 3


class Emitting(MixedColumns):
    """A model with one finite latent a row, by which the distribution of the row is chosen."""

    allows_missing = True
    goes_through_vmap: bool | None = True
    known_kinds = EMITTED
    #: The argument that says how many states there are.
    counted = "n_components"
    #: At 0.1 the squares expected under wide means drown narrow clusters, from which rows then
    #: wander off: digits with variances of their own ended 7,000 nats lower, in twice the sweeps.
    start_share = 0.01

    def _passes_a_cell(self) -> int:
        return self.emissions.passes_a_cell

    passes_a_cell: Any = property(_passes_a_cell)

    @property
    def _n(self) -> int:
        return getattr(self, self.counted)

    @property
    def emissions(self):
        """What a row shows of its state."""
        own = self.mean_loc, self.mean_scale, self.variance_shape, self.variance_scale
        kinds = self.columns_.kinds
        return emissions_of(self.likelihood, self.covariance, kinds)(self._n, *own)

    def emitted(self, X: Tensor) -> Tensor:
        """Return the cells that rows show: the explained ones, then trials of binomial columns."""
        rows = self.explained(X)
        if not self.names_columns("trials"):
            return rows
        trials = self.given_columns(X, "trials")
        return torch.cat([rows, trials.expand(-1, self._n_tried)], 1)

    @property
    def _n_tried(self):
        return sum(kind.likelihood == "binomial" for kind in self.columns_.kinds)

    # --- arguments ------------------------------------------------------------------------------

    def check(self):
        self._require_integer(self.counted, 1)
        self.check_roles()
        known = self.covariance in COVARIANCES
        self._require("covariance", known, f"one of {list(COVARIANCES)}")
        shaped = self.likelihood == "normal" or self.covariance == "diagonal"
        unused = f"left alone: likelihood={self.likelihood!r} has no covariances of columns"
        self._require("covariance", shaped, unused)
        for name in ("concentration", "variance_shape"):
            self._require_positive(name)
        self._require_vector("mean_scale", positive=True)
        self._require_vector("mean_loc")
        self._check_variance_scale()

    def _check_variance_scale(self):
        if np.ndim(self.variance_scale) != 2 or COVARIANCES[self.covariance].scale_dims < 2:
            self._require_vector("variance_scale", positive=True)
            return
        scale = np.asarray(self.variance_scale, dtype=float)
        square = scale.shape[0] == scale.shape[1] and np.isfinite(scale).all()
        fine = square and np.allclose(scale, scale.T) and np.linalg.eigvalsh(scale).min() > 0
        self._require("variance_scale", fine, "symmetric and positive definite where a matrix")

    def check_data(self, X):
        self.cell.require_valid(self.cells_of(X).values, self._asked_by)
        self._check_trials(X)
        n_features = self.n_explained(X)
        names = ["mean_loc", "mean_scale", "variance_scale"]
        if np.ndim(self.variance_scale) == 2:
            names.pop()
            sizes = f"{len(self.variance_scale)} rows, but X has {n_features} features"
            if len(self.variance_scale) != n_features:
                name = type(self).__name__
                raise ValueError(f"{name}(variance_scale=...): variance_scale has {sizes}.")
        for name in names:
            self._require_size(name, n_features)

    def emission_prior(self, n_features):
        """Return the priors of the globals by which a row shows its state."""
        needed = ["mean_loc", "mean_scale"]
        needed += ["variance_scale"] if self.cell.has_variance else []
        if any(getattr(self, name) is None for name in needed):
            raise ValueError(
                f"{type(self).__name__} takes the priors left at None from data: use the fitted "
                "estimator's model_, or set mean_loc, mean_scale and variance_scale."
            )
        return self.emissions.prior(n_features)

    # --- the model ------------------------------------------------------------------------------

    def n_latents(self, n_features):
        return 1

    def atoms(self, space, X):
        return torch.arange(self._n)[:, None]

    def log_likelihood(self, theta, z, X):
        return self.emissions.log_likelihood(theta, z[:, 0].long(), self.emitted(X))

    def observation(self, z, theta, trials=None):
        return self.emissions.distribution(self._tried(theta, trials), z[:, 0].long())

    def predicted_mean(self, theta, z, trials=None):
        return self.emissions.mean(self._tried(theta, trials), z[:, 0].long())

    def _tried(self, theta, trials):
        if trials is None:
            return theta
        return dict(theta) | {"trials": trials.expand(-1, self._n_tried)}

    def cell_moments(self, theta, z, X):
        return self.emissions.moments(theta, z[:, 0].long(), self.emitted(X))

    def replicate(self, theta, z, X):
        trials = self.given_columns(X, "trials") if self.names_columns("trials") else None
        return self.with_given(self.observation(z, theta, trials).sample(), X)

    def summary(self, X):
        """Return X, with a number for each level but the first in place of columns of levels."""
        return self.with_given(self.emissions.summary(self.explained(X)), X)

    # --- where to start -------------------------------------------------------------------------

    @over_ranks
    def adapted(self, X, weights):
        self._require_cells(self.cells_of(X), weights)
        defaults = self.emissions.defaults(self.emitted(X), weights)
        left_open = {n: v.cpu().numpy() for n, v in defaults.items() if getattr(self, n) is None}
        return self.with_arguments(left_open)

    def n_starts(self, X):
        return _STARTS if self._n > 1 else 1

    @abstractmethod
    def globals_of(self, shares: Tensor, X: Tensor) -> dict[str, Tensor]:
        """Return the moments of rows that belong to states by `shares`, (n_rows, n)."""

    @over_ranks
    def initial_globals(self, X, weights):
        """Return the moments of all rows for every state: no fit starts there, but for trial."""
        return self.globals_of(weights[:, None].expand(-1, self._n) / self._n, X)

    @over_ranks
    def drawn_globals(self, X, weights, generator):
        """Return the moments of clusters by k-means from k-means++ centres, largest first."""
        rows = self.emissions.standardised(self.emitted(X), weights)
        centres = k_means(stacked(rows), stacked(weights), self._n, generator)
        state = torch.cdist(rows, centres).argmin(1)
        shares = torch.nn.functional.one_hot(state, self._n).to(X) * weights[:, None]
        return self.globals_of(shares[:, total(shares.sum(0)).argsort(descending=True)], X)
