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
beside them.

Sources of the idea: Ueda, Nakano, Ghahramani & Hinton (2000), "SMEM algorithm for mixture models";
Hughes & Sudderth (2013), "Memoized online variational inference for Dirichlet process mixture
models". All of it is done on a part of the documents where there are many.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skavi._data.rows import distinct
from skavi._data.sparse_rows import CrowdedRows, SparseRows
from skavi.families import DiagonalFactors, DiagonalNormal
from skavi.models._topic_closed_forms import tilted

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
_SD = 0.2  # of a guess's logits
_NOISE = 0.2  # sds of the topics' logits around the prior
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
#: Words tried at once; how many of these are kept, how many topics are taken out for each in turn,
#: and how many of the outcomes are followed to their end. In 10 searches of two simulated corpora
#: with topics to spare, the best twelve of twelve words ended as six did and took twice as long.
_WORDS, _WORDS_KEPT, _TAKEN_OUT, _FOLLOWED = 12, 6, 4, 3
#: Rounds at most, of which two to five are usual, and times that random topics are put in after
#: them: with these, six seeds of a corpus ended within 11 nats of the best, 17 without.
_ROUNDS, _TURNS = 12, 4
#: After a word is put in, and after a topic is taken out: with 4, one search in four of a simulated
#: corpus ended 60 nats lower.
_SWAP_SWEEPS = 12
_HEIGHT = 2.0  # nats by which a topic's one word outweighs all the others together
_PRICE = 1.0  # nats: what a topic costs a document that takes it up, about
_LEAST = 1e-12  # share of a cell that the other topics explain at least


def best_topics(model, X: SparseRows, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return topics' logits (n_components, n_features) near a good optimum."""
    X, index = distinct(X)  # in an order of their own: it makes no difference how rows are given
    weights = weights.new_zeros(len(X)).index_add(0, index, weights)
    X, weights = _part(X, weights, generator)
    k = model.n_components
    if k == 1:
        topics = _Topics.near_prior(model, X, weights, 1, generator).swept(_SWEEPS)
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
        _Topics.near_prior(model, X, weights, model.n_components, generator).swept(2 * _MOVE_SWEEPS)
        for _ in range(_PLAIN)
    ]
    return [_sought(model, X, weights, generator), *_highest(plain)[:_BEST]]


def _searched(found, generator):
    """Return the best that several searches lead to, together and with topics of single words."""
    best = _recombined(found)
    if best.X.numel() * best.k > _QUICK:
        return best
    second = _highest(found)[1]
    climbed = [_climbed(best, generator)]
    if _apart(best, second):
        climbed.append(_climbed(second, generator))
    together = _recombined(climbed)
    return together if any(together is each for each in climbed) else _climbed(together, generator)


def _apart(best, other):
    return best.elbo - other.elbo > _SAME * abs(best.elbo)


def _climbed(topics, generator):
    """Swap topics for single words, and for random ones, in turn while that helps."""
    topics = _swapped(topics)
    for _ in range(_TURNS):
        grown = _grown(topics, generator)
        if grown.elbo - topics.elbo <= _GAIN * abs(topics.elbo):
            break
        topics = _swapped(grown)
    return topics


