"""Newton's method on documents' own problems in a topic model: to a maximum, to rounding."""

import torch
from torch import Tensor

from skavi.models._topic_documents import Documents

#: Most steps a document; some ten are usual, the rest is for hard ones. Not measured.
_NEWTON_STEPS = 200
_STILL, _ROUNDING = 1e-13, 4e-15  # nats, and relative, that a step need not gain
#: First, least and most damping: 1 is the prior's own precision in these units. Not measured.
_DAMPING, _LEAST, _MOST = 1e-3, 1e-9, 1e12
_LONGEST = 2.0  # nats that a mean moves, and a log sd, in one step
_IDLE = 0.3  # share of documents that may be done and still be carried along


def newton(documents: Documents, mean: Tensor, variance: Tensor, still: float = _STILL):
    """Climb one factor (n, k) a document to a maximum of its bound, by damped Newton steps.

    Returns
    -------
    mean, variance : Tensors of shape (n, k)
    bound : Tensor of shape (n,)
    """
    return climbed(documents, mean, variance, still, _NEWTON_STEPS)[:3]


def climbed(
    documents: Documents,
    mean: Tensor,
    variance: Tensor,
    still: float,
    n_steps: int,
    least: float = 0.0,
):
    """Climb by at most so many Newton steps; also say which documents have arrived, (n,).

    A step is taken where the bound rises, and damped more where it does not. Where the gradient is
    nought and the curvature is not a maximum's, a step along it leaves. A document has arrived
    where an undamped step promises no more than `still` nats, nor would where it is curved by at
    least `least` in sds: on a ledge a step promises little and leads far.
    """
    mean, variance = mean.clone(), variance.clone()
    value = documents.bound(mean.unsqueeze(1), variance.unsqueeze(1))[:, 0]
    damping, left = torch.zeros_like(value), torch.arange(len(mean), device=mean.device)
    done = torch.zeros_like(left, dtype=torch.bool)
    arrived = done.clone()
    for _ in range(n_steps):
        m, v, old, damped = mean[left], variance[left], value[left], damping[left]
        curved = documents.curved(m, v)
        rounding = _ROUNDING * (old.abs() + documents.totals[:, 0])
        along, widening, gain, fine = curved.newton_step(damped)
        promised = torch.maximum(gain, 0.5 * least * (along**2 + widening**2).sum(-1))
        flat = fine & (promised <= still + 0.25 * rounding)
        if bool((flat & (damped > 0)).any()):
            _leave(documents, curved, m, v, flat & (damped > 0), along, widening)
        longest = torch.maximum(v.sqrt() * along.abs(), widening.abs()).amax(-1, keepdim=True)
        cut = _LONGEST / longest.clamp_min(_LONGEST)
        new_m, new_v = _moved(m, v, cut * along, cut * widening)
        new = documents.bound(new_m.unsqueeze(1), new_v.unsqueeze(1))[:, 0]
        rises = fine & (new >= old - rounding) & ~done
        at = left[rises]
        mean[at], variance[at], value[at] = new_m[rises], new_v[rises], new[rises]
        lower = torch.where(damped > 10 * _LEAST, 0.1 * damped, 0.0)
        damping[left] = torch.where(rises, lower, (10 * damped).clamp_min(_DAMPING))
        done = done | flat & ((damped == 0) | (new <= old + rounding)) | (damping[left] > _MOST)
        arrived[left[done]] = True
        n_done = int(done.sum())
        if n_done == len(left):
            break
        if n_done > _IDLE * len(left):  # to pick out the others takes as long as a step
            left, documents, done = left[~done], documents[~done], done[~done]
    return mean, variance, value, arrived


def _leave(documents, curved, mean, variance, saddle, along, widening):
    """Put the best step up along the curvature in place of the steps at saddles."""
    direction = curved[saddle].upward()
    few, m, v = documents[saddle], mean[saddle], variance[saddle]
    sizes = m.new_tensor([0.0, 0.03, -0.03, 0.3, -0.3, 1.0, -1.0])[:, None]
    tried = [d.unsqueeze(1) * sizes for d in direction]
    value = few.bound(*_moved(m.unsqueeze(1), v.unsqueeze(1), *tried))
    best = value.argmax(-1)
    for step, each in zip((along, widening), tried, strict=True):
        step[saddle] = each[torch.arange(len(best)), best]


def _moved(mean, variance, along, widening):
    return mean + variance.sqrt() * along, variance * (2 * widening).exp()
