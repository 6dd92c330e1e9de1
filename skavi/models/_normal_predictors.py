"""Second derivatives of cells whose predictors are taken to be normal, without nodes of latents.

With z ~ N(m, s^2) and w ~ N(u, t^2), a cell's predictor has the mean M = u'm + known and the
variance V = sum_k (s_k^2 u_k^2 + t_k^2 m_k^2 + s_k^2 t_k^2) + known. Were it normal, the cell's
expected log density would be a function F(M, V), whose second derivatives, with the chain rule,

    d^2 F = F_M d^2 M + F_V d^2 V + F_MM dM dM' + F_MV (dM dV' + dV dM') + F_VV dV dV',

are all of the arrow: one evaluation of a cell in place of one at each node of z. They are near, not
exact: V given z varies with z, so that for a bend f the slope in t^2 is E f''(eta) z^2 / 2, and
that of F is E f''(eta) E z^2 / 2. All first derivatives of M and V are products of a row's number
and a column's, so that sums over cells are products of matrices.
"""

import torch
from torch import Tensor

from skavi.models._expected_cells import Jets, expected_cells
from skavi.models._poisson_rates import Side


class NormalPredictors:
    """Derivatives of some rows' cells; their slopes are those of F.

    Parameters
    ----------
    model : LinearCells
    rows : Side of k components
    columns : Side of k + p + 1 components
    jets : Jets
    """

    def __init__(self, model, rows: Side, columns: Side, jets: Jets):
        self.k, self.jets, self.by_row = rows.mean.shape[-1], jets, model.weights
        self.columns, loadings = columns, columns.mean[:, : self.k]
        wide = self.wide = columns.variance[:, : self.k]
        x = torch.cat([rows.mean, model.known], -1)
        spread = torch.cat([rows.variance, torch.zeros_like(model.known)], -1)
        # Each derivative of M and V is the product of a number of the row and one of the column.
        self.level = torch.cat([loadings, torch.zeros_like(loadings)], -1)
        self.width = torch.cat([wide, loadings**2 + wide], -1)
        self.stretch = 2 * torch.cat([rows.mean, rows.variance], -1)
        self.level_of_column = torch.cat([x, torch.zeros_like(x)], -1)
        self.width_of_column = 2 * torch.cat([spread, x**2 + spread], -1)
        self.stretch_of_column = torch.cat([columns.mean, columns.variance], -1)
        mean = x @ columns.mean.mT + model.offset
        variance = (x**2 + spread) @ columns.variance.mT + rows.variance @ (loadings**2).mT
        one = mean.new_ones(1)
        likelihood, cells = model.likelihood, model.cells
        self.found = expected_cells(likelihood, cells, mean[None], variance[None], jets, one)
        parts = self.found.mean, self.found.variance, self.found.mm, self.found.mv, self.found.vv
        self.of_mean, self.of_variance, *self.curved = (each[0] for each in parts)

    def everything(self):
        """Return all derivatives, as `LinearCells.derivatives` has them."""
        return *self.alone(), self._border(), *self._of_columns()

    def alone(self):
        """Return slopes and blocks of the rows."""
        by_cells = (self.of_mean, self.of_variance, *self.curved)
        return _side(by_cells, self.level, self.width, self.stretch, 2 * self.wide)

    def _of_columns(self):
        """Return weighted sums over rows of slopes and blocks of the columns."""
        weights = self.by_row.unsqueeze(-1)
        by_cells = [(each * weights).mT for each in (self.of_mean, self.of_variance, *self.curved)]
        q = self.columns.mean.shape[-1]
        sides = self.level_of_column, self.width_of_column, self.stretch_of_column
        slope, block = _side(by_cells, *sides, self.width_of_column[:, :q])
        if not self.found.m_own:
            return slope, block
        own, curved = self.found.of_own(self.jets, self.by_row)
        pairs = zip(self.found.m_own, self.found.v_own, strict=True)
        mixed = [
            (m[0] * weights).mT @ self.level_of_column
            + (v[0] * weights).mT @ self.width_of_column * self.stretch_of_column
            for m, v in pairs
        ]
        side = torch.stack(mixed, -2)
        block = torch.cat([torch.cat([block, side.mT], -1), torch.cat([side, curved], -1)], -2)
        return torch.cat([slope, own], -1), block

    def _border(self):
        """Return mixed derivatives (n_rows, 2 k, n_columns, ...) in rows' and columns' numbers."""
        k, q = self.k, self.columns.mean.shape[-1]
        along = self.stretch.unsqueeze(-1) * self.width.mT  # dV, (n_rows, 2 k, n_columns)
        mm, mv, vv = (each.unsqueeze(1) for each in self.curved)
        in_mean, in_variance = mm * self.level.mT + mv * along, mv * self.level.mT + vv * along
        known, spread = self.level_of_column[:, None, None, :q], self.width_of_column[:, None, None]
        moved = in_variance.unsqueeze(-1) * spread * self.stretch_of_column
        moved[..., :q] += in_mean.unsqueeze(-1) * known
        at, by_variance = torch.arange(k, device=along.device), self.of_variance.unsqueeze(1)
        twice = 2 * self.stretch.unsqueeze(-1) * by_variance  # 4 m F_V, then 4 s^2 F_V
        wide = self.wide.mT
        moved[:, at, :, at] += self.of_mean
        moved[:, at, :, q + at] += (twice[:, :k] * wide).movedim(1, 0)
        moved[:, k + at, :, at] += (twice[:, k:] * self.columns.mean[:, :k].mT).movedim(1, 0)
        moved[:, k + at, :, q + at] += (twice[:, k:] * wide).movedim(1, 0)
        own = [
            (m[0].unsqueeze(1) * self.level.mT + v[0].unsqueeze(1) * along).unsqueeze(-1)
            for m, v in zip(self.found.m_own, self.found.v_own, strict=True)
        ]
        return torch.cat([moved, *own], -1)


def _side(by_cells, level: Tensor, width: Tensor, stretch: Tensor, bent: Tensor):
    """Return slopes (n, 2 k) and blocks (n, 2 k, 2 k) of one side's means and log sds.

    Parameters
    ----------
    by_cells : sequence of Tensor of shape (n, n_others)
        F_M, F_V, F_MM, F_MV and F_VV.
    level, width : Tensor of shape (n_others, 2 k)
        The others' part of the derivatives of M and of V.
    stretch : Tensor of shape (n, 2 k)
        This side's part of the derivatives of V.
    bent : Tensor of shape (n_others, k)
        Second derivatives of V in this side's means.
    """
    of_mean, of_variance, mm, mv, vv = by_cells
    size = level.shape[-1]

    def sums(values, one, other):
        products = (one.unsqueeze(-1) * other.unsqueeze(-2)).flatten(-2)
        return (values @ products).unflatten(-1, (size, size))

    along = stretch * (of_variance @ width)
    mixed = sums(mv, level, width) * stretch.unsqueeze(-2)
    wide = sums(vv, width, width) * stretch.unsqueeze(-2) * stretch.unsqueeze(-1)
    twice = torch.cat([of_variance @ bent, 2 * along[:, size // 2 :]], -1)
    block = sums(mm, level, level) + mixed + mixed.mT + wide + torch.diag_embed(twice)
    return of_mean @ level + along, block