def _grown(topics, generator):
    """Put in random topics, half as many as there are and a quarter, and drop as many."""
    for part in (2, 4):
        more = topics.with_drawn(max(1, topics.k // part), generator).swept(_SWEEPS)
        topics = _highest([topics, _pruned(more, topics.k)])[0]
    return topics


def _swapped(topics):
    """Put topics of one word each in the place of those needed least, while that helps."""
    for _ in range(_ROUNDS):
        words = topics.unexplained().argsort(descending=True)[:_WORDS].tolist()
        more = _highest(topics.with_word(word).swept(_SWAP_SWEEPS) for word in words)
        fewer = _highest(
            each.without(topic).swept(_SWAP_SWEEPS)
            for each in more[:_WORDS_KEPT]
            for topic in each.losses().argsort()[: min(_TAKEN_OUT, topics.k)].tolist()
        )
        best = _highest(each.swept(_MOVE_SWEEPS) for each in fewer[:_FOLLOWED])[0]
        gain = best.elbo - topics.elbo
        topics = best if gain > 0 else topics
        if gain <= _GAIN * abs(topics.elbo):
            break
    return topics


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
    topics = _Topics.near_prior(model, X, weights, n_first, generator).swept(_SWEEPS)
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


@dataclass(frozen=True)
class _Topics:
    """Factors of some topics, and of the documents under them.

    Attributes
    ----------
    model : TopicModel
        With as many components.
    X, weights : SparseRows, Tensor
        The documents.
    q_topics, q_documents : DiagonalFactors
    elbo : float
        Up to a constant that all have in common with as many topics.
    """

    model: Any
    X: SparseRows
    weights: Tensor
    q_topics: DiagonalFactors
    q_documents: DiagonalFactors
    elbo: float = -torch.inf

    @classmethod
    def near_prior(cls, model, X, weights, k, generator):
        """Return k topics around the prior's mean, and documents that prefer none."""
        logits = _drawn(model, weights, k, generator).reshape(-1)
        q_topics = DiagonalFactors(logits, torch.full_like(logits, _SD))
        return cls(_of_size(model, k), X, weights, q_topics, _undecided(X, k))

    @property
    def k(self):
        """How many topics there are."""
        return self.model.n_components

    def swept(self, n_sweeps):
        """Return what sweeps lead to, with its ELBO."""
        q_topics, q_documents, model = self.q_topics, self.q_documents, self.model
        for _ in range(n_sweeps):
            q_documents = model.local_optimum(q_topics, self.X, DiagonalNormal(), q_documents)
            q_topics = model.global_optimum(q_topics, q_documents, self.X, self.weights)
        terms = model.expected_log_local(q_documents, q_topics, self.X) + q_documents.entropy()
        loc = model._loc().to(terms).repeat(self.k)
        second = (q_topics.mean - loc) ** 2 + q_topics.sd**2
        prior = -0.5 * second.sum() / model.topic_scale**2
        elbo = float(self.weights @ terms + prior + q_topics.sd.log().sum())
        return replace(self, q_topics=q_topics, q_documents=q_documents, elbo=elbo)

    def losses(self):
        """Return how many nats documents lose without each topic, the others in proportion.

        An upper bound of what they lose when they choose afresh, and quick: only the order counts.
        """
        X, shares = self.X, tilted(self.q_documents.mean, self.q_documents.sd)
        words = self.model._tilted_words(self.q_topics)
        explained = shares[X.row] * words[X.columns]
        others = 1 - explained / explained.sum(-1, keepdim=True)
        cells = (self.weights[X.row] * X.values).unsqueeze(-1)
        lost = -(cells * others.clamp_min(_LEAST).log()).sum(0)
        room = torch.log1p(-self.model.own_scale(None, self.q_documents.mean).clamp_max(1 - _LEAST))
        return lost + (self.weights * X.totals) @ room

    def unexplained(self):
        """Return how many nats each word would gain if documents could say it as often as they do.

        Counted are documents that say it more often than explained, and gain enough to pay for it.
        """
        X, shares = self.X, torch.softmax(self.q_documents.mean, -1)
        words = self.model._tilted_words(self.q_topics)
        expected = X.totals[X.row] * X.sampled(shares, words / words.sum(0)).clamp_min(_LEAST)
        gain = X.values * (X.values / expected).log() - (X.values - expected) - _PRICE
        gain = torch.where(X.values > expected, gain, 0.0).clamp_min(0)
        return X.over_columns(self.weights[X.row] * gain)

    def with_word(self, word):
        """Return one topic more, nearly all of it one word, and documents that prefer none."""
        loc = self.model._loc().to(self.weights)
        topic = loc.clone()
        topic[word] = loc.logsumexp(-1) + _HEIGHT
        return self._with_more(topic.unsqueeze(0))

    def with_drawn(self, k, generator):
        """Return k topics more, around the prior's mean, and documents that prefer none."""
        return self._with_more(_drawn(self.model, self.weights, k, generator))

    def _with_more(self, logits):
        mean, sd = self._rows(self.q_topics)
        mean = torch.cat([mean, logits]).reshape(-1)
        sd = torch.cat([sd, torch.full_like(logits, _SD)]).reshape(-1)
        k = self.k + len(logits)
        q_topics, documents = DiagonalFactors(mean, sd), _undecided(self.X, k)
        model = _of_size(self.model, k)
        return replace(self, model=model, q_topics=q_topics, q_documents=documents)

    def without(self, topic):
        """Return all topics but one."""
        return self.restricted([k for k in range(self.k) if k != topic])

    def restricted(self, kept):
        """Return some of the topics alone."""
        q_topics = self._rows(self.q_topics)
        mean, sd = (t[kept].reshape(-1) for t in q_topics)
        few = DiagonalFactors(self.q_documents.mean[:, kept], self.q_documents.sd[:, kept])
        model = _of_size(self.model, len(kept))
        return replace(self, model=model, q_topics=DiagonalFactors(mean, sd), q_documents=few)

    def beside(self, other):
        """Return these topics and another's together, and documents that prefer none."""
        mean, sd = (
            torch.cat(pair)
            for pair in zip(*(t._rows(t.q_topics) for t in (self, other)), strict=True)
        )
        q_topics = DiagonalFactors(mean.reshape(-1), sd.reshape(-1))
        k = self.k + other.k
        documents = _undecided(self.X, k)
        model = _of_size(self.model, k)
        return replace(self, model=model, q_topics=q_topics, q_documents=documents)

    def redrawn(self, which, generator):
        """Return topics of which some are drawn anew, and documents that prefer none."""
        mean, sd = (t.clone() for t in self._rows(self.q_topics))
        mean[which] = _drawn(self.model, self.weights, len(which), generator)
        sd[which] = _SD
        q_topics = DiagonalFactors(mean.reshape(-1), sd.reshape(-1))
        return replace(self, q_topics=q_topics, q_documents=_undecided(self.X, self.k))

    def _rows(self, q_topics):
        return tuple(t.reshape(self.k, -1) for t in (q_topics.mean, q_topics.sd))


def _of_size(model, k):
    model = copy.copy(model)
    model.n_components = k
    return model


def _drawn(model, weights, k, generator):
    """Draw logits (k, n_features) of topics around the prior's mean."""
    loc = model._loc().to(weights)
    noise = torch.randn(k, len(loc), generator=generator, dtype=torch.float64).to(loc)
    return loc + _NOISE * model.topic_scale * noise


def _undecided(X, k):
    mean = X.new_zeros(len(X), k)
    return DiagonalFactors(mean, torch.ones_like(mean))
