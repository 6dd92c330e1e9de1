"""Where topics start: more of them than asked, pruned, then replaced one by one while that helps.

Topics have many local optima, and from random ones a fit ends percents below the best. Two kinds of
start are sought. Of three times as many topics as asked, near the prior, from where topics that the
data do not need are never taken up, those that the others explain best are dropped; and as many as
asked start near the prior, the best two of six times. From each, the topics that are needed least
are drawn anew, at first several at once; all documents choose afresh among the topics, and what
raises the ELBO is kept. Documents then choose among the topics of two such searches together, of
which those that the others explain best are dropped. Where more topics are fitted than the data
have, the topics to spare each hold one word or two, and there are many choices of these words: so
topics of one word each, of those worst explained, are tried in the place of others, and random ones
beside them. Where fewer are fitted, each holds several of the data's, which may be together in
other ways: so a topic is split in two and two others are merged, while that helps.

Sources of the idea: Ueda, Nakano, Ghahramani & Hinton (2000), "SMEM algorithm for mixture models";
Hughes & Sudderth (2013), "Memoized online variational inference for Dirichlet process mixture
models". All of it is done on a part of the documents where there are many.
"""

import torch
from torch import Tensor

from skavi._data.rows import distinct
from skavi._data.sparse_rows import CrowdedRows, SparseRows
from skavi.models._sought_topics import Topics

#: Documents on which topics are sought: with these and the cells below, eight seeds on 1,500
#: simulated documents end within 0.05 % of the best.
_MOST_ROWS = 1_000
#: Non-zero cells of these documents: halving 30,000 lost nothing on 1,500 simulated documents.
_MOST_CELLS = 15_000
#: Topics at first, for each one asked, and two more: twice as many missed the best optimum more
#: often with as many topics as the data have (simulated corpora).
_TIMES, _SPARE = 3, 2
#: One in so many of the topics that are too many is dropped at once, and at least one: with every
#: other one, starts of a simulated corpus ended up to 1 % lower.
_DROPPED = 8
_SWEEPS, _LATER_SWEEPS = 20, 6  # of the first topics; after some are dropped
#: Sweeps after topics are drawn anew: after 15 most of the gain is still to come (simulated
#: corpora).
_MOVE_SWEEPS = 40
#: Starts with as many topics as asked, and how many of these are searched from. Beside two starts
#: of more topics than asked, whose better one was kept, means of four fits on eight simulated
#: corpora were higher by 8 nats, of six fits of one more 6 ended at the best in place of 1, and
#: fits took 1.8 times as long.
_PLAIN, _BEST = 6, 2
#: Moves at most; those that change nothing, one after the other, before the end. With eight of
#: these, 17 of 22 searches ended where they do with three, and took 1.1 to 2.6 times as long.
_MOVES, _IDLE_MOVES = 30, 3
_GAIN = 1e-4  # relative: a move that raises the ELBO by less is not kept
_SAME = 1e-6  # relative: searches that end so near have found the same topics
#: Cells times topics up to which topics are drawn anew: a move takes 40 sweeps, here some seconds.
_CHEAP = 500_000
#: Cells times topics up to which topics of single words are tried: a round of them is some 550
#: sweeps, here of 1 ms.
_QUICK = 120_000
#: Words tried at once; how many of these are kept, how many topics are taken out for each in turn
#: (beside `_PAIRS` that are merged: of six searches with topics to spare three ended 2 to 9 nats
#: higher by that, the others where they did), and how many of the outcomes are followed to their
#: end. In 10 searches of two simulated corpora with topics to spare, the best twelve of twelve
#: words ended as six did and took twice as long.
_WORDS, _WORDS_KEPT, _TAKEN_OUT, _FOLLOWED = 12, 6, 4, 3
#: Rounds at most, of which two to five are usual, and times that random topics are put in after
#: them: with these, six seeds of a corpus ended within 11 nats of the best, 17 without.
_ROUNDS, _TURNS = 12, 4
#: Pairs of topics merged at most for each one that is split, and for all. Of six searches of three
#: simulated corpora that ended 20 to 45 nats low, the pair that led to the best was the first of
#: its split's, or the second.
_PAIRS, _MERGED = 2, 8
#: Topics split at least in a round, some of them more than once, and rounds without a gain before
#: the end: splits begin at random, and one in four misses.
_SPLITS, _IDLE_SPLITS = 8, 2
#: After a word is put in, and after a topic is taken out: with 4, one search in four of a simulated
#: corpus ended 60 nats lower.
_SWAP_SWEEPS = 12


