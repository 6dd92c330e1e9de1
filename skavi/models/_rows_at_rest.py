"""A row's own factor given q(theta), as functions read it: where Newton's method comes to rest.

Means and log sds move together from the first step on. Densities of Student t cells have several
modes: ten such steps from where Newton's method of means alone had led, a quarter of 150 rows were
still up to nine nats below; from a wide start none was.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from skavi._numerics.aligned import aligned
from skavi._numerics.positive_definite import positive
from skavi._numerics.quadrature import few_node_rule, product_rule, spherical_rule
from skavi.models._linear_cells import rows_of_cells
from skavi.models._poisson_rates import Side

#: Log sd at the start. From 0, means stay at 0 for long, and a row in 25 of Student t cells ends in
#: a cycle; from -6 rows end where they do from -1.
_WIDE = -1.0
#: Steps of a row at most (ten are usual), and the longest, in prior sds and in log sds.
_STEPS, _LONGEST = 30, 1.0
#: Steps after which a row goes half as far: one of 100,000 of Student t cells went to and fro
#: between two places, seven nats below the best, to the last of its steps.
_FULL_STEPS = 15
#: Nats that a step need not gain, when it is the last.
_STILL = 1e-8
#: The same of the first steps, without nodes of latents. Not measured: order of magnitude.
_NEAR = 1e-2
#: Nodes a latent, for so many latents at most: with five, Student t cells read so are 1e-5 nats a
#: row below the best, with three 5e-4. Beyond, the nodes of a sphere.
_NODES = (5, 5, 3, 3)
#: The same for second derivatives, but of narrow cells. Five for each of two take 1.4 times as
#: long, for 2e-5 of the largest in place of 2e-4.
_CURVED = (5, 4, 3, 3)
#: Latents whose second derivatives take a rule of degree 5 over all at once: 500 answers of 20
#: columns take .4 of the seconds with four latents, .16 with six. With two, its seven nodes would
#: be off by 1.2e-3 of the largest at wide factors.
_TOGETHER = range(3, 8)


def few_nodes(k: int, like: Tensor, counts: tuple[int, ...] = _NODES) -> tuple[Tensor, Tensor]:
    """Return nodes of a row's latents, shape (n_nodes, k), and weights.

    `counts`: how many a latent, for one, two, ... latents.
    """
    rule = product_rule((counts[k - 1],) * k) if k <= len(counts) else spherical_rule(16 * k, k, 0)
    return _like(rule, like)


def nodes_of_curvature(k: int, like: Tensor, narrow: bool) -> tuple[Tensor, Tensor]:
    """Return as few nodes as do for second derivatives beside exact slopes."""
    if k in _TOGETHER:
        return _like(few_node_rule(k), like)
    return few_nodes(k, like, _NODES if narrow else _CURVED)


def _like(rule, like):
    """Return nodes and weights as tensors of a dtype, on a device."""
    nodes, weights = (aligned(each).to(like) for each in rule)
    return nodes, weights


def rows_at_rest(slopes: Callable, n_rows: int, k: int, like: Tensor) -> Side:
    """Return the factors at which rows are at rest, each by itself.

    Parameters
    ----------
    slopes : callable
        From factors, places of their rows, nodes and weights to slopes and Hessians of expected log
        densities in means and log sds. Without nodes (None, None): as if predictors were normal.
    n_rows, k : int
        Rows, and latents of each.
    like : Tensor
        Of the dtype and on the device of what is returned.
    """
    mean, log_sd = like.new_zeros(n_rows, k), like.new_full((n_rows, k), _WIDE)
    _climb(mean, log_sd, slopes, (None, None), _NEAR)
    _climb(mean, log_sd, slopes, few_nodes(k, like), _STILL)
    return Side(mean, (2 * log_sd).exp())


def _climb(mean, log_sd, slopes, nodes, still):
    """Move rows, in place, until another step would gain no more than `still` nats."""
    k, left = mean.shape[1], torch.arange(len(mean), device=mean.device)
    for i in range(_STEPS if k else 0):
        rows = Side(mean[left], (2 * log_sd[left]).exp())
        found = slopes(rows, left, *nodes)
        slope, block = rows_of_cells(rows, found[0], found[1], mean.new_ones(len(left)))
        finite = (slope.sum(-1) + block.sum((-1, -2))).isfinite()
        left, slope, block = left[finite], slope[finite], block[finite]
        step = torch.linalg.solve(positive(-block), slope.unsqueeze(-1)).squeeze(-1)
        gain = 0.5 * (slope * step).sum(-1)
        step = step * (_LONGEST / step.abs().amax(-1, keepdim=True)).clamp_max(1.0)
        step = step if i < _FULL_STEPS else 0.5 * step
        mean[left] += step[:, :k]
        log_sd[left] += step[:, k:]
        left = left[gain > still]
        if not len(left):
            break
