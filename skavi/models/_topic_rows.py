"""The search for the best factor of each document in a topic model.

A search starts at the topics that explain a document's words, puts topics in and takes them out of
the best it finds, and ends with Newton steps, at a maximum to rounding. What becomes of a document
does not depend on those beside it.
"""

import torch
from torch import Tensor

from skavi._data.sparse_rows import SparseRows
from skavi.families import DiagonalFactors
from skavi.models._topic_documents import Documents
from skavi.models._topic_newton import climbed, newton

_NUMBERS = 1_000_000  # that a chunk of documents holds
_HELD = 10_000_000  # numbers of chunks that are approached together
#: Least curvature, in sds, for which a step must promise as little: without, one document in a
#: thousand stayed a nat below on a ledge.
_LEDGE = 0.6
#: Looks and Newton steps of a round: a step costs as much as ten looks or more. With 50 topics all
#: rows were within a nat in half the time of Newton steps alone.
_APPROACHES = (8, 3), (16, 3), (32, 3), (0, 200)
_CORNERS = 16  # topics that a document starts from: those that explain most of it
_CORNER = 0.9  # share of a start's own topic
_USED, _IN, _OUT = 0.03, 0.2, 1e-3  # shares that are taken out; put in and out, of the largest
_LOOKS, _LATER_LOOKS = 12, 8  # steps from every start, before all but the best few are left
#: Starts a document that are finished by Newton. Not measured apart from the search as a whole.
_KEPT = 4
_BEHIND, _LATER_BEHIND = 3.0, 0.3  # nats: starts so far behind the best are left
_NEAR = 1.0  # nats, about: factors so near to a better one are on their way to the same optimum
_ROUNDS = 3  # of topics put in and taken out
_ROUGH, _RIVAL = 1e-2, 0.03  # nats to which all ends are known first; that the best may be behind
_TIE = 1e-9  # nats, relative above 1: by so much a later end must be better


def searched(
    X: SparseRows, words: Tensor, loc: Tensor, precision: float, start=None
) -> DiagonalFactors:
    """Return the best factor found of every row of X, at a maximum of its own bound.

    Parameters
    ----------
    X : SparseRows
    words : Tensor of shape (n_features, k)
        exp E log~ words.
    loc : Tensor of shape (n_rows, k)
    precision : float
        Of the logits' prior.
    start : DiagonalFactors, default=None
        Factors to start from beside those that the search makes up: none ends below its own.
    """
    mean, sd = (X.new_zeros(len(X), words.shape[1]) for _ in range(2))
    for index, documents in _in_chunks(X, words, loc, precision):
        own = None if start is None else (start.mean[index], start.sd[index] ** 2)
        mean[index], variance = _best(documents, own)
        sd[index] = variance.sqrt()
    return DiagonalFactors(mean, sd)


def polished(X: SparseRows, words: Tensor, loc: Tensor, precision: float, start) -> DiagonalFactors:
    """Return every row's factor at the maximum that Newton steps from `start` reach."""
    mean, sd = start.mean.clone(), start.sd.clone()
    for index, documents in _in_chunks(X, words, loc, precision):
        mean[index], variance, _ = newton(documents, mean[index], sd[index] ** 2)
        sd[index] = variance.sqrt()
    return DiagonalFactors(mean, sd)


def approached(
    X: SparseRows, words: Tensor, loc: Tensor, precision: float, start, nats: float
) -> DiagonalFactors:
    """Return factors uphill from `start`, where Newton's step promises at most `nats` a document.

    Cheap looks bring nearly all documents there; those left, all together, have more of them.
    """
    mean, variance = start.mean.clone(), start.sd**2
    for left, documents in _together(_in_chunks(X, words, loc, precision, 1)):
        for n_looks, n_steps in _APPROACHES:
            m, v = (t[left].unsqueeze(1) for t in (mean, variance))
            m, v = documents.looked(m, v, n_looks)
            m, v, _, arrived = climbed(documents, m[:, 0], v[:, 0], nats, n_steps, _LEDGE)
            mean[left], variance[left] = m, v
            if bool(arrived.all()):
                break
            left, documents = left[~arrived], documents[~arrived]
    return DiagonalFactors(mean, variance.sqrt())


def _together(chunks):
    """Yield rows and documents of several chunks as one, in bounded memory with their Hessians."""
    held, size = [], 0
    for index, documents in chunks:
        held.append((index, documents))
        size += documents.blocks[0][1].numel() + documents.loc.shape[1] * documents.loc.numel()
        if size > _HELD:
            yield _joined(held)
            held, size = [], 0
    if held:
        yield _joined(held)


def _joined(held):
    index, documents = zip(*held, strict=True)
    return torch.cat(index), Documents.joined(documents)


