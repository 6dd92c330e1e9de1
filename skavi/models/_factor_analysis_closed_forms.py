"""Closed forms of factor analysis with normal noise: expectations and coordinate updates."""

from functools import lru_cache
from typing import Any

import torch
from scipy.linalg import helmert
from torch import Tensor

from skavi._data.missing_cells import Cells
from skavi._data.process_ranks import over_ranks, total
from skavi._numerics.aligned import aligned
from skavi.families import LOG_2PI, DiagonalFactors, DiagonalNormal, Family, FullFactors
from skavi.models._cellwise import CellwiseModel
from skavi.models._closed_forms import log_inverse_gamma
from skavi.models._factor_analysis_expansion import LatentFrame
from skavi.models._mixed_cells import MixedCells
from skavi.models._scale_priors import is_centred_normal, normal_precision


class LinearNormal(CellwiseModel):
    """Closed forms of x_n ~ N(W z_n + m, diag(v)) for normal factors of z_n and (W, m, log v).

    All sums are over the observed cells: with missing ones, each row has its own precision of z_n,
    and each column its own moments of z in the update of (W_d, m_d).
    """

    noise: str
    loading_scale: Any
    mean_loc: Any
    mean_scale: Any
    noise_shape: float
    noise_scale: Any
    coefficient_scale: Any

    def latent_names(self, n_features):
        return [f"factor{i}" for i in range(self.n_components)]

    @property
    def by_column(self) -> bool:
        """Whether every column has a noise of its own."""
        return self.noise == "diagonal" or self.mixed is not None

    def has_closed_form(self, family: Family, global_family: Family) -> bool:
        return self.cell.conjugate

    def has_coordinate_updates(self, family: Family, global_family: Family) -> bool:
        if not self.cell.conjugate or not isinstance(global_family, DiagonalNormal):
            return False
        return not self.n_covariates or is_centred_normal(self.coefficient_scale)

    def expected_log_local(self, factors, globals_, X):
        """E_q log p(z_n, x_n | W, m, v) for normal q(z_n) and a joint normal q(W, m, log v).

        Under q tilted by 1/v, (W, m) stays normal with the same covariance and its mean moved by
        -Cov((W_d, m_d), log v_d); so with e_d = E[1/v_d] every term is a second moment.
        """
        q, cells = self._moments(globals_, X), self.cells_of(X)
        m, second = factors.mean, self._second_moment(factors, X)
        fitted = self._design(m, X) @ q.slopes.mT + q.mean
        residual = cells.masked(cells.values - self.shift(X) - fitted)
        coupling, spread = cells.over_columns(q.coupling), cells.over_columns(q.spread)
        spread = (factors.covariance() * coupling).sum((-2, -1)) + (second * spread).sum((-2, -1))
        log_det = cells.over_columns(q.log_variance + LOG_2PI)
        fit = (residual**2) @ q.precision + spread + log_det
        prior = (m**2 + factors.sd**2 + LOG_2PI).sum(-1)
        return -0.5 * (fit + prior)

    def local_optimum(self, globals_, X, family, start=None):
        """q(z_n) = N(P^-1 W' e (x_n - m), P^-1), P = I + E[W' e W]; diagonal: sds P_kk^-1/2."""
        q, cells = self._moments(globals_, X), self.cells_of(X)
        k, known = self.n_components, self._known(X)
        coupling, spread = cells.over_columns(q.coupling), cells.over_columns(q.spread)
        precision = torch.eye(k).to(X) + coupling + spread[:, :k, :k]
        scaled = q.precision.unsqueeze(-1) * q.slopes[:, :k]
        centre = known[:, :-1] @ q.slopes[:, k:].mT + q.mean + self.shift(X)
        right = cells.masked(cells.values - centre) @ scaled
        right = right - (spread[:, :k, k:] * known.unsqueeze(1)).sum(-1)
        shared = right.reshape(len(precision), -1, k)  # grouped by precision: all rows, or each
        mean = torch.linalg.solve(precision, shared.mT).mT.reshape(-1, k)
        if isinstance(family, DiagonalNormal):
            sd = precision.diagonal(dim1=-2, dim2=-1).rsqrt()
            return DiagonalFactors(mean, sd.expand_as(mean))
        scale = torch.linalg.cholesky(torch.linalg.inv(precision))
        return FullFactors(mean, scale.expand(*mean.shape, k))

    @over_ranks
    def global_optimum(self, globals_, factors, X, weights):
        """One sweep: every (W_d, B_d, m_d) jointly, v (Bishop 1999, eq. 21-26), latents' frame."""
        n_features, k, known = self.n_explained(X), self.n_components, self._known(X)
        q, cells = self._moments(globals_, X), self.cells_of(X)
        moments = cells.over_rows(weights, self._second_moment(factors, X))
        design = torch.cat([factors.mean, known], -1)
        loc = torch.as_tensor(self.mean_loc).to(X).expand(n_features)
        centred = cells.masked(cells.values - self.shift(X) - loc)
        cross = total((weights.unsqueeze(-1) * centred).mT @ design)
        prior = self.linear_precision(X)
        precision = q.precision[:, None, None] * moments + torch.diag_embed(prior)
        solution = torch.linalg.solve(precision, q.precision.unsqueeze(-1) * cross)
        variance = 1 / precision.diagonal(dim1=-2, dim2=-1)
        second = solution.unsqueeze(-1) * solution.unsqueeze(-2) + torch.diag_embed(variance)
        residual = total(weights @ centred**2) - 2 * (solution * cross).sum(-1)
        residual = (residual + (second * moments).sum((-2, -1))).clamp_min(0)
        count = cells.over_rows(weights, torch.ones_like(weights)).expand(n_features)
        least = torch.as_tensor(self.noise_scale).to(X)
        if not self.by_column:
            residual, count, least = residual.sum(), count.sum(), least.reshape(())
        shape = count / 2 + self.noise_shape
        scale = residual / 2 + least
        log_mean, log_variance = log_inverse_gamma(shape, scale)
        frame = LatentFrame(
            cells,
            weights,
            (0.5 * log_variance - log_mean).exp().reshape(-1, 1).expand(n_features, 1),
            prior[:, :1],
            isinstance(factors, DiagonalFactors),
            factors.mean,
            solution[:, :k],
            variance[:, :k],
        )
        frame, slopes = frame.shifted(known, solution[:, k:], prior[:, k:])
        frame = frame.turned()
        rest = [slopes[:, :-1].reshape(-1), slopes[:, -1] + loc]
        mean = [log_mean.reshape(-1), frame.loadings.reshape(-1), *rest]
        rest = [variance[:, k:-1].reshape(-1), variance[:, -1]]
        squared = [log_variance.reshape(-1), frame.spread.reshape(-1), *rest]
        return DiagonalFactors(torch.cat(mean), torch.cat(squared).sqrt())

    @over_ranks
    def compressed(self, X: Tensor, weights: Tensor):
        """Return n_features + 1 rows with the same weighted first and second moments.

        The optimal factors are linear in x_n and every expectation is quadratic in x_n, so F-VI's
        problem in theta depends on the data through these moments only.
        """
        n_rows, fewer = int(total(torch.tensor(len(X)))), X.shape[1] + 1
        if n_rows <= fewer or Cells.of(X).observed is not None:
            return X, weights
        weight = total(weights.sum())
        mean = total(weights @ X) / weight
        sd = (total(weights @ (X - mean) ** 2) / weight).sqrt()
        sd = torch.where(sd > 0, sd, torch.ones_like(sd))  # in sds no column loses digits
        rows = (X - mean) / sd * (weights / weight).sqrt().unsqueeze(-1)
        values, vectors = torch.linalg.eigh(total(rows.mT @ rows))
        axes = vectors.mT * (values.clamp_min(0) * fewer).sqrt().unsqueeze(-1)
        corners = aligned(helmert(fewer)).to(X)  # orthonormal rows, each with a sum of zero
        return mean + sd * (corners.mT @ axes), (weight / fewer).expand(fewer)

    def linear_precision(self, X: Tensor) -> Tensor:
        """Return the prior precisions of (W_d, B_d, m_d), shape (n_features, k + p + 1)."""
        n_features, p = self.n_explained(X), self.n_covariates
        loadings, mean = (
            torch.as_tensor(scale).to(X).expand(n_features).unsqueeze(-1) ** -2
            for scale in (self.loading_scale, self.mean_scale)
        )
        parts = [loadings.expand(n_features, self.n_components), mean]
        if p:
            parts.insert(1, normal_precision(self.coefficient_scale, (n_features, p), X))
        return torch.cat(parts, -1)

    def _known(self, X):
        """Return (c_n, 1), shape (n_rows, p + 1)."""
        ones = X.new_ones(len(X), 1)
        return torch.cat([self.given_columns(X), ones], -1) if self.n_covariates else ones

    def _design(self, z, X):
        """Return (z_n, c_n), shape (n_rows, k + p)."""
        return torch.cat([z, self.given_columns(X)], -1) if self.n_covariates else z

    def _second_moment(self, factors, X):
        """E[(z, c, 1)(z, c, 1)'], shape (n_rows, k + p + 1, k + p + 1)."""
        m, more = torch.cat([factors.mean, self._known(X)], -1), 1 + self.n_covariates
        covariance = torch.nn.functional.pad(factors.covariance(), (0, more, 0, more))
        return m.unsqueeze(-1) * m.unsqueeze(-2) + covariance

    def _moments(self, globals_, X):
        sizes = self.n_explained(X), self.n_components, self.n_covariates
        return _Moments(globals_, *sizes, self.by_column)


