"""Second derivatives of globals few of which meet in a term: some backward passes, not one each.

Globals i and j that no row's term holds together have no mixed derivative. So one pass through the
sum of the slopes of several globals gives entry (k, i) of each, wherever k meets one of them only
(Curtis, Powell & Reid 1974, "On the estimation of sparse Jacobian matrices"); globals that meet
many have a pass of their own, and symmetry gives the rest. Of 24 globals of six questions, four
each, that makes 8 passes of 48. The mixed derivatives with a row's own factor are found from its
side: every row has a copy of q(theta)'s parameters, in which that of the row's slopes is one pass
for each number of its factor.
"""

from functools import lru_cache

import torch
from torch import Tensor

from skavi._curvature import gradient_of, jacobian

#: Of all passes: where more are left, the copies do not pay.
_FEWER = 0.5
#: Of a parameter's curvature along a direction: what rounding leaves, and what all of them hide.
_ROUNDING = 1e-7


def sparse_derivatives(problem, raw: Tensor, raw_globals: Tensor) -> tuple[Tensor, ...] | None:
    """Return what `_curvature` needs of the rows' weighted terms, or None where nothing is saved.

    Returns
    -------
    (g, H, C, g_globals, H_globals) or None
    """
    objective, nodes = problem.objective, problem.nodes
    meet = objective.meet
    if meet is None or problem.frozen_globals or not objective.batched:
        return None
    if nodes is None or nodes.locals_.shape[1] != 1 or not isinstance(problem.rows.X, Tensor):
        return None
    meet, groups = _of_parameters(meet.to(raw.device))
    n_row, n_global = raw.shape[-1], raw_globals.numel()
    if n_row + len(groups) + 1 > _FEWER * (n_row + n_global):
        return None
    try:
        return _differentiated(problem, raw, raw_globals, meet, groups.to(raw))
    except RuntimeError:  # an operation without a batching rule
        return None


def _differentiated(problem, raw, raw_globals, meet, groups):
    objective, X, weights = problem.objective, problem.rows.X, problem.rows.weights
    n_row = raw.shape[-1]

    def term(raw, raw_globals, x):
        return objective.row_terms(raw[None], raw_globals, x[None], problem.nodes)[0]

    with torch.enable_grad():
        raw = raw.detach().requires_grad_(True)
        copies = raw_globals.detach().expand(len(raw), -1).clone().requires_grad_(True)
        value = (weights * torch.func.vmap(term)(raw, copies, X)).sum()
        g, slopes = gradient_of(value, (raw, copies), create_graph=True)
        some = torch.linspace(0.5, 1.5, groups.shape[1]).to(raw)  # any direction, for a proof
        sought = torch.cat([groups, some[None]]) @ slopes.sum(0)
        of_row, border = jacobian(
            torch.cat([g.sum(0), sought]), (raw, copies), len(raw) * problem.numbers_a_row
        )
    H, C = (part[:n_row].movedim(0, -1).mT.contiguous() for part in (of_row, border))
    H_globals = _spread(border[n_row:-1].sum(1), meet, groups)
    along = border[-1].sum(0)
    size = H_globals.abs() @ some + along.abs()
    known = _ROUNDING * (size + _ROUNDING * size.max())
    if not bool(((H_globals @ some - along).abs() <= known).all()):
        return None  # some that meet were not seen to
    return g.detach(), H, C, slopes.detach().sum(0), H_globals


def _of_parameters(meet):
    """Return which parameters of q(theta), means and log sds, meet, and groups of them."""
    groups, size = _groups(tuple(map(tuple, meet.tolist()))), len(meet)
    whole = (meet | torch.eye(size).to(meet)).repeat(2, 2)
    masks = torch.zeros(2 * len(groups), 2 * size, device=meet.device)
    for i, group in enumerate(groups):
        masks[2 * i, group] = 1.0
        masks[2 * i + 1, [size + j for j in group]] = 1.0
    return whole, masks


@lru_cache(maxsize=16)
def _groups(pairs: tuple[tuple[bool, ...], ...]) -> list[list[int]]:
    """Return groups of globals no two of which meet each other or another one, but for hubs.

    Hubs, which meet many, are alone; as many of them as make the fewest groups.
    """
    meet = torch.tensor(pairs)
    order = meet.sum(1).argsort(descending=True, stable=True).tolist()
    found = [_groups_without(meet, order[:n], order[n:]) for n in range(len(order) + 1)]
    return min(found, key=len)


def _groups_without(meet, hubs, others):
    near = meet[others][:, others].to(torch.float64) + torch.eye(len(others))
    apart = (near @ near == 0).tolist()
    groups: list[list[int]] = []
    for i in range(len(others)):
        group = next((each for each in groups if all(apart[i][j] for j in each)), None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    return [[hub] for hub in hubs] + [[others[i] for i in group] for group in groups]


def _spread(sums, meet, groups):
    """Return the matrix whose columns, summed over each group, are `sums`, (n_groups, size)."""
    matrix = (groups.mT @ sums).mT * meet
    alone = groups[groups.sum(1) == 1].sum(0) > 0
    return torch.where(alone[:, None], matrix.mT, matrix)
