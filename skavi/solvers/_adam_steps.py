"""One step of Adam, in place: of whole tensors, or of some rows of a table, each row on its own."""

import torch
from torch import Tensor
from torch.optim.adam import adam

#: Decay of the first and second moment: the defaults of Kingma & Ba (2015).
_BETAS = (0.9, 0.999)
_EPSILON = 1e-6  # nats: slopes below it are no direction to go, but mostly rounding
_FUSED = {"cpu", "cuda"}


def move_whole(
    gradients: list[Tensor],
    values: list[Tensor],
    moments: list[tuple[Tensor, Tensor]],
    counts: list[Tensor],
    rate: float,
) -> None:
    """Move tensors up their gradients: one pass over each, in torch's fused kernel."""
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
    """Move rows of a table, in natural steps of these lengths, by their own moments and counts.

    `values` is what stands in the rows, and stays as it is. The table moves last.
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