class _Moments:
    """Moments of q(log v, W, B, m), tilted by 1/v: see `LinearNormal.expected_log_local`."""

    def __init__(self, globals_, n_features, k, p, by_column):
        size, device = globals_.mean.shape[-1], globals_.mean.device
        index = _index(size, n_features, k, p, by_column, device)
        block = globals_.block_covariance(index)
        centre = globals_.mean[index]
        tilted = centre[:, :-1] - block[:, :-1, -1]
        self.log_variance = centre[:, -1]
        self.precision = (0.5 * block[:, -1, -1] - self.log_variance).exp()
        self.slopes, self.mean = tilted[:, :-1], tilted[:, -1]  # W and B; m
        loadings = tilted[:, :k]
        self.covariance = block[:, :-1, :-1]
        #: Contribution of a cell of column d to the precision of z_n: E[e W W'] without the spread
        #: of W, and the spread of (W, B, m) itself.
        weighted = self.precision[:, None, None]
        self.coupling = weighted * loadings.unsqueeze(-1) * loadings.unsqueeze(-2)
        self.spread = weighted * self.covariance


def linear_index(u: Tensor, n_features: int, k: int, p: int = 0) -> Tensor:
    """Return the places of (W_d, B_d, m_d), the last globals, in u: (n_features, k + p + 1)."""
    return _linear_index(u.shape[-1], n_features, k, p, u.device)


@lru_cache(maxsize=16)
def _linear_index(size, n_features, k, p, device):
    d = torch.arange(n_features, device=device).unsqueeze(-1)
    first = size - n_features * (k + p + 1)
    loadings = first + d * k + torch.arange(k, device=device)
    coefficients = first + n_features * k + d * p + torch.arange(p, device=device)
    return torch.cat([loadings, coefficients, size - n_features + d], -1)


def mixed_index(u: Tensor, mixed: MixedCells, k: int, p: int = 0) -> Tensor:
    """Return the same for each predictor; its mean, or the middle one of its cut points."""
    n_predictors, first = mixed.n_predictors, u.shape[-1] - len(mixed.with_mean)
    whole = _linear_index(first + n_predictors, n_predictors, k, p, u.device).clone()
    whole[:, -1] = torch.tensor(mixed.mean_places(first), device=u.device)
    return whole


@lru_cache(maxsize=16)
def _index(size, n_features, k, p, by_column, device):
    """Return the places of (W_d, B_d, m_d, log v_d)."""
    d = torch.arange(n_features, device=device).unsqueeze(-1)
    variance = d if by_column else torch.zeros_like(d)
    return torch.cat([_linear_index(size, n_features, k, p, device), variance], -1)
