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

    def has_closed_form(self, family: Family, global_family: Family) -> bool:
        return self.cell.conjugate

    def has_coordinate_updates(self, family: Family, global_family: Family) -> bool:
        return self.cell.conjugate and isinstance(global_family, DiagonalNormal)

    def expected_log_local(self, factors, globals_, X):
        """E_q log p(z_n, x_n | W, m, v) for normal q(z_n) and a joint normal q(W, m, log v).

        Under q tilted by 1/v, (W, m) stays normal with the same covariance and its mean moved by
        -Cov((W_d, m_d), log v_d); so with e_d = E[1/v_d] every term is a second moment.
        """
        q, cells = self._moments(globals_, X.shape[1]), Cells.of(X)
        m, second = factors.mean, self._second_moment(factors)
        residual = cells.masked(cells.values - m @ q.loadings.mT - q.mean)
        coupling, spread = cells.over_columns(q.coupling), cells.over_columns(q.spread)
        spread = (factors.covariance() * coupling).sum((-2, -1)) + (second * spread).sum((-2, -1))
        log_det = cells.over_columns(q.log_variance + LOG_2PI)
        fit = (residual**2) @ q.precision + spread + log_det
        prior = (m**2 + factors.sd**2 + LOG_2PI).sum(-1)
        return -0.5 * (fit + prior)

    def local_optimum(self, globals_, X, family, start=None):
        """q(z_n) = N(P^-1 W' e (x_n - m), P^-1), P = I + E[W' e W]; diagonal: sds P_kk^-1/2."""
        q, cells = self._moments(globals_, X.shape[1]), Cells.of(X)
        k = self.n_components
        coupling, spread = cells.over_columns(q.coupling), cells.over_columns(q.spread)
        precision = torch.eye(k).to(X) + coupling + spread[:, :k, :k]
        scaled = q.precision.unsqueeze(-1) * q.loadings
        right = cells.masked(cells.values - q.mean) @ scaled - spread[:, :k, k]
        shared = right.reshape(len(precision), -1, k)  # grouped by precision: all rows, or each
        mean = torch.linalg.solve(precision, shared.mT).mT.reshape(-1, k)
        if isinstance(family, DiagonalNormal):
            sd = precision.diagonal(dim1=-2, dim2=-1).rsqrt()
            return DiagonalFactors(mean, sd.expand_as(mean))
        scale = torch.linalg.cholesky(torch.linalg.inv(precision))
        return FullFactors(mean, scale.expand(*mean.shape, k))

    @over_ranks
    def global_optimum(self, globals_, factors, X, weights):
        """One sweep: every (W_d, m_d) jointly, v (Bishop 1999, eq. 21-26), the latents' frame."""
        n_features, k = X.shape[1], self.n_components
        q, cells = self._moments(globals_, n_features), Cells.of(X)
        moments = cells.over_rows(weights, self._second_moment(factors))
        design = torch.cat([factors.mean, factors.mean.new_ones(len(X), 1)], -1)
        loc = torch.as_tensor(self.mean_loc).to(X).expand(n_features)
        centred = cells.masked(cells.values - loc)
        cross = total((weights.unsqueeze(-1) * centred).mT @ design)
        scales = [self.loading_scale] * k + [self.mean_scale]
        prior = torch.stack([torch.as_tensor(s).to(X).expand(n_features) for s in scales], -1)
        precision = q.precision[:, None, None] * moments + torch.diag_embed(prior**-2)
        solution = torch.linalg.solve(precision, q.precision.unsqueeze(-1) * cross)
        variance = 1 / precision.diagonal(dim1=-2, dim2=-1)
        second = solution.unsqueeze(-1) * solution.unsqueeze(-2) + torch.diag_embed(variance)
        residual = total(weights @ centred**2) - 2 * (solution * cross).sum(-1)
        residual = (residual + (second * moments).sum((-2, -1))).clamp_min(0)
        count = cells.over_rows(weights, torch.ones_like(weights)).expand(n_features)
        least = torch.as_tensor(self.noise_scale).to(X)
        if self.noise == "isotropic":
            residual, count, least = residual.sum(), count.sum(), least.reshape(())
        shape = count / 2 + self.noise_shape
        scale = residual / 2 + least
        log_mean, log_variance = log_inverse_gamma(shape, scale)
        frame = LatentFrame(
            cells,
            weights,
            (0.5 * log_variance - log_mean).exp().reshape(-1, 1).expand(n_features, 1),
            prior[:, :1] ** -2,
            isinstance(factors, DiagonalFactors),
            factors.mean,
            solution[:, :k],
            variance[:, :k],
        )
        frame, centre = frame.shifted(solution[:, k], prior[:, k] ** -2)
        frame = frame.turned()
        mean = [log_mean.reshape(-1), frame.loadings.reshape(-1), centre + loc]
        squared = [log_variance.reshape(-1), frame.spread.reshape(-1), variance[:, k]]
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

    def _second_moment(self, factors):
        """E[(z, 1)(z, 1)'], shape (n_rows, k + 1, k + 1)."""
        m = torch.nn.functional.pad(factors.mean, (0, 1), value=1.0)
        covariance = torch.nn.functional.pad(factors.covariance(), (0, 1, 0, 1))
        return m.unsqueeze(-1) * m.unsqueeze(-2) + covariance

    def _moments(self, globals_, n_features):
        return _Moments(globals_, n_features, self.n_components, self.noise)


class _Moments:
    """Moments of q(log v, W, m), tilted by 1/v: see `LinearNormal.expected_log_local`."""

    def __init__(self, globals_, n_features, k, noise):
        size, device = globals_.mean.shape[-1], globals_.mean.device
        index = _index(size, n_features, k, noise, device)
        block = globals_.block_covariance(index)
        centre = globals_.mean[index]
        tilted = centre[:, :-1] - block[:, :-1, -1]
        self.log_variance = centre[:, -1]
        self.precision = (0.5 * block[:, -1, -1] - self.log_variance).exp()
        self.loadings, self.mean = tilted[:, :k], tilted[:, k]
        self.covariance = block[:, :-1, :-1]
        #: Contribution of a cell of column d to the precision of z_n: E[e W W'] without the spread
        #: of W, and the spread of (W, m) itself.
        weighted = self.precision[:, None, None]
        self.coupling = weighted * self.loadings.unsqueeze(-1) * self.loadings.unsqueeze(-2)
        self.spread = weighted * self.covariance


def linear_index(u: Tensor, n_features: int, k: int) -> Tensor:
    """Return the places of (W_d, m_d), the last globals, in u, shape (n_features, k + 1)."""
    return _linear_index(u.shape[-1], n_features, k, u.device)


@lru_cache(maxsize=16)
def _linear_index(size, n_features, k, device):
    d = torch.arange(n_features, device=device).unsqueeze(-1)
    first = size - n_features * (k + 1)
    loadings = first + d * k + torch.arange(k, device=device)
    return torch.cat([loadings, size - n_features + d], -1)


@lru_cache(maxsize=16)
def _index(size, n_features, k, noise, device):
    """Return the places of (W_d, m_d, log v_d)."""
    d = torch.arange(n_features, device=device).unsqueeze(-1)
    variance = d if noise == "diagonal" else torch.zeros_like(d)
    return torch.cat([_linear_index(size, n_features, k, device), variance], -1)
