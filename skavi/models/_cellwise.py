"""Models whose cells are independent given z_n and theta: any likelihood, any missing cells."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from skavi._data.missing_cells import Cells
from skavi.families import LOG_2PI
from skavi.models._base import HierarchicalModel, overrides
from skavi.models._global_space import Theta
from skavi.models._likelihood import Globals
from skavi.models._mixed_columns import MixedColumns


class CellwiseModel(MixedColumns, HierarchicalModel):
    """x_nd ~ likelihood(eta_nd), eta_n = predictor(theta, z_n, c_n) + offset_n, z_n ~ N(0, I).

    Missing cells (NaN) are left out of the likelihood, which marginalises them exactly. For counts
    eta is the log of a rate to be multiplied by the row's exposure: see `log_exposure`.
    """

    allows_missing = True
    # Arguments: see `HierarchicalModel.observation`.
    likelihood: Any = "normal"
    exposure = None
    covariates = offset = None
    n_components: int

    @abstractmethod
    def predictor(self, theta: Theta, z: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Return eta for latents z, without offset or exposure, shape (n_rows, n_features).

        `covariates`, of shape (n_rows, n_covariates), are None for a model without any.
        """

    @abstractmethod
    def location(self, like: Tensor) -> Tensor:
        """Return the columns' eta at the centre of the prior, shape (n_features,)."""

    # --- arguments and data ---------------------------------------------------------------------

    def check_roles(self):
        super().check_roles()
        if self.named_kinds() is not None:
            alone = "None where columns are of different kinds: name a column among the covariates"
            self._require("offset", not self.names_columns("offset"), alone)

    def check(self):
        self._require_integer("n_components", 1)
        self.check_roles()
        self._require("exposure", self.exposure in (None, "total", "unit"), '"total", "unit", None')
        if self.exposure == "total" and not self.untold:
            need = f'None or "unit" for likelihood={self.likelihood!r}: only counts have totals'
            self._require("exposure", self.cell.counts, need)

    def check_data(self, X):
        self.cell.require_valid(self.cells_of(X).values, self._asked_by)
        self._check_trials(X)
        offsets, n_features = self.given_columns(X, "offset").shape[1], self.n_explained(X)
        if offsets not in (0, 1, n_features):
            raise ValueError(
                f"{type(self).__name__}(offset=...) names {offsets} columns, but needs one, or one "
                f"for each of the {n_features} columns that are explained."
            )

    def _require_cells(self, cells, weights):
        super()._require_cells(cells, weights)
        self.cell.require_reach(cells, weights, self._asked_by)

    def n_latents(self, n_features):
        return self.n_components

    # --- the model ------------------------------------------------------------------------------

    def local_prior(self, theta):
        return torch.distributions.Normal(torch.zeros(self.n_components), 1.0)

    def log_prior(self, theta, z, X):
        return -0.5 * (z**2 + LOG_2PI).sum(-1)

    def n_predictors(self, n_features: int) -> int:
        """Return how many predictors a row of so many columns has."""
        return n_features if self.mixed is None else self.mixed.n_predictors

    def covariates_of(self, X: Tensor) -> Tensor | None:
        """Return the covariates of rows X; None for a model without any."""
        return self.given_columns(X) if self.n_covariates else None

    @property
    def n_covariates(self) -> int:
        """How many covariates a row has, levels of categories counted one by one."""
        return self.columns_.widths.get("covariates", 0)

    def cell_globals(self, theta: Theta) -> Globals:
        """Return theta with the likelihood's parameters that arguments of the model fix."""
        return theta

    def log_exposure(self, X: Tensor) -> Tensor | float:
        """Return the log of every row's exposure, shape (n_rows, 1).

        A row's exposure is the total of its observed cells, divided by the expected total of these
        cells at the centre of the prior. So it depends on the row only, with or without missing
        cells, and is 1 for an ordinary row. A total of 0 counts as 1/2; a row without cells has
        exposure 1.
        """
        by_offset = self.names_columns("offset") and self.exposure is None
        if not self.cell.counts or self.exposure == "unit" or by_offset:
            return 0.0
        cells = self.cells_of(X)
        expected = cells.over_columns(self.location(self.explained(X)).exp())
        total = cells.values.sum(-1).clamp_min(0.5)
        return torch.where(expected > 0, total / expected, torch.ones_like(total)).log()[:, None]

    def shift(self, X: Tensor) -> Tensor | float:
        """Return what rows X bring to eta: offset and log exposure, (n_rows, 1 or n_features)."""
        offset = self.given_columns(X, "offset")
        exposure = self.log_exposure(X)
        return offset + exposure if offset.shape[1] else exposure

    @property
    def reads_predictors(self) -> bool:
        """Whether functions read cells on the scale of their predictors, not as they are."""
        return self.mixed is not None

    def summary(self, X):
        """Return X, or its cells on the scale of their predictors."""
        if not self.reads_predictors:
            return super().summary(X)
        cells = self.cell.pseudo_cells(self.cells_of(X))
        values = cells.values
        if cells.observed is not None:
            values = torch.where(cells.observed, values, torch.full_like(values, torch.nan))
        return torch.cat([values, X[:, self.n_explained(X) :]], 1)

    def eta(self, theta: Theta, z: Tensor, X: Tensor) -> Tensor:
        """Return eta of rows X at latents z."""
        eta = self.predictor(theta, z, self.covariates_of(X))
        shifted = self.cell.counts or self.names_columns("offset")
        return eta + self.shift(X) if shifted else eta

    def half_expected_terms(self, theta, z, factors, rest, X):
        """Written out for tensors of one dtype, so that no call of torch is looked at for others'.

        That takes a tenth of a decoder's step.
        """
        if overrides(self, HierarchicalModel, "log_local"):
            return self.log_terms(theta, z, X)
        return self.expected_log_prior(theta, z, factors, X) + self.log_likelihood(theta, z, X)

    def log_likelihood(self, theta, z, X):
        eta = self.eta(theta, z, X)
        return self.cell.log_rows(self.cells_of(X), eta, self.cell_globals(theta))

    def observation(self, z, theta, covariates=None):
        eta, own = self._predicted(theta, z, covariates)
        return self.cell.distribution(eta, own)

    def _predicted(self, theta, z, given):
        """Return eta and the likelihood's globals, for rows given covariates, then trials."""
        own = self.cell_globals(theta)
        if self.names_columns("trials"):
            own = dict(own) | {"trials": given[:, self.n_covariates :]}
            given = given[:, : self.n_covariates] if self.n_covariates else None
        return self.predictor(theta, z, given), own

    def simulate(self, theta, n_samples, n_features=1, covariates=None):
        z = self.local_prior(theta).expand((n_samples, self.n_components)).sample()
        return self.observation(z, theta, covariates).sample(), z

    def predicted_mean(self, theta, z, covariates=None):
        return self.cell.mean(*self._predicted(theta, z, covariates))

    def _seen(self, theta, z, X):
        """Return eta and the likelihood's globals, for rows X."""
        own = self.cell_globals(theta)
        if self.names_columns("trials"):
            own = dict(own) | {"trials": self.given_columns(X, "trials")}
        return self.eta(theta, z, X), own

    def cell_moments(self, theta, z, X):
        seen = self._seen(theta, z, X)
        return self.cell.mean(*seen), self.cell.variance(*seen)

    def replicate(self, theta, z, X):
        return self.with_given(self.cell.distribution(*self._seen(theta, z, X)).sample(), X)

    def noise_at_start(self, theta: Globals, like: Tensor) -> Tensor:
        """Return the noise variance of pseudo-cells: 1 on the scale of logits and log rates."""
        ones = like.new_ones(1)
        if self.mixed is None:
            return theta["noise_variance"] if self.cell.has_variance else ones
        varied = torch.tensor(self.mixed.with_variance, dtype=torch.long, device=like.device)
        ones = ones.repeat(self.mixed.n_predictors)
        return ones.index_put((varied,), theta["noise_variance"]) if len(varied) else ones

    def _pseudo_cells(self, X):
        """Return the cells on the scale of eta, less offset and log exposure."""
        cells = self.cell.pseudo_cells(self.cells_of(X))
        return Cells(cells.values - self.shift(X), cells.observed)


def linear_start(
    cells: Cells, loadings: Tensor, centre: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Return means and sds of z_n for normal cells of mean loadings @ z_n + centre (or centre_n).

    Every row's precision is that of a complete row.
    """
    weighted = loadings / noise.unsqueeze(-1)
    precision = torch.eye(loadings.shape[1]).to(loadings) + weighted.mT @ loadings
    projected = cells.masked(cells.values - centre) @ weighted
    mean = torch.linalg.solve(precision, projected.mT).mT
    return mean, precision.diagonal().rsqrt().expand_as(mean)
