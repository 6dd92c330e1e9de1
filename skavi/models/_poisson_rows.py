"""Newton's method on the rows of a count model, each a small concave problem given the columns."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from skavi.models._poisson_rates import Counts, Side, curvature

#: Most steps a row: some five are usual, one for each factor e that a rate starts too high.
_STEPS = 200
#: Nats that a step need not gain, when it is the last: the next gains about the square of that.
_STILL = 1e-10
#: A mean's longest move, in prior sds, and a log sd's, in one step. Not measured.
_LONGEST = 2.0
#: Share of its slope that a step gains at least (Nocedal & Wright 2006, 3.1), but for rounding.
_SUFFICIENT, _ROUNDING = 1e-4, 1e-13
#: Halvings of a step before the row is left where it is.
_HALVINGS = 40
#: Rows x columns at once: 8 MB an array. Not measured: order of magnitude.
_CELLS = 1_000_000


def fitted(counts: Counts, columns: Side, start: Side, steps: int = _STEPS) -> Side:
    """Return every row's best factor given the columns' factors, by at most `steps` steps."""
    size = max(1, _CELLS // max(1, counts.cells.values.shape[1]))
    parts = [slice(first, first + size) for first in range(0, len(counts), size)]
    done = [_fitted(counts[part], columns, start[part], steps) for part in parts]
    if not done:
        return start
    return Side(*(torch.cat(each) for each in zip(*done, strict=True)))


def system(counts: Counts, columns: Side, rows: Side, rates: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients (n_rows, 2 k) of the rows' terms, and their negative Hessians."""
    k = counts.n_latents(rows)
    rows = rows.first(k)
    gradient, hessian = curvature(rates, rows, columns.first(k))
    fit = counts.cells.values @ columns.mean[:, :k]
    prior = torch.cat([fit - rows.mean, 1 - rows.variance], -1)
    own = torch.cat([torch.ones_like(rows.variance), 2 * rows.variance], -1)
    return prior - gradient, hessian + torch.diag_embed(own)


def values(counts: Counts, columns: Side, rows: Side, rates: Tensor) -> Tensor:
    """Return what depends on a row's factor of its term, shape (n_rows,), in nats."""
    numbers = rows.mean.shape[-1]
    fit = ((counts.cells.values @ columns.mean[:, :numbers]) * rows.mean).sum(-1) - rates.sum(-1)
    rows = rows.first(counts.n_latents(rows))
    return fit - 0.5 * (rows.mean**2 + rows.variance - rows.variance.log()).sum(-1)


def moved(start: Side, step: Tensor, slope: Tensor, value: Tensor, at: Callable):
    """Return factors after their own steps, each halved until its value rises as it should.

    Parameters
    ----------
    start : Side
    step : Tensor of shape (n, 2 p)
        In means and log sds.
    slope : Tensor of shape (n,)
        Gradient times step.
    value : Tensor of shape (n,)
        Terms of the ELBO of each factor, at the start.
    at : callable
        Rates and values of factors.

    Returns
    -------
    there : Side
    rates, new : Tensor
        What `at` says of them.
    fine : Tensor of shape (n,)
        Whose value rose.
    """
    length = (_LONGEST / step.abs().amax(-1)).clamp_max(1.0)
    for _ in range(_HALVINGS):
        there = start.moved(length.unsqueeze(-1) * step)
        rates, new = at(there)
        least = value + _SUFFICIENT * length * slope - _ROUNDING * (1 + value.abs())
        refused = ~(new >= least)  # also where it is not a number
        if not bool(refused.any()):
            break
        length = torch.where(refused, 0.5 * length, length)
    return there, rates, new, ~refused


def _at(counts, columns, rows):
    rates = counts.rates(rows, columns)
    return rates, values(counts, columns, rows, rates)


def _fitted(counts, columns, start, steps):
    mean, variance = start.mean.clone(), start.variance.clone()
    left, rows = torch.arange(len(mean), device=mean.device), start
    rates, value = _at(counts, columns, rows)
    for _ in range(steps):
        gradient, hessian = system(counts, columns, rows, rates)
        step = torch.linalg.solve(hessian, gradient.unsqueeze(-1)).squeeze(-1)
        slope = (gradient * step).sum(-1)
        there, rates, new, fine = moved(rows, step, slope, value, partial(_at, counts, columns))
        mean[left[fine]], variance[left[fine]] = there.mean[fine], there.variance[fine]
        more = fine & (0.5 * slope > _STILL)
        if not bool(more.any()):
            break
        left, rows, counts, rates, value = (t[more] for t in (left, there, counts, rates, new))
    return mean, variance
