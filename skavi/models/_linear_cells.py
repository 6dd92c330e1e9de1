"""Second derivatives of rows whose cells read z_n and theta by a linear predictor, cell by cell.

At a node z = m + s e of the row's factor, and under independent normal loadings and means w_d of
column d, the predictor of a cell is normal with mean u_d'z and variance t_d^2'z^2 (z with the row's
covariates and a 1 at its end). A cell's expected log density, with its derivatives in that mean and
variance and in the likelihood's own globals (`skavi.models._expected_cells`), and the chain rule
give all of the arrow: the rows' blocks, the columns' (columns meet in no cell: with the noise that
they may share, theirs are the only blocks of theta), and the border. That is one pass over the
cells for each node, where automatic differentiation takes one for each parameter of q(theta).
"""

from dataclasses import dataclass
from operator import methodcaller

import torch
from torch import Tensor

from skavi._data.missing_cells import Cells
from skavi.models._expected_cells import Jets, derivatives_of_rest, expected_cells
from skavi.models._likelihood import Likelihood
from skavi.models._noise_factors import NoiseFactors
from skavi.models._normal_predictors import NormalPredictors
from skavi.models._poisson_rates import Side
from skavi.models._predictor_nodes import Rule, predictor_nodes

#: Cells at once, over rows and nodes: with 2000 calls take as long as numbers (1,000 x 20 counts,
#: two latents: .57 s a step, .38 with 8000). 320 kB an array.
_CELLS = 8000