def _in_chunks(X, words, loc, precision, n_starts=_CORNERS):
    """Yield rows of about as many cells each, in bounded memory, and their documents."""
    n_cells, k = X.starts.diff(), words.shape[1]
    power = n_cells.clamp_min(4).double().log2().floor().exp2().long()
    room = torch.where(2 * n_cells <= 3 * power, 3 * power // 2, 2 * power)
    room = torch.where(n_cells <= power, power, room)
    for width in room.unique().tolist():
        rows = (room == width).nonzero()[:, 0]
        size = max(1, _NUMBERS // (width * (k + n_starts)))
        for index in rows.split(size):
            part = X[index]
            columns, counts = part.row.new_zeros(len(part), width), X.new_zeros(len(part), width)
            place = part.row, torch.arange(part.numel(), device=X.device) - part.starts[part.row]
            columns[place], counts[place] = part.columns, part.values
            totals = part.totals.unsqueeze(-1)
            blocks = ((counts, words[columns]),)
            yield index, Documents(blocks, totals, loc[index], precision)


def _best(documents, own):
    """Climb from several starts; then put topics in and take them out, while that helps."""
    share = _first_shares(documents)
    mean, variance = _logits(share), _variance(documents, share)
    mean[:, 0] = documents.loc  # as far away as covariates put it
    if own is not None:
        mean, variance = (
            torch.cat([o.unsqueeze(1), s], 1) for o, s in zip(own, (mean, variance), strict=True)
        )
    best = _climbed(documents, mean, variance, None)
    left = torch.arange(len(share), device=share.device)
    for _ in range(_ROUNDS):
        few, here = documents[left], [t[left] for t in best]
        share = _other_shares(*here[:2])
        new = _climbed(few, _logits(share), _variance(few, share), here)
        better = new[2] > here[2]
        left = left[better]
        if not len(left):
            break
        for old, changed in zip(best, new, strict=True):
            old[left] = changed[better]
    return best[:2]


def _logits(share):
    logits = share.log()
    return logits - logits.mean(-1, keepdim=True)


def _variance(documents, share):
    return 1 / (documents.totals.unsqueeze(1) * share + documents.precision)


def _first_shares(documents):
    """Return shares (n, s, k): the prior's, those of a first look, and nearly all for one topic."""
    n, k = documents.loc.shape
    prior = torch.softmax(documents.loc, -1).unsqueeze(1)
    even = documents.loc.new_full((n, 1, k), 1 / k)
    explained = documents.explained(_logits(even), _variance(documents, even))
    look = (explained + 0.1) / (explained + 0.1).sum(-1, keepdim=True)
    top = explained[:, 0].topk(min(k, _CORNERS), -1).indices
    corners = torch.nn.functional.one_hot(top, k).to(even)
    return torch.cat([prior, look, (1 - _CORNER) / k + _CORNER * corners], 1)


def _other_shares(mean, variance):
    """Return shares (n, k, k) with each topic in turn put in, or taken out."""
    k = mean.shape[-1]
    share = torch.softmax(mean + 0.5 * variance, -1).unsqueeze(1)
    most = share.amax(-1, keepdim=True)
    changed = torch.where(share > _USED, _OUT * most, _IN * most)
    turn = torch.eye(k, dtype=torch.bool, device=mean.device)
    share = torch.where(turn, changed, share)
    return share / share.sum(-1, keepdim=True)


def _climbed(documents, mean, variance, known):
    """Return mean, variance and bound of the best that starts (n, s, k) lead to, or of `known`."""
    n, looks = len(mean), _LOOKS if known is None else _LATER_LOOKS
    mean, variance = documents.looked(mean, variance, looks)
    owner, which = _promising(documents, mean, variance, known).nonzero(as_tuple=True)
    ends = newton(documents[owner], mean[owner, which], variance[owner, which], _ROUGH)
    rivals = _rivals(documents, owner, *ends)
    owner = owner[rivals]
    ends = newton(documents[owner], ends[0][rivals], ends[1][rivals])
    if known is not None:
        owner = torch.cat([torch.arange(n, device=owner.device), owner])
        ends = [torch.cat(pair) for pair in zip(known, ends, strict=True)]
    first = _first_best(owner, ends[2], n)
    return [end[first] for end in ends]


def _rivals(documents, owner, mean, variance, value):
    """Say which ends, roughly known, may be their document's best: each optimum once."""
    n = len(documents)
    first = _first_best(owner, value, n)[owner]
    root = torch.softmax(mean + 0.5 * variance, -1).sqrt()
    away = documents.totals[owner, 0] * (2 - 2 * (root * root[first]).sum(-1)) > _NEAR
    place = torch.arange(len(owner), device=owner.device)
    return (place == first) | (away & (value > value[first] - _RIVAL))


def _first_best(owner, value, n):
    """Return where each of n owners has its first value that is its highest but for rounding."""
    top = value.new_full((n,), -torch.inf).scatter_reduce(0, owner, value, "amax")
    tied = value >= (top - _TIE * (1 + top.abs()))[owner]
    place = torch.arange(len(owner), device=owner.device)[tied]
    return owner.new_full((n,), len(owner)).scatter_reduce(0, owner[tied], place, "amin")


def _promising(documents, mean, variance, known):
    """Say which of the starts (n, s) may lead to the best optimum, or to one better than known."""
    value, root = documents.bound(mean, variance), torch.softmax(mean + 0.5 * variance, -1).sqrt()
    if known is not None:
        there = torch.softmax(known[0] + 0.5 * known[1], -1).sqrt().unsqueeze(1)
        value = torch.cat([torch.full_like(known[2].unsqueeze(1), torch.inf), value], 1)
        root = torch.cat([there, root], 1)
    top, order = value.topk(min(value.shape[1], 2 * _KEPT), -1)
    root = root.gather(1, order.unsqueeze(-1).expand(-1, -1, root.shape[-1]))
    near = documents.totals.unsqueeze(-1) * (2 - 2 * root @ root.mT) < _NEAR
    least = top[:, :1] - _BEHIND if known is None else known[2].unsqueeze(1) - _LATER_BEHIND
    fine, kept = top >= least, torch.zeros_like(top, dtype=torch.bool)
    for i in range(top.shape[1]):
        kept[:, i] = fine[:, i] & ~(near[:, i] & kept).any(-1) & (kept.sum(-1) < _KEPT)
    kept = torch.zeros_like(value, dtype=torch.bool).scatter(1, order, kept)
    return kept if known is None else kept[:, 1:]