def best_topics(model, X: SparseRows, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return topics' logits (n_components, n_features) near a good optimum."""
    X, index = distinct(X)  # in an order of their own: it makes no difference how rows are given
    weights = weights.new_zeros(len(X)).index_add(0, index, weights)
    X, weights = _part(X, weights, generator)
    k = model.n_components
    if k == 1:
        topics = Topics.near_prior(model, X, weights, 1, generator).swept(_SWEEPS)
    elif X.numel() * k > _CHEAP:
        topics = _sought(model, X, weights, generator)
    else:
        starts = _starts(model, X, weights, generator)
        found = [_exchanged(start, generator) for start in starts]
        topics = _searched(found, generator)
    return topics.q_topics.mean.reshape(k, -1)


def _starts(model, X, weights, generator):
    """Return topics to search from: those left of more than asked, and the best of as many."""
    plain = [
        Topics.near_prior(model, X, weights, model.n_components, generator).swept(2 * _MOVE_SWEEPS)
        for _ in range(_PLAIN)
    ]
    return [_sought(model, X, weights, generator), *_highest(plain)[:_BEST]]


def _searched(found, generator):
    """Return the best of several searches, with topics split, merged, and of single words."""
    topics = _recombined(found)
    if topics.X.numel() * topics.k > _QUICK:
        return topics
    topics = _climbed(topics, generator)
    for _ in range(_TURNS):
        regrouped = _regrouped(topics, generator)
        if not _gained(regrouped, topics):
            return _highest([topics, regrouped])[0]
        topics = _climbed(regrouped, generator)
    return topics


def _gained(new, old):
    return new.elbo - old.elbo > _GAIN * abs(old.elbo)


def _apart(best, other):
    return best.elbo - other.elbo > _SAME * abs(best.elbo)


def _climbed(topics, generator):
    """Swap topics for single words, and for random ones, in turn while that helps."""
    topics = _swapped(topics)
    for _ in range(_TURNS):
        grown = _grown(topics, generator)
        if not _gained(grown, topics):
            break
        topics = _swapped(grown)
    return topics


def _grown(topics, generator):
    """Put in random topics, half as many as there are and a quarter, and drop as many."""
    for part in (2, 4):
        more = topics.with_drawn(max(1, topics.k // part), generator).swept(_SWEEPS)
        topics = _highest([topics, _pruned(more, topics.k)])[0]
    return topics


def _regrouped(topics, generator):
    """Split a topic in two and merge two others, while that helps."""
    n_splits = max(1, _SPLITS // topics.k)
    idle = 0 if topics.k > 2 else _IDLE_SPLITS
    while idle < _IDLE_SPLITS:
        pairs = [
            pair
            for topic in [*range(topics.k)] * n_splits
            for pair in _merges(topics.with_split(topic, generator).swept(_SWEEPS), topic)
        ]
        pairs.sort(key=lambda pair: -pair[0])
        merged = _highest(more.merged(*two).swept(_SWAP_SWEEPS) for _, more, two in pairs[:_MERGED])
        best = _highest(each.swept(_MOVE_SWEEPS) for each in merged[:_FOLLOWED])[0]
        idle = 0 if _gained(best, topics) else idle + 1
        topics = _highest([topics, best])[0]
    return topics


def _swapped(topics):
    """Put topics of one word each in the place of those needed least, while that helps."""
    for _ in range(_ROUNDS):
        words = topics.unexplained().argsort(descending=True)[:_WORDS].tolist()
        more = _highest(topics.with_word(word).swept(_SWAP_SWEEPS) for word in words)
        fewer = _highest(
            each.swept(_SWAP_SWEEPS) for kept in more[:_WORDS_KEPT] for each in _one_fewer(kept)
        )
        best = _highest(each.swept(_MOVE_SWEEPS) for each in fewer[:_FOLLOWED])[0]
        before, topics = topics, _highest([topics, best])[0]
        if not _gained(topics, before):
            break
    return topics


def _one_fewer(more):
    """Yield topics of which one is taken out, or two are merged."""
    for topic in more.losses().argsort()[: min(_TAKEN_OUT, more.k - 1)].tolist():
        yield more.without(topic)
    for _, _, two in _merges(more):
        yield more.merged(*two)


def _merges(more, half=None):
    """Return the best few pairs to merge, and the ELBOs; never a `half` and the last topic."""
    elbos = more.elbo - more.merge_losses()
    if half is not None:
        elbos[half, -1] = -torch.inf
    one, other = torch.triu_indices(more.k, more.k, 1)
    best = elbos[one, other].topk(min(_PAIRS, len(one) - 1)).indices
    places = zip(one[best].tolist(), other[best].tolist(), strict=True)
    return [(float(elbos[i, j]), more, (i, j)) for i, j in places]


def _highest(found):
    """Sort by the ELBO, the highest first."""
    return sorted(found, key=lambda topics: -topics.elbo)


def _recombined(found):
    """Return the best of several searches, with topics of the others where these raise the ELBO."""
    best, *others = _highest(found)
    for other in others:
        if _apart(best, other):
            both = _pruned(best.beside(other).swept(_SWEEPS), best.k).swept(_MOVE_SWEEPS)
            best = max(best, both, key=lambda topics: topics.elbo)
    return best


def _sought(model, X, weights, generator):
    """Return the topics left of more of them than asked."""
    n_first = _TIMES * model.n_components + _SPARE
    topics = Topics.near_prior(model, X, weights, n_first, generator).swept(_SWEEPS)
    return _pruned(topics, model.n_components)


def _part(X, weights, generator):
    """Return documents that have words: a random part of many."""
    index = ((weights > 0) & (X.totals > 0)).nonzero()[:, 0]
    order = torch.randperm(len(index), generator=generator).to(index.device)
    cells = X.starts.diff()[index[order]].cumsum(0)
    few = order[: max(1, min(_MOST_ROWS, int((cells <= _MOST_CELLS).sum())))]
    index = index[few.sort().values]
    return CrowdedRows.if_crowded(X[index]), weights[index]


def _pruned(topics, k):
    """Drop the topics that the others explain best, a few at a time, with sweeps in between."""
    while topics.k > k:
        n_dropped = max(1, (topics.k - k) // _DROPPED)
        kept = topics.losses().argsort()[n_dropped:].sort().values
        topics = topics.restricted(kept).swept(_LATER_SWEEPS)
    return topics.swept(_SWEEPS)


def _exchanged(topics, generator):
    """Draw topics that are needed least anew, while that raises the ELBO: several, then single."""
    half, turn, idle = max(1, topics.k // 2), 0, 0
    at_once, order = half, topics.losses().argsort()
    for _ in range(_MOVES):
        moved = topics.redrawn(order[turn : turn + at_once], generator).swept(_MOVE_SWEEPS)
        if moved.elbo > topics.elbo + _GAIN * abs(topics.elbo):
            topics, turn, idle, order = moved, 0, 0, moved.losses().argsort()
        elif at_once > 1:
            at_once //= 2
        else:
            turn, idle = (turn + 1) % half, idle + 1
        if idle == _IDLE_MOVES:
            break
    return topics