@dataclass(frozen=True)
class LinearCells:
    """Rows of cells, and the likelihood of a cell's predictor.

    Attributes
    ----------
    likelihood : Likelihood
    cells : Cells
    known : Tensor of shape (n_rows, p + 1)
        What stands beside the latents in the predictor: covariates, then 1.
    offset : Tensor
        Added to the predictor, shape (n_rows, 1) or (n_rows, n_columns).
    weights : Tensor of shape (n_rows,)
    """

    likelihood: Likelihood
    cells: Cells
    known: Tensor
    offset: Tensor
    weights: Tensor

    def __getitem__(self, index):
        known, offset = self.known[index], self.offset[index]
        return LinearCells(self.likelihood, self.cells[index], known, offset, self.weights[index])

    def expected_rows(self, rows: Side, columns: Side, own: NoiseFactors, rule: Rule) -> Tensor:
        """Return the rows' expected log densities, at nodes of each cell's predictor, (n_rows,)."""
        levels = self.likelihood.levels_along(own)
        given = self.known, self.offset, levels.variance
        width = self.likelihood.width(levels)
        mean, nodes = predictor_nodes(rows, columns, *given, rule, width)
        values = self.likelihood.expected_at(self.cells.values, mean, nodes, own, levels)
        return self.cells.masked(values).sum(-1)

    def derivatives(
        self,
        rows: Side,
        columns: Side,
        own: NoiseFactors,
        noise: Tensor | None,
        weights: Tensor | None,
    ):
        """Differentiate the rows' expected log densities.

        Parameters
        ----------
        rows : Side of k components
        columns : Side of k + p + 1 components
            Loadings, coefficients of covariates, then the mean.
        own : NoiseFactors
            Factors of the likelihood's own globals, r numbers a column.
        noise : Tensor of shape (n_nodes, k), or None
            None: predictors are taken to be normal, as `NormalPredictors` has it.
        weights : Tensor of shape (n_nodes,), or None

        Returns
        -------
        slope : Tensor of shape (n_rows, 2 k)
            In means and log sds.
        block : Tensor of shape (n_rows, 2 k, 2 k)
        border : Tensor of shape (n_rows, 2 k, n_columns, 2 (k + p + 1) + r)
        slopes : Tensor of shape (n_columns, 2 (k + p + 1) + r)
            Weighted sums over rows; the likelihood's own numbers come last.
        blocks : Tensor of shape (n_columns, 2 (k + p + 1) + r, 2 (k + p + 1) + r)
        """
        jets = Jets.of(self.likelihood, own)
        found = self._in_parts(rows, columns, jets, noise, weights, methodcaller("everything"))
        *of_rows, slopes, blocks = found
        if not own.size:
            return found
        r, width = own.size, slopes.shape[-1]
        slope, block = derivatives_of_rest(self.likelihood, own, self.cells, self.weights)
        slopes = slopes + torch.nn.functional.pad(slope, (width - r, 0))
        blocks = blocks + torch.nn.functional.pad(block, (width - r, 0, width - r, 0))
        return *of_rows, slopes, blocks

    def derivatives_of_rows(self, rows: Side, columns: Side, own, noise, weights):
        """Return the first two of `derivatives` alone: all that a row's own problem has."""
        jets = Jets.of(self.likelihood, own, own_too=False)
        return self._in_parts(rows, columns, jets, noise, weights, methodcaller("alone"))

    def _in_parts(self, rows, columns, jets, noise, weights, read):
        """Gather what is read of nodes, for a few rows at a few nodes at once."""
        at_once = max(1, _CELLS // max(1, len(columns)))
        everyone = [slice(i, i + at_once) for i in range(0, len(rows), at_once)]
        parts = [
            _sums(map(read, self[part]._nodes(rows[part], columns, jets, noise, weights)))
            for part in everyone or [slice(0, 0)]
        ]
        of_rows = [torch.cat(each) for each in list(zip(*parts, strict=True))[:3]]
        return *of_rows, *(_sums(part[3:] for part in parts) if len(parts[0]) > 3 else ())

    def _nodes(self, rows, columns, jets, noise, weights):
        if noise is None:
            return [NormalPredictors(self, rows, columns, jets)]
        size = max(1, _CELLS // max(1, len(rows) * len(columns)))
        pieces = zip(noise.split(size), weights.split(size), strict=True)
        return (_Nodes(self, rows, columns, jets, *piece) for piece in pieces)


class _Nodes:
    """Derivatives at nodes of the rows' factors, added up with their weights."""

    def __init__(self, model, rows, columns, jets, noise, weights):
        self.spread = rows.variance.sqrt() * noise.unsqueeze(1)  # (n_nodes, n_rows, k)
        known = model.known.expand(len(noise), -1, -1)
        self.z = torch.cat([rows.mean + self.spread, known], -1)
        self.columns, self.k, self.by_row = columns, rows.mean.shape[-1], model.weights
        mean = self.z @ columns.mean.mT + model.offset
        variance = self.z**2 @ columns.variance.mT
        self.jets = jets
        self.found = expected_cells(model.likelihood, model.cells, mean, variance, jets, weights)

    def everything(self):
        """Return all derivatives, as `LinearCells.derivatives` has them."""
        border = self._between(*self._loadings)
        both = torch.cat([border.sum(0), (border * self.spread[..., None, None]).sum(0)], 1)
        return *self.alone(), both, *self.of_columns()

    @property
    def _loadings(self):
        """Means of the loadings, and twice their variances."""
        return self.columns.mean[:, : self.k], 2 * self.columns.variance[:, : self.k]

    def alone(self):
        """Return slopes and blocks of the rows."""
        spread = self.spread
        slope, block = self._in_latents(*self._loadings)
        in_spread = block * spread.unsqueeze(-2)
        corner = in_spread * spread.unsqueeze(-1) + torch.diag_embed(spread * slope)
        whole = torch.cat(
            [torch.cat([block, in_spread], -1), torch.cat([in_spread.mT, corner], -1)], -2
        )
        return torch.cat([slope, spread * slope], -1).sum(0), whole.sum(0)

    def _in_latents(self, u, widths):
        """Return slope and curvature in z, shapes (n_nodes, n_rows, k) and (..., k, k)."""
        k, z, found = self.k, self.z[..., : self.k], self.found
        along = found.variance @ widths
        mixed = (found.mv @ _products(u, widths)).unflatten(-1, (k, k)) * z.unsqueeze(-2)
        block = (found.mm @ _products(u, u)).unflatten(-1, (k, k)) + mixed + mixed.mT
        wide = (found.vv @ _products(widths, widths)).unflatten(-1, (k, k))
        block = block + wide * z.unsqueeze(-1) * z.unsqueeze(-2) + torch.diag_embed(along)
        return found.mean @ u + z * along, block

    def _between(self, u, widths):
        """Return mixed derivatives in z and in a column's means, log sds and own numbers."""
        k, z, found = self.k, self.z, self.found
        stretch = widths.mT * z[..., :k].unsqueeze(-1)  # (n_nodes, n_rows, k, n_columns)
        mm, mv, vv = (each.unsqueeze(-2) for each in (found.mm, found.mv, found.vv))
        in_mean = (mm * u.mT + mv * stretch).unsqueeze(-1) * z[..., None, None, :]
        in_variance = (mv * u.mT + vv * stretch).unsqueeze(-1) * z[..., None, None, :] ** 2
        at = torch.arange(k, device=z.device)
        in_mean[..., at, :, at] += found.mean
        in_variance[..., at, :, at] += 2 * z[..., :k].movedim(-1, 0).unsqueeze(-1) * found.variance
        parts = [in_mean, in_variance * 2 * self.columns.variance]
        for by_mean, by_variance in zip(found.m_own, found.v_own, strict=True):
            both = by_mean.unsqueeze(-2) * u.mT + by_variance.unsqueeze(-2) * stretch
            parts.append(both.unsqueeze(-1))
        return torch.cat(parts, -1)

    def of_columns(self):
        """Return weighted sums over rows of slopes and blocks of the columns."""
        found, widths = self.found, 2 * self.columns.variance
        z = self.z.flatten(0, 1)
        squares, shape = z**2, (z.shape[-1], z.shape[-1])
        in_logs = self._summed(found.variance, squares) * widths
        means = self._summed(found.mm, _products(z, z)).unflatten(-1, shape)
        mixed = self._summed(found.mv, _products(z, squares)).unflatten(-1, shape)
        mixed = mixed * widths.unsqueeze(-2)
        logs = self._summed(found.vv, _products(squares, squares)).unflatten(-1, shape)
        logs = logs * widths.unsqueeze(-1) * widths.unsqueeze(-2) + torch.diag_embed(2 * in_logs)
        block = torch.cat([torch.cat([means, mixed], -1), torch.cat([mixed.mT, logs], -1)], -2)
        slope = torch.cat([self._summed(found.mean, z), in_logs], -1)
        if not found.m_own:
            return slope, block
        own, curved = found.of_own(self.jets, self.by_row)
        sides = [
            torch.cat([self._summed(by_mean, z), self._summed(by_variance, squares) * widths], -1)
            for by_mean, by_variance in zip(found.m_own, found.v_own, strict=True)
        ]
        side = torch.stack(sides, -2)
        block = torch.cat([torch.cat([block, side.mT], -1), torch.cat([side, curved], -1)], -2)
        return torch.cat([slope, own], -1), block

    def _summed(self, of_cells, of_rows):
        """Return weighted sums over nodes and rows of products, (n_columns, ...)."""
        return (of_cells * self.by_row.unsqueeze(-1)).flatten(0, 1).mT @ of_rows


def _sums(parts):
    """Return the sums of tuples of tensors, entry by entry."""
    return tuple(sum(entries[1:], entries[0]) for entries in zip(*parts, strict=True))


def _products(one, other):
    """Return products of all pairs of a row's numbers, flat."""
    return (one.unsqueeze(-1) * other.unsqueeze(-2)).flatten(-2)


def rows_of_cells(rows: Side, slope: Tensor, block: Tensor, weights: Tensor):
    """Add prior and entropy of z_n ~ N(0, I) to the rows' slopes and blocks, and weigh them."""
    prior = torch.cat([-rows.mean, 1 - rows.variance], -1)
    curved = torch.cat([torch.ones_like(rows.variance), 2 * rows.variance], -1)
    each = weights.unsqueeze(-1)
    return each * (slope + prior), each.unsqueeze(-1) * (block - torch.diag_embed(curved))


def scattered(found, where: Tensor, size: int, weights: Tensor):
    """Order what concerns q(theta) by its raw parameters.

    Parameters
    ----------
    found : tuple
        What `LinearCells.derivatives` returns.
    where : Tensor of shape (n_columns, 2 (k + p + 1) + r)
        Places of the columns' numbers in q(theta)'s raw parameters; columns may share some.
    size : int
        Count of these parameters.
    weights : Tensor of shape (n_rows,)

    Returns
    -------
    tuple
        Slopes and blocks of the rows as found, then as `ClosedForms.row_derivatives` has it.
    """
    slope, block, border, slopes, blocks = found
    C = slope.new_zeros(*slope.shape, size)
    C.index_add_(-1, where.flatten(), weights[:, None, None] * border.flatten(2))
    g_globals = slope.new_zeros(size).index_put_((where,), slopes, accumulate=True)
    pairs = where.unsqueeze(-1), where.unsqueeze(-2)
    H_globals = slope.new_zeros(size, size).index_put_(pairs, blocks, accumulate=True)
    return slope, block, C, g_globals, H_globals
