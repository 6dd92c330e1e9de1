"""Models whose cells are independent given z_n and theta: any likelihood, any missing cells."""

from abc import abstractmethod

import torch
from torch import Tensor

from skavi._data.missing_cells import Cells
from skavi.families import LOG_2PI
from skavi.models._base import HierarchicalModel
from skavi.models._global_space import Theta
from skavi.models._likelihood import Globals, Likelihood
from skavi.models._likelihoods import LIKELIHOODS


class CellwiseModel(HierarchicalModel):
    """x_nd ~ likelihood(eta_nd), eta_n = predictor(theta, z_n, c_n) + offset_n, z_n ~ N(0, I).

    Missing cells (NaN) are left out of the likelihood, which marginalises them exactly. For counts
    eta is the log of a rate to be multiplied by the row's exposure: see `log_exposure`.
    """

    allows_missing = True
    # Arguments: see `HierarchicalModel.observation`.
    likelihood = "normal"  # type: ignore[assignment]
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

    @property
    def cell(self) -> Likelihood:
        """The likelihood that the argument names."""
        return LIKELIHOODS[self.likelihood]

    @property
    def positive_only(self):  # type: ignore[override]
        return self.likelihood in LIKELIHOODS and self.cell.counts

    def check(self):
        self._require_integer("n_components", 1)
        known = self.likelihood in list(LIKELIHOODS)
        self._require("likelihood", known, f"one of {list(LIKELIHOODS)}")
        self._require("exposure", self.exposure in (None, "total", "unit"), '"total", "unit", None')
        if self.exposure == "total":
            need = f'None or "unit" for likelihood={self.likelihood!r}: only counts have totals'
            self._require("exposure", self.cell.counts, need)

    def check_data(self, X):
        asked_by = f"{type(self).__name__}(likelihood={self.likelihood!r})"
        self.cell.require_valid(self.cells_of(X).values, asked_by)
        offsets, n_features = self.given_columns(X, "offset").shape[1], self.n_explained(X)
        if offsets not in (0, 1, n_features):
            raise ValueError(
                f"{type(self).__name__}(offset=...) names {offsets} columns, but needs one, or one "
                f"for each of the {n_features} columns that are explained."
            )

    def _require_cells(self, cells, weights):
        counts = cells.over_rows(weights, torch.ones_like(weights))
        empty = (counts <= 0).nonzero()
        if len(empty):
            raise ValueError(
                f"X has {len(empty)} columns without a single observed cell (first column "
                f"{int(empty[0, 0])}): leave them out."
            )
        asked_by = f"{type(self).__name__}(likelihood={self.likelihood!r})"
        self.cell.require_reach(cells, weights, asked_by)

    def n_latents(self, n_features):
        return self.n_components

    # --- the model ------------------------------------------------------------------------------

    def local_prior(self, theta):
        return torch.distributions.Normal(torch.zeros(self.n_components), 1.0)

    def log_prior(self, theta, z, X):
        return -0.5 * (z**2 + LOG_2PI).sum(-1)

    def cells_of(self, X: Tensor) -> Cells:
        """Return the observed cells of the columns that are explained."""
        return Cells.of(self.explained(X))

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
        by_offset = self.offset is not None and self.exposure is None
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

    def eta(self, theta: Theta, z: Tensor, X: Tensor) -> Tensor:
        """Return eta of rows X at latents z."""
        eta = self.predictor(theta, z, self.covariates_of(X))
        shifted = self.cell.counts or self.offset is not None
        return eta + self.shift(X) if shifted else eta

    def log_likelihood(self, theta, z, X):
        eta = self.eta(theta, z, X)
        return self.cell.log_rows(self.cells_of(X), eta, self.cell_globals(theta))

    def observation(self, z, theta, covariates=None):
        eta = self.predictor(theta, z, covariates)
        return self.cell.distribution(eta, self.cell_globals(theta))

    def simulate(self, theta, n_samples, n_features=1, covariates=None):
        z = self.local_prior(theta).expand((n_samples, self.n_components)).sample()
        return self.observation(z, theta, covariates).sample(), z

    def predicted_mean(self, theta, z, covariates=None):
        eta = self.predictor(theta, z, covariates)
        return self.cell.mean(eta, self.cell_globals(theta))

    def cell_moments(self, theta, z, X):
        eta, own = self.eta(theta, z, X), self.cell_globals(theta)
        return self.cell.mean(eta, own), self.cell.variance(eta, own)

    def replicate(self, theta, z, X):
        cells = self.cell.distribution(self.eta(theta, z, X), self.cell_globals(theta))
        return self.with_given(cells.sample(), X)

    def _pseudo_cells(self, X):
        """Return the cells on the scale of eta, less offset and log exposure."""
        cells = self.cells_of(X)
        return Cells(self.cell.pseudo(cells.values) - self.shift(X), cells.observed)


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
