"""One step of Adam, in place, of whole tensors or of some rows of a table."""

import torch
from torch import Tensor
from torch.optim.adam import adam

#: Decay of the first and second moment: the defaults of Kingma & Ba (2015).
_BETAS = (0.9, 0.999)
#: Nats: smaller slopes are mostly rounding. Threads differ by 2.5e-5 with 1e-8, by 1.6e-8 with 1e-6
#: (bc463e2).
_EPSILON = 1e-6
_FUSED = {"cpu", "cuda"}


def move_whole(
    gradients: list[Tensor],
    values: list[Tensor],
    moments: list[tuple[Tensor, Tensor]],
    counts: list[Tensor],
    rate: float,
) -> None:
    """Move tensors along their gradients, in one pass over each with torch's fused kernel."""
    if not values:
        return
    first_decay, second_decay = _BETAS
    adam(
        values,
        gradients,
        [first for first, _ in moments],
        [second for _, second in moments],
        [],
        counts,
        fused=values[0].device.type in _FUSED,
        amsgrad=False,
        beta1=first_decay,
        beta2=second_decay,
        lr=rate,
        weight_decay=0.0,
        eps=_EPSILON,
        maximize=True,
    )


def move_rows(
    rows: Tensor,
    slopes: Tensor,
    values: Tensor,
    steps: Tensor,
    table: Tensor,
    moments: tuple[Tensor, Tensor],
    count: Tensor,
    rate: float,
) -> None:
    """Move rows of a table, each with its own moments and count; `steps` are natural lengths.

    `values` holds the rows' values before the step and is not changed. The table is updated last.
    """
    first_decay, second_decay = _BETAS
    tables = *moments, count
    m, v, n = (whole.index_select(0, rows) for whole in tables)
    n += 1
    m.lerp_(slopes, 1 - first_decay)
    v.lerp_(slopes.square(), 1 - second_decay)
    correction = (1 - second_decay**n).sqrt()
    step = (rate * correction / (1 - first_decay**n) * steps).mul_(m)
    moved = torch.addcdiv(values, step, v.sqrt().add_(_EPSILON * correction))
    for whole, new in zip((*tables, table), (m, v, n, moved), strict=True):
        whole.index_copy_(0, rows, new)
