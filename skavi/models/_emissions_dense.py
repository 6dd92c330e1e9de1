"""Normal rows with a covariance matrix for each state, or one for all: missing cells included.

Given E Lambda, the expected precision matrix of a state, and its inverse P, a row's expected log
density is normal in (x - m) but for a constant. A row's missing cells have a normal factor given
the state, at its optimum: the conditional under P. Given theta that is exact marginalisation, and
under q(theta) a lower bound.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from skavi._data.missing_cells import Cells
from skavi._data.process_ranks import total
from skavi.families import LOG_2PI
from skavi.models._covariance_prior import PriorOfCovariance, joined, n_free, split
from skavi.models._emissions import LEAST_SHARE, NormalEmissions

#: Numbers of the rows' matrices that are made at once: 64 MB. Not measured: order of magnitude.
_MOST_NUMBERS = 8_000_000
#: Of the ratio of a column's variance to its squared scale: 1 where cells differ, else 0.
_ALIKE = 0.5


@dataclass(frozen=True)
class _Moments:
    """What the expectations need of q. There is one matrix a state, or one for all.

    Attributes
    ----------
    centre, variance : Tensor of shape (n_states, n_features)
        Of q of the states' means, about `mean_loc`.
    unit, weight, spread : Tensor of shapes (n_matrices, n_features[, n_features])
        The expected precision matrix is ``unit.mT @ diag(weight) @ unit + diag(spread)``.
    log_det : Tensor of shape (n_matrices,)
        Of the covariance, expected.
    """

    centre: Tensor
    variance: Tensor
    unit: Tensor
    weight: Tensor
    spread: Tensor
    log_det: Tensor

    @cached_property
    def precision(self) -> Tensor:
        """The expected precision, (n_matrices, n_features, n_features)."""
        scaled = self.weight.unsqueeze(-1) * self.unit
        return self.unit.mT @ scaled + torch.diag_embed(self.spread)

    def constants(self) -> Tensor:
        """Return E log p but for -1/2 of the squares of (x - centre) and of log 2 pi."""
        diagonal = (self.weight.unsqueeze(-2) @ self.unit**2).squeeze(-2) + self.spread
        return -0.5 * (self.log_det + (diagonal * self.variance).sum(-1))

    def squares(self, x: Tensor) -> Tensor:
        """Return (x - centre)' precision (x - centre) of rows x, (n_states, n_rows)."""
        scaled = self.weight.sqrt().unsqueeze(-1) * self.unit
        white = x @ scaled.mT - self.centre.unsqueeze(-2) @ scaled.mT
        slope, own = self.spread * self.centre, (self.spread * self.centre**2).sum(-1, keepdim=True)
        spread = self.spread.expand_as(slope) @ (x**2).mT - 2 * slope @ x.mT + own
        return white.square().sum(-1) + spread


