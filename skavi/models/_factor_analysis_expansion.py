"""Parameter expansion of factor analysis: the best affine change of its latents, between sweeps."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from skavi._data.missing_cells import Cells
from skavi._data.process_ranks import total
from skavi._numerics.positive_definite import least_solution

#: Of a 2 x 2 block's trace: its least curvature. Components of equal size are free to rotate.
_LEAST_CURVATURE = 1e-6
#: Largest entry of a step's change of the latents: the second-order model holds for small ones.
_LARGEST_STEP = 0.5
#: Curvature of components that are zero altogether; their gradient is, too.
_TINY = 1e-300
#: A step is halved this often before none is taken; the sweep's own result then stands.
_HALVINGS = 10
#: Newton steps of a sweep, at most: another one where the last was too long at first, as with many
#: components, and of those that die out. 21 rows of 300 columns with 20 components took 750 sweeps
#: to their optimum with one step a sweep, 300 with four.
_MOST_STEPS = 4
#: Of F: a step that lowers it by less is taken, since that is rounding. Left to chance near the
#: optimum, sweeps with and without a step alternated, and took up to three times as many.
_ROUNDING = 1e-14


@dataclass(frozen=True)
class LatentFrame:
    """Normal factors of z_n and (W_d, m_d), up to an affine change of the latents.

    z_n -> A^-1 (z_n - b), W -> W A, m -> m + W b leaves every W z_n + m where it is, but a sweep
    updates W given z and z given W, and so approaches the best A and b by small steps only
    (Luttinen & Ilin 2010, "Transformations in variational Bayesian factor analysis to speed up
    learning", for factors with all covariances; Liu, Rubin & Wu 1998 for the idea). With
    P_n = I + sum_d e_d (W_d W_d' + S_d) the precision of z_n, or its diagonal if q(z_n) has no
    covariances, and r_n = w_n (1 + sum_d e_d S_d), sums over the row's cells, the ELBO is

        F(A) = -1/2 sum_n (w_n log |P_n| + r_n . z_n^2) - 1/2 sum_d p_d |W_d|^2

    and terms that A leaves alone, once the covariances of z are optimal. W's sds S are kept
    during a step, and are optimal again after it.

    Attributes
    ----------
    cells : Cells
        The cells of X.
    weights : Tensor of shape (n_rows,)
        Weights w of the rows.
    precision : Tensor of shape (n_features, 1)
        e = E[1/v].
    prior_precision : Tensor of shape (n_features, 1)
        p, of the loadings.
    diagonal : bool
        Whether q(z_n) has no covariances.
    z : Tensor of shape (n_rows, k)
        Means of the latents.
    loadings, spread : Tensor of shape (n_features, k)
        Means and variances S of W.
    """

    cells: Cells
    weights: Tensor
    precision: Tensor
    prior_precision: Tensor
    diagonal: bool
    z: Tensor
    loadings: Tensor
    spread: Tensor

    def shifted(
        self, known: Tensor, slopes: Tensor, precision: Tensor
    ) -> tuple["LatentFrame", Tensor]:
        """Return the frame after the best b, and the slopes that go with it.

        z_n -> z_n - b g_n, B -> B + W b for what is known, g_n = (c_n, 1), and the slopes on it,
        less their prior's centre: quadratic in b, of shape (k, p).
        """
        rows, k, p = self._row_weights.expand_as(self.z), self.z.shape[-1], known.shape[-1]
        squares = known.unsqueeze(-1) * known.unsqueeze(-2)
        curvature = self.z.new_zeros(k, p, k, p)
        each = torch.arange(k, device=rows.device)
        curvature[each, :, each] = total(torch.tensordot(rows.mT, squares, 1))
        for j in range(p):
            pulled = self.loadings.mT * precision[:, j]
            curvature[:, j, :, j] += pulled @ self.loadings
        gradient = total((rows * self.z).mT @ known) - self.loadings.mT @ (precision * slopes)
        b = least_solution(curvature.reshape(k * p, k * p), gradient.reshape(-1))
        b = b.reshape(k, p)
        return replace(self, z=self.z - known @ b.mT), slopes + self.loadings @ b

    def turned(self) -> "LatentFrame":
        """Return the frame after Newton steps in A that do not lower F; or this one."""
        frame = self
        for _ in range(_MOST_STEPS):
            frame, n_halvings = frame._stepped()
            if n_halvings in (0, _HALVINGS):
                break
        return frame

    def _stepped(self):
        """Return the frame after a Newton step, and how often that was halved."""
        change, value = self._newton_step(), self._value()
        change = change * (_LARGEST_STEP / change.abs().max()).clamp_max(1.0)
        least = value - _ROUNDING * value.abs()
        for n_halvings in range(_HALVINGS):
            turned = self._changed(change)
            if bool(turned._value() >= least):
                return turned._with_best_spread(), n_halvings
            change = change / 2
        return self, _HALVINGS

    def _changed(self, change):
        matrix = torch.eye(len(change)).to(change) + change
        z = torch.linalg.solve(matrix, self.z.mT).mT
        return replace(self, z=z, loadings=self.loadings @ matrix)

    def _newton_step(self):
        """Return the step in A = I + T, by pairs of entries (T_ab, T_ba).

        At the optimum A makes sum_n r_n z_n z_n' and W' e W (nearly) diagonal; then F's second
        derivatives couple no other entries.
        """
        moved, widths = self._moved_and_widths()
        rows = self._row_weights.expand_as(self.z)
        weighted, pulled = self.precision * self.loadings, self.prior_precision * self.loadings
        second = total((rows * self.z).mT @ self.z)
        gradient = second - weighted.mT @ moved - pulled.mT @ self.loadings
        noise = (weighted * self.loadings).mT @ widths
        own = total(rows.mT @ self.z**2) + noise + (pulled * self.loadings).sum(0).unsqueeze(-1)
        size = second.diagonal()
        step = _by_pairs(gradient, own, size.unsqueeze(-1) + size)
        scale = noise.diagonal() ** 2 / total(self.weights.sum())
        scale = own.diagonal() + 2 * (size - scale)  # curvature along T_aa
        floor = (_LEAST_CURVATURE * own.diagonal()).clamp_min(_TINY)
        return step + torch.diag(gradient.diagonal() / torch.maximum(scale, floor))

    @cached_property
    def _row_weights(self):
        """Return r, of shape (n_rows, k)."""
        spread = self.cells.over_columns(self.precision * self.spread)
        return self.weights.unsqueeze(-1) * (1 + spread)

    def _moved_and_widths(self):
        """Return U_d W_d and the diagonals of U_d = sum_n w_n Cov(z_n), over a column's cells."""
        if self.diagonal:
            widths = self.cells.over_rows(self.weights, self._variances())
            return widths * self.loadings, widths.expand_as(self.loadings)
        over_rows = self.cells.over_rows(self.weights, self._covariance())
        moved = (over_rows @ self.loadings.unsqueeze(-1)).squeeze(-1)
        return moved, over_rows.diagonal(dim1=-2, dim2=-1).expand_as(self.loadings)

    @cached_property
    def _precisions(self):
        """Return P, of shape (1 or n_rows, k, k), or what there is of a diagonal one, (..., k)."""
        loadings = self.loadings
        if self.diagonal:
            return 1 + self.cells.over_columns(self.precision * (loadings**2 + self.spread))
        outer = loadings.unsqueeze(-1) * loadings.unsqueeze(-2)
        terms = self.precision.unsqueeze(-1) * (outer + torch.diag_embed(self.spread))
        return torch.eye(loadings.shape[1]).to(loadings) + self.cells.over_columns(terms)

    def _covariance(self):
        """Return the covariances of z that are optimal, of shape (n_rows, k, k)."""
        if self.diagonal:
            return torch.diag_embed(self._variances())
        inverse = torch.linalg.inv(self._precisions)
        return inverse.expand(len(self.z), *inverse.shape[1:])

    def _variances(self):
        """Return the optimal variances of z, of shape (n_rows, k)."""
        if self.diagonal:
            return (1 / self._precisions).expand_as(self.z)
        return self._covariance().diagonal(dim1=-2, dim2=-1)

    def _value(self):
        if self.diagonal:
            log_det = self._precisions.log().sum(-1)
        else:
            log_det = torch.linalg.slogdet(self._precisions).logabsdet
        of_rows = self.weights * log_det + (self._row_weights * self.z**2).sum(-1)
        prior = (self.prior_precision * self.loadings**2).sum()
        return -0.5 * (total(of_rows.sum()) + prior)

    def _with_best_spread(self):
        second = self.cells.over_rows(self.weights, self.z**2 + self._variances())
        spread = 1 / (self.prior_precision + self.precision * second)
        return replace(self, spread=spread)


def _by_pairs(gradient, own, shared):
    """Solve [[own_ab, shared_ab], [shared_ab, own_ba]] (T_ab, T_ba) = gradient; zero diagonal."""
    trace = own + own.mT
    least = trace / 2 - ((own - own.mT) ** 2 / 4 + shared**2).sqrt()
    own = own + (_LEAST_CURVATURE * trace - least).clamp_min(0)
    determinant = (own * own.mT - shared**2).clamp_min(_TINY)
    step = (own.mT * gradient - shared * gradient.mT) / determinant
    return step - torch.diag(step.diagonal())
