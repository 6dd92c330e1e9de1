"""Second-order steps of a count model in rows and columns together.

The ELBO's Hessian has a block for each row, one for each column, and what couples rows and columns.
Rows are eliminated: conjugate gradients solve for the columns' step, at the cost of a few passes
over the cells a product. Their preconditioner holds the columns' blocks and the curvature along
affine changes of the latents, which is what crawls (`Frame`). Where the curvature turns negative,
or the step leaves the reach in which a second-order model holds, it ends (Steihaug 1983, "The
conjugate gradient method and trust regions in large scale optimization"); a step that does not gain
what it should goes back along the path of conjugate gradients.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from skavi._data.process_ranks import total
from skavi._numerics.positive_definite import least_solution
from skavi.models._poisson_frame import Frame, Prior, exponentials, positive
from skavi.models._poisson_rates import Counts, Side, curvature
from skavi.models._poisson_rows import moved, system, values

#: Products of a step: five to ten are usual.
_MOST_PRODUCTS = 100
#: Reduction of the residual at which a step is exact enough: at first, and at last (finer ones
#: gain nothing: how rows and columns are coupled is itself known to first order only).
_ROUGH, _FINE = 0.5, 0.03
#: Root mean square of the moves of latents (prior sds) and of log sds in a step, at most.
_REACH = 1.0
#: Share of the promised gain that a step must bring; of the ELBO, what is rounding.
_SUFFICIENT, _ROUNDING = 0.1, 1e-11
_HALVINGS = 30
#: Cells at once in products with the Hessian: 1.6 MB, to stay in the cache.
_CELLS = 200_000
#: Nats a row, in all, from which on a change of the latents is made before the step.
_WORTH = 1e-6
#: Nats a row: columns' own steps that promise less are left out, and after one that gains more rows
#: come next. Far from the end a model of second order holds nowhere for all rows and columns, but
#: for one column at a time: 87 x 114 counts with five components take 13 sweeps so, 33 without.
_LITTLE, _MUCH = 1e-3, 10.0


@dataclass(frozen=True)
class Point:
    """Factors of all rows and columns, with their expected rates and ELBO.

    Attributes
    ----------
    rows, columns : Side
    rates : Tensor of shape (n_rows, n_columns)
    elbo : float
        Up to a constant, in nats.
    """

    rows: Side
    columns: Side
    rates: Tensor
    elbo: float


class Step:
    """One step from a point; `end` is where it leads, `promised` the gain of its second order."""

    def __init__(self, counts: Counts, prior: Prior, rows: Side, columns: Side):
        self.counts, self.prior = counts, prior
        self.start = self._turned(self._at(rows, columns))
        self.end, self.promised = self._step(self.start)

    def _at(self, rows, columns):
        return self._point(rows, columns, self.counts.rates(rows, columns))

    def _point(self, rows, columns, rates):
        weighted = self.counts.weights @ (
            self.counts.cells.values @ columns.mean[:, -1]
            + values(self.counts, columns, rows, rates)
        )
        rest = self._prior_and_entropy(columns).sum()
        return Point(rows, columns, rates, float(total(weighted) + rest))

    def _prior_and_entropy(self, columns):
        """Return what a column's factor adds to the ELBO beside its cells."""
        squares = self.prior.precision * ((columns.mean - self.prior.loc) ** 2 + columns.variance)
        return -0.5 * (squares - columns.variance.log()).sum(-1)

    def _frame(self, point):
        return Frame.of(self.prior, self.counts, point.rows, point.columns, point.rates)

    def _turned(self, point):
        """Return the point after the best affine change of the latents, if that gains."""
        frame, k = self._frame(point), self.counts.n_latents(point.rows)
        turned, gain = frame.turned()
        if not gain > _WORTH * float(total(self.counts.weights.sum())):
            return point
        of_rows, of_columns = point.rows.variance.clone(), point.columns.variance.clone()
        of_rows[:, :k] *= frame.row_precision / turned.row_precision
        of_columns[:, :k] *= frame.column_precision / turned.column_precision
        there = self._at(Side(turned.z[:, :-1], of_rows), Side(turned.w, of_columns))
        return there if there.elbo > point.elbo else point

    def _step(self, point):
        """Columns alone while that brings much, then rows and columns together."""
        n_rows = float(total(self.counts.weights.sum()))
        slope, blocks = self._columns(point)
        step = torch.linalg.solve(blocks, slope.unsqueeze(-1)).squeeze(-1)
        if 0.5 * float((slope * step).sum()) > _LITTLE * n_rows:
            point, before = self._alone(point, step, (slope * step).sum(-1)), point
            if point.elbo > before.elbo + _MUCH * n_rows:
                return point, point.elbo - before.elbo
            slope, blocks = self._columns(point)
        return self._together(point, slope, blocks)

    def _alone(self, point, step, slope):
        """Return the point after every column's own Newton step, rows as they are."""
        weights, rows, start = self.counts.weights.unsqueeze(-1), point.rows, point.columns
        z = torch.nn.functional.pad(rows.mean, (0, 1), value=1.0)
        pull = total((self.counts.cells.values * weights).mT @ z)

        def value(columns, rates):
            fit = (pull * columns.mean).sum(-1) - total((weights * rates).sum(0))
            return fit + self._prior_and_entropy(columns)

        def at(columns):
            rates = self.counts.rates(rows, columns)
            return rates, value(columns, rates)

        there, rates, _, fine = moved(start, step, slope, value(start, point.rates), at)
        if bool(fine.all()):
            return self._point(rows, there, rates)
        pairs = (there.mean, start.mean), (there.variance, start.variance)
        fine = fine.unsqueeze(-1)
        return self._at(rows, Side(*(torch.where(fine, new, old) for new, old in pairs)))

    def _together(self, point, slope, blocks):
        own, hessian = system(self.counts, point.columns, point.rows, point.rates)
        coupled = _Coupled(self.counts, point, torch.linalg.inv(hessian))
        ahead = coupled.settled(own)  # rows to their best, given the columns
        gradient = slope - coupled.to_columns(ahead)
        precondition = _Preconditioner(blocks, self._frame(point))
        path = _path(gradient, blocks, coupled, precondition, len(self.counts))
        reach = path[-1].reach
        for _ in range(_HALVINGS):
            move = _along(path, reach)
            there = self._at(*_moved(point, move.of_columns, move.of_rows + ahead))
            promised = 0.5 * float((gradient * move.of_columns).sum())
            if there.elbo >= point.elbo + _SUFFICIENT * promised - _ROUNDING * abs(point.elbo):
                return there, 0.5 * float((gradient * path[-1].of_columns).sum())
            reach *= 0.5
        return point, 0.5 * float((gradient * path[-1].of_columns).sum())

    def _columns(self, point):
        """Return the columns' gradient (D, 2 p), and their blocks of the Hessian."""
        rows, columns, prior, counts = point.rows, point.columns, self.prior, self.counts
        k, weights = counts.n_latents(rows), counts.weights.unsqueeze(-1)
        weighted = (point.rates * weights).mT.contiguous()
        z = torch.nn.functional.pad(rows.mean, (0, 1), value=1.0)
        away, bent = map(total, curvature(weighted, columns, rows.first(k), z[:, k:]))
        fit = total((counts.cells.values * weights).mT @ z)
        squares = prior.precision * columns.variance
        pull = [fit - prior.precision * (columns.mean - prior.loc), 1 - squares]
        own = torch.diag_embed(torch.cat([prior.precision, 2 * squares], -1))
        return torch.cat(pull, -1) - away, bent + own