class DenseNormalEmissions(NormalEmissions):
    """Normal rows with a covariance matrix for each state: "full"."""

    scale_dims = 2

    def prior(self, n_features):
        shape = torch.as_tensor(self.variance_shape)
        covariances = PriorOfCovariance(shape, self._scale(torch.ones(n_features)), self._batch)
        return {"means": Normal(*self._eta_prior(n_features)), "covariances": covariances}

    @property
    def _batch(self) -> tuple[int, ...]:
        return (self.n_states,)

    @property
    def dims(self):
        own = ("component",) * len(self._batch)
        return {"means": ("component", "feature"), "covariances": (*own, "feature", "feature_2")}

    def _of_state(self, matrices, state):
        return matrices[state] if self._batch else matrices.expand(len(state), *matrices.shape)

    def distribution(self, theta, state):
        root = self._of_state(torch.linalg.cholesky(theta["covariances"]), state)
        return MultivariateNormal(theta["means"][state], scale_tril=root, validate_args=False)

    def mean(self, theta, state):
        return theta["means"][state]

    def moments(self, theta, state, X=None):
        """Missing cells are those given the row's observed ones."""
        centre, matrices = theta["means"][state], self._of_state(theta["covariances"], state)
        variance = matrices.diagonal(dim1=-2, dim2=-1)
        if X is None or (cells := Cells.of(X)).observed is None:
            return centre, variance
        known = _Known(cells.observed, matrices.unsqueeze(1))
        away = known.filled(cells.masked(cells.values - centre).unsqueeze(1)).squeeze(1)
        left = known.left_variance().squeeze(1)
        seen = cells.observed
        return torch.where(seen, centre, centre + away), torch.where(seen, variance, left)

    def log_likelihood(self, theta, state, X):
        cells, matrices = Cells.of(X), theta["covariances"]
        away = cells.masked(cells.values - theta["means"][state]).unsqueeze(1)
        if cells.observed is None:  # the states' matrices are factored, not the rows'
            roots = self._of_state(torch.linalg.cholesky(matrices), state)
            return _log_of_whitened(away, roots.unsqueeze(1), away.shape[-1]).squeeze(1)
        return _log_normal(away, cells, self._of_state(matrices, state).unsqueeze(1)).squeeze(1)

    # --- closed forms ---------------------------------------------------------------------------

    def expected_log_likelihoods(self, mean, sd, X):
        cells, q = self._centred(X), self._moments(mean, sd, X.shape[1])
        if cells.observed is None:
            constants = q.constants() - 0.5 * X.shape[1] * LOG_2PI
            return constants - 0.5 * q.squares(cells.values).mT
        inverse = torch.linalg.inv(q.precision)
        constants = q.constants() - 0.5 * torch.linalg.slogdet(q.precision)[1]
        parts = [
            _log_normal(values.unsqueeze(1) - q.centre, Cells(values, observed), inverse)
            for values, observed, _ in _pieces(cells, q.precision.numel())
        ]
        return torch.cat(parts) + cells.observed.any(-1, keepdim=True) * constants

    def optimum(self, mean, sd, shares, X):
        d, cells = X.shape[1], self._centred(X)
        q = self._moments(mean, sd, d)
        count, first, second = self._sufficient(q, shares, cells)
        prior = torch.as_tensor(self.mean_scale).to(X) ** -2
        precision = count[:, None, None] * q.precision + torch.diag_embed(
            prior.expand(len(count), d)
        )
        right = (q.precision @ first.unsqueeze(-1)).expand(len(count), d, 1)
        centre = torch.linalg.solve(precision, right).squeeze(-1)
        variance = 1 / precision.diagonal(dim1=-2, dim2=-1)
        cross = first.unsqueeze(-1) * centre.unsqueeze(-2)
        moments = centre.unsqueeze(-1) * centre.unsqueeze(-2) + torch.diag_embed(variance)
        rest = count[:, None, None] * moments - cross - cross.mT
        if not self._batch:
            count, rest = count.sum(0, keepdim=True), rest.sum(0, keepdim=True)
        found = self._best_covariances(count, second + rest)
        loc = torch.as_tensor(self.mean_loc).to(X)
        means = torch.cat([(centre + loc).reshape(-1), found[0].reshape(-1)])
        return means, torch.cat([variance.reshape(-1), found[1].reshape(-1)]).sqrt()

    def permuted(self, numbers, order, n_features):
        n = self.n_states * n_features
        means, covariances = numbers[:n].reshape(-1, n_features), numbers[n:]
        if self._batch:
            covariances = covariances.reshape(self.n_states, -1)[order].reshape(-1)
        return torch.cat([means[order].reshape(-1), covariances])

    def _best_covariances(self, count, scatter):
        """Return means and variances of the free numbers: slopes and residual variances together.

        With M = scatter + 2 scale = L L', the slopes are L's, their variances 1 / (e_j M_ii)
        with e_j = E e^{-l_j}, and l_j is the log of an inverse gamma variable of shape a_j whose
        rate (L_jj^2 + j / e_j) / 2 has e_j = a_j / rate in it.
        """
        d = scatter.shape[-1]
        matrix = scatter + 2 * self._scale(scatter[0, 0])
        root = torch.linalg.cholesky(matrix)
        diagonal, order = root.diagonal(dim1=-2, dim2=-1), torch.arange(d).to(scatter)
        eye = torch.eye(d).to(scatter)
        unit = torch.linalg.solve_triangular(root, eye.expand_as(root), upper=False)
        shape = self.variance_shape + order + 0.5 * count.unsqueeze(-1)
        rate = 0.5 * diagonal**2 / (1 - 0.5 * order / shape)
        spread = (rate / shape).unsqueeze(-1) / matrix.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
        log_mean = (rate / shape).log() + 0.5 / shape
        return joined(log_mean, -unit * diagonal.unsqueeze(-1)), joined(1 / shape, spread)

    def _sufficient(self, q, shares, cells):
        """Return counts and sums of the states' rows, missing cells expected, and sums of squares.

        There is one of the latter for each matrix.
        """
        if cells.observed is None:
            x, own = cells.values, shares if self._batch else shares.sum(1, keepdim=True)
            second = torch.stack([(x * share.unsqueeze(-1)).mT @ x for share in own.mT])
            return total(shares.sum(0)), total(shares.mT @ x), total(second)
        shares = shares * cells.observed.any(-1, keepdim=True)  # others say nothing
        inverse = torch.linalg.inv(q.precision)
        first, second = torch.zeros_like(q.centre), torch.zeros_like(inverse)
        second = second.expand(len(q.centre), *second.shape[1:]).clone()
        for values, observed, rows in _pieces(cells, q.precision.numel()):
            share, known = shares[rows], _Known(observed, inverse)
            away = values.unsqueeze(1) - q.centre
            x = q.centre + known.filled(away * observed.unsqueeze(1))
            first += torch.einsum("nk,nkd->kd", share, x)
            second += torch.einsum("nk,nkd,nke->kde", share, x, x) + known.left(share)
        second = second if self._batch else second.sum(0, keepdim=True)
        return total(shares.sum(0)), total(first), total(second)

    def _centred(self, X):
        cells = Cells.of(X)
        return Cells(
            cells.masked(cells.values - torch.as_tensor(self.mean_loc).to(X)), cells.observed
        )

    def _moments(self, mean, sd, d):
        n = self.n_states * d
        free = [each[n:].reshape(-1, n_free(d)) for each in (mean, sd)]
        (log_variance, slopes), (log_sd, slope_sd) = (split(each, d) for each in free)
        weight = (0.5 * log_sd**2 - log_variance).exp()
        unit = torch.eye(d).to(mean) - slopes
        spread = (weight.unsqueeze(-2) @ slope_sd**2).squeeze(-2)
        centre = mean[:n].reshape(-1, d) - torch.as_tensor(self.mean_loc).to(mean)
        variance = sd[:n].reshape(-1, d) ** 2
        return _Moments(centre, variance, unit, weight, spread, log_variance.sum(-1))

    # --- from data ------------------------------------------------------------------------------

    def _scale(self, like):
        """Return the prior's scale as a matrix; a vector is its diagonal."""
        scale = torch.as_tensor(self.variance_scale).to(like)
        return scale if scale.dim() == 2 else torch.diag(scale.expand(len(like)))

    def defaults(self, X, weights):
        """The scale is the columns' covariance, with a thousandth of their variances added.

        A column whose cells are all alike has a variance of 1, as without covariances.
        """
        own, cells = super().defaults(X, weights), self.cells(X)
        sd, mean = own["mean_scale"], own["mean_loc"]
        shape = cells.covariance(weights, mean, sd)
        alike = (shape.diagonal() < _ALIKE).to(shape)
        values, vectors = torch.linalg.eigh(shape + torch.diag(alike))
        # Pairs of columns with holes need not fit together: by as much they are not known.
        root = vectors * (values + LEAST_SHARE - values.min().clamp_max(0)).sqrt()
        scale = root @ root.mT * sd * sd[:, None]
        return own | {"variance_scale": self._share_of_spread(X) * scale}

    def start(self, shares, X):
        independent = super().start(shares, X)
        centre, cells = independent["means"], Cells.of(X)
        away = [cells.masked(cells.values - each) for each in centre]
        squares = [(s.unsqueeze(-1) * x).mT @ x for s, x in zip(shares.mT, away, strict=True)]
        count, scatter = total(shares.sum(0)), total(torch.stack(squares))
        scatter = scatter / (count + X.shape[1])[:, None, None]  # away from singular
        spread = independent["variances"] - scatter.diagonal(dim1=-2, dim2=-1)
        covariances = scatter + torch.diag_embed(spread.clamp_min(1e-12))
        if not self._batch:
            covariances = torch.tensordot(count / count.sum(), covariances, 1)
        return {"means": centre, "covariances": covariances}


