"""One step of Adam, in place: of whole tensors, or of some rows of a table, each row on its own."""

from torch import Tensor
from torch.optim.adam import adam

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
    gradient: Tensor,
    table: Tensor,
    first: Tensor,
    second: Tensor,
    count: Tensor,
    lengths: Tensor,
    rate: float,
) -> None:
    """Move rows of a table, in natural steps of these lengths, by their own moments and counts.

    The gradient, too, is in natural steps. The values move last.
    """
    first_decay, second_decay = _BETAS
    tables = first, second, count, table
    m, v, n, value = (whole.index_select(0, rows) for whole in tables)
    n += 1
    m.lerp_(gradient, 1 - first_decay)
    v.lerp_(gradient.square(), 1 - second_decay)
    correction = (1 - second_decay**n).sqrt()
    step = lengths.index_select(0, rows).mul_(rate * correction / (1 - first_decay**n)).mul_(m)
    value.addcdiv_(step, v.sqrt().add_(_EPSILON * correction))
    for whole, moved in zip(tables, (m, v, n, value), strict=True):
        whole.index_copy_(0, rows, moved)