@dataclass(frozen=True)
class _Move:
    """A move of the columns' means and log sds, what rows do at it, and how far it reaches."""

    of_columns: Tensor
    of_rows: Tensor
    reach: float

    @classmethod
    def of(cls, of_columns, of_rows, n_rows):
        k = of_rows.shape[-1] // 2
        squares = torch.stack([t.square().sum() for t in of_rows.split(k, -1)])
        of_latents = total(squares) / max(1, n_rows * k)
        reach = torch.cat(
            [of_latents, of_columns[:, of_columns.shape[-1] // 2 :].square().mean().reshape(1)]
        )
        return cls(of_columns, of_rows, math.sqrt(float(reach.max())))


def _path(gradient, blocks, coupled, precondition, n_rows):
    """Return the moves that conjugate gradients go through, to the end of the step."""
    n_rows = int(total(torch.tensor(n_rows)))
    path = [_Move.of(torch.zeros_like(gradient), torch.zeros_like(coupled.settled_rows), n_rows)]
    residual = gradient
    direction = precondition(residual)
    size = first = float((residual * direction).sum())
    exact = max(_FINE, min(_ROUGH, math.sqrt(first / max(1, n_rows)))) ** 2 * first
    for _ in range(_MOST_PRODUCTS if first > 0 else 0):
        response = coupled.response(direction)
        product = _times(blocks, direction) + coupled.to_columns(response)
        bent, here = float((direction * product).sum()), path[-1]
        length = size / bent if bent > 0 else math.inf
        ahead = _Move.of(direction, response, n_rows)
        if bent > 0:
            there = _Move.of(
                here.of_columns + length * direction, here.of_rows + length * response, n_rows
            )
        if not bent > 0 or there.reach > _REACH:
            longest = (_REACH + here.reach) / max(ahead.reach, 1e-300)
            path.append(_edge(here, ahead, min(length, longest), n_rows))
            break
        path.append(there)
        residual = residual - length * product
        conditioned = precondition(residual)
        size, before = float((residual * conditioned).sum()), size
        if not size > exact:
            break
        direction = conditioned + size / before * direction
    return path


def _edge(here, ahead, longest, n_rows):
    """Return the move along a direction that ends at the edge of the reach."""
    low, high = 0.0, longest
    for _ in range(20):
        middle = 0.5 * (low + high)
        move = _between(here, ahead, middle, n_rows)
        low, high = (middle, high) if move.reach < _REACH else (low, middle)
    return _between(here, ahead, low, n_rows)


def _between(here, ahead, length, n_rows):
    return _Move.of(
        here.of_columns + length * ahead.of_columns,
        here.of_rows + length * ahead.of_rows,
        n_rows,
    )


def _along(path, reach):
    """Return the place on a path that reaches so far."""
    if reach >= path[-1].reach:
        return path[-1]
    before = max(i for i, move in enumerate(path) if move.reach <= reach)
    one, other = path[before], path[before + 1]
    share = (reach - one.reach) / max(other.reach - one.reach, 1e-300)
    return _Move(
        torch.lerp(one.of_columns, other.of_columns, share),
        torch.lerp(one.of_rows, other.of_rows, share),
        reach,
    )


def _moved(point, of_columns, of_rows):
    """Return rows and columns after a move; what it changes of the latents' frame goes by exp.

    Along a straight line a turn of rows and columns would stretch both.
    """
    rows, columns = point.rows, point.columns
    k, p = of_rows.shape[-1] // 2, columns.mean.shape[-1]
    z = torch.nn.functional.pad(rows.mean, (0, 1), value=1.0)
    change = _change_within(point, of_columns, of_rows)
    turn = torch.nn.functional.pad(z @ change.mT, (0, k))
    turned = torch.nn.functional.pad(columns.mean[:, :k] @ change, (0, p))
    rows, columns = rows.moved(of_rows + turn), columns.moved(of_columns - turned)
    matrix, inverse = exponentials(change)
    z = torch.nn.functional.pad(rows.mean, (0, 1), value=1.0) @ inverse.mT
    return Side(z[:, :-1], rows.variance), Side(columns.mean @ matrix, columns.variance)


def _change_within(point, of_columns, of_rows):
    """Return the change (k, p) of the latents that is nearest to a move, in log rates.

    The variances count as well: a component that all but dies out is not stretched.
    """
    rows, k, p = point.rows, of_rows.shape[-1] // 2, point.columns.mean.shape[-1]
    columns = point.columns.first(k)
    loadings = columns.mean
    z = torch.nn.functional.pad(rows.mean, (0, 1), value=1.0)
    at_rows, at_columns = point.rates.sum(-1, keepdim=True), total(point.rates.sum(0)).unsqueeze(-1)
    spread = torch.nn.functional.pad((at_rows * rows.variance).sum(0), (0, 1))
    second = total((at_rows * z).mT @ z + torch.diag(spread))
    widths = (at_columns * loadings).mT @ loadings
    widths = widths + torch.diag((at_columns * columns.variance).sum(0))
    of_z, of_w = second / total(at_rows.sum()), widths / at_columns.sum()
    left = torch.kron(widths, of_z) + torch.kron(of_w, second)
    right = (at_columns * loadings).mT @ of_columns[:, :p] @ of_z
    right = right - of_w @ total((at_rows * of_rows[:, :k]).mT @ z)
    return least_solution(left, right.reshape(-1)).reshape(k, p)


def _times(blocks, vectors):
    return (blocks @ vectors.unsqueeze(-1)).squeeze(-1)


class _Preconditioner:
    """Inverse of the columns' blocks, and of the curvature along changes of the latents."""

    def __init__(self, blocks, frame):
        self.inverse = torch.linalg.inv(blocks)
        sizes, vectors = positive(frame.system()[1])
        self.shared = (vectors / sizes.sqrt()).mT @ frame.tangents().flatten(1)

    def __call__(self, vectors):
        along = self.shared.mT @ (self.shared @ vectors.reshape(-1))
        return _times(self.inverse, vectors) + along.reshape(vectors.shape)


class _Coupled:
    """How rows and columns are coupled: second derivatives of minus the ELBO, times vectors.

    Those of log E are taken as if it were m u + (m^2 t^2 + s^2 u^2 + s^2 t^2) / 2, but for the
    first order in s^2 t^2 of what does not vanish with the means, so that components that all but
    die out are seen right. The blocks are exact: the last steps gain a factor of about s t each.
    """

    def __init__(self, counts, point, inverse):
        self.counts, self.inverse, self.rates = counts, inverse, point.rates
        self.columns = point.columns
        k = self.k = counts.n_latents(point.rows)
        self.p = counts.n_known
        m, known = point.rows.mean.split([k, self.p], -1)
        s2 = point.rows.variance[:, :k]
        self.m, self.s2 = m, s2
        u, t2 = (each[:, :k] for each in (point.columns.mean, point.columns.variance))
        ones = torch.ones_like(m[:, :1])
        self.of_rows = torch.cat([m, s2, m**2 + s2, known, known**2, ones], -1)
        self.of_columns = torch.cat([u, t2, u**2 + t2], -1)
        self.settled_rows = torch.zeros_like(inverse[..., 0])
        size = max(1, _CELLS // max(1, len(self.columns)))
        self.blocks = [slice(i, i + size) for i in range(0, max(1, len(m)), size)]
        weights = counts.weights.unsqueeze(-1)
        self.weighted = point.rates if bool((weights == 1).all()) else point.rates * weights

    def settled(self, gradient):
        """Return the rows' own Newton step."""
        return _times(self.inverse, gradient)

    def response(self, move):
        """Return what rows do at a move of the columns (D, 2 p), shape (n_rows, 2 k)."""
        k, p, m, s2 = self.k, self.p, self.m, self.s2
        u, (t2, of_known, v) = self.columns.mean[:, :k], self.columns.variance.split([k, p, 1], -1)
        along, known, mean, log_t, log_known, log_v = move.split([k, p, 1, k, p, 1], -1)
        widening, mean_moved = 2 * t2 * log_t, mean + v * log_v
        parts = [along, u * along, 0.5 * widening, known, of_known * log_known, mean_moved]
        moves = torch.cat(parts, -1).mT
        at_cells = [
            self.rates[b] * (self.of_rows[b] @ moves) @ self.of_columns for b in self.blocks
        ]
        direct = torch.cat([along, widening, 2 * u * along + widening], -1)
        direct = self.rates @ torch.cat([direct, t2 * along, 2 * t2 * widening], -1)
        slope, of_m, of_s = (torch.cat(at_cells) + direct[:, : 3 * k]).split(k, -1)
        slope = slope + s2 * direct[:, 3 * k : 4 * k]
        of_s = of_s + s2 * direct[:, 4 * k :]
        pull = self.counts.cells.values @ along
        pushed = torch.cat([slope + m * of_m - pull, s2 * of_s], -1)
        return -self.settled(pushed)

    def to_columns(self, move):
        """Return what a move of the rows (n_rows, 2 k) does to the columns' gradient, negative."""
        k, p, m, s2 = self.k, self.p, self.m, self.s2
        u, (t2, of_known, v) = self.columns.mean[:, :k], self.columns.variance.split([k, p, 1], -1)
        along, log_s = move.split(k, -1)
        widening = 2 * s2 * log_s
        moves, columns = torch.cat([along, m * along, 0.5 * widening], -1), self.of_columns.mT
        weights = self.counts.weights.unsqueeze(-1)
        at_cells = sum(
            (self.weighted[b] * (moves[b] @ columns)).mT @ self.of_rows[b] for b in self.blocks
        )
        direct = torch.cat([along, widening, 2 * m * along + widening], -1)
        direct = self.weighted.mT @ torch.cat([direct, s2 * along, 2 * s2 * widening], -1)
        pull = self.counts.cells.values.mT @ (weights * along)
        at_cells, direct, pull = (total(each) for each in (at_cells, direct, pull))
        slope, of_u, of_t = (at_cells[:, : 3 * k] + direct[:, : 3 * k]).split(k, -1)
        slope = slope + t2 * direct[:, 3 * k : 4 * k]
        of_t = of_t + t2 * direct[:, 4 * k :]
        known, squares, mean = at_cells[:, 3 * k :].split([p, p, 1], -1)
        of_sds = [t2 * of_t, of_known * squares, v * mean]
        return torch.cat([slope + u * of_u - pull, known, mean, *of_sds], -1)