class TiedNormalEmissions(DenseNormalEmissions):
    """Normal rows with one covariance matrix for all states: "tied"."""

    @property
    def _batch(self):
        return ()


class _Known:
    """The observed cells of rows, under covariance matrices (n_rows or 1, m, d, d)."""

    def __init__(self, observed: Tensor, matrices: Tensor):
        seen = observed.to(matrices).unsqueeze(1)
        self.columns = matrices * seen.unsqueeze(-2)  # of the observed cells
        masked = self.columns * seen.unsqueeze(-1) + torch.diag_embed(1 - seen)
        self.root, self.matrices = torch.linalg.cholesky(masked), matrices

    def filled(self, away: Tensor) -> Tensor:
        """Return E[x - m | observed cells], (n_rows, k, d), from x - m with zeros for others."""
        solved = torch.cholesky_solve(
            away.unsqueeze(-1), self.root.expand(*away.shape, away.shape[-1])
        )
        return (self.columns @ solved).squeeze(-1)

    def _whitened(self):
        return torch.linalg.solve_triangular(self.root, self.columns.mT, upper=False)

    def left_variance(self) -> Tensor:
        """Return the variances of the cells given the observed ones, (n_rows, m, d)."""
        known = (self._whitened() ** 2).sum(-2)
        return (self.matrices.diagonal(dim1=-2, dim2=-1) - known).clamp_min(0)

    def left(self, share: Tensor) -> Tensor:
        """Return the sums of their covariances, each times its share, (k, d, d)."""
        white, k = self._whitened(), share.shape[1]
        white = white.expand(-1, k, -1, -1)
        known = torch.einsum("nk,nkad,nkae->kde", share, white, white)
        return share.sum(0)[:, None, None] * self.matrices.reshape(-1, *known.shape[1:]) - known


def _log_normal(away: Tensor, cells: Cells, matrices: Tensor) -> Tensor:
    """Return log N(x - m; 0, matrix) of the observed cells, (n_rows, k), from (n_rows, k, d)."""
    assert cells.observed is not None
    root, seen = _Known(cells.observed, matrices).root, cells.observed.to(away)
    return _log_of_whitened(away * seen.unsqueeze(1), root, seen.sum(-1, keepdim=True))


def _log_of_whitened(away: Tensor, root: Tensor, count: Tensor | int) -> Tensor:
    """Return log N(x - m; 0, L L') of `count` cells; others are zero, and units in the root L."""
    root = root.expand(*away.shape, away.shape[-1])
    white = torch.linalg.solve_triangular(root, away.unsqueeze(-1), upper=False).squeeze(-1)
    log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * ((white**2).sum(-1) + log_det + count * LOG_2PI)


def _pieces(cells: Cells, numbers: int) -> Iterator[tuple[Tensor, Tensor, slice]]:
    """Yield values, mask and place of pieces of few rows, each with so many numbers."""
    assert cells.observed is not None
    size = max(1, _MOST_NUMBERS // max(1, numbers))
    for first in range(0, len(cells.values), size):
        rows = slice(first, first + size)
        yield cells.values[rows], cells.observed[rows], rows
