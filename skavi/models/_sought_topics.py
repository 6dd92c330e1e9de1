"""Topics while they are sought: factors of some topics, and of the documents under them.

Each move returns other topics: some left out, put in, drawn anew, split in two or merged.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skavi._data.sparse_rows import SparseRows
from skavi.families import DiagonalFactors, DiagonalNormal
from skavi.models._topic_closed_forms import tilted

_SD = 0.2  # of a guess's logits
_NOISE = 0.2  # sds of the prior: of the topics' logits around its mean, and around a topic's own
_HEIGHT = 2.0  # nats by which a topic's one word outweighs all the others together
_PRICE = 1.0  # nats: what a topic costs a document that takes it up, about
_LEAST = 1e-12  # share of a cell that the other topics explain at least
#: Share that a document has of a topic at least, of which others are merged. Not measured.
_SMALL_SHARE = 1e-6


@dataclass(frozen=True)
class Topics:
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
        return cls(_of_size(model, k), X, weights, q_topics, undecided(X, k))

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
        q_topics, documents = DiagonalFactors(mean, sd), undecided(self.X, k)
        model = _of_size(self.model, k)
        return replace(self, model=model, q_topics=q_topics, q_documents=documents)

    def with_split(self, topic, generator):
        """Return one topic more, near another one, and documents that prefer none."""
        near = self._rows(self.q_topics)[0][[topic]]
        return self._with_more(near + _noise(self.model, self.weights, 1, generator))

    def without(self, topic):
        """Return all topics but one."""
        return self.restricted([k for k in range(self.k) if k != topic])

    def merged(self, one, other):
        """Return one topic less: two as one, of their words, which documents have as both."""
        shares = torch.softmax(self.q_documents.mean, -1)
        mean, sd = self._rows(self.q_topics)
        words = torch.softmax(mean, -1)
        counts = (self.weights * self.X.totals) @ shares
        both = counts[one] * words[one] + counts[other] * words[other]
        mean, shares = mean.clone(), shares.clone()
        mean[one] = (both / (counts[one] + counts[other])).log()
        shares[:, one] += shares[:, other]
        logits = shares.clamp_min(_SMALL_SHARE).log()
        q_topics = DiagonalFactors(mean.reshape(-1), sd.reshape(-1))
        q_documents = DiagonalFactors(logits, self.q_documents.sd)
        together = replace(self, q_topics=q_topics, q_documents=q_documents)
        return together.without(other)

    def merge_losses(self):
        """Return how many nats documents lose if two topics are one, shape (k, k), the rest given.

        An upper bound of what they lose when they choose afresh, as `losses` is.
        """
        X, shares = self.X, torch.softmax(self.q_documents.mean, -1)
        words = self.model._tilted_words(self.q_topics)
        counts = (self.weights * X.totals) @ shares
        said = counts * words
        cells, shares = self.weights[X.row] * X.values, shares[X.row]
        own = shares * words[X.columns]
        explained = own.sum(-1, keepdim=True)
        lost = words.new_empty(self.k, self.k)
        for k in range(self.k):
            both = (said + said[:, [k]]) / (counts + counts[k])
            of_both = (shares + shares[:, [k]]) * both[X.columns]
            after = explained + (of_both - own - own[:, [k]])
            lost[k] = cells @ (explained / after.clamp_min(_LEAST)).log()
        return lost

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
        documents = undecided(self.X, k)
        model = _of_size(self.model, k)
        return replace(self, model=model, q_topics=q_topics, q_documents=documents)

    def redrawn(self, which, generator):
        """Return topics of which some are drawn anew, and documents that prefer none."""
        mean, sd = (t.clone() for t in self._rows(self.q_topics))
        mean[which] = _drawn(self.model, self.weights, len(which), generator)
        sd[which] = _SD
        q_topics = DiagonalFactors(mean.reshape(-1), sd.reshape(-1))
        return replace(self, q_topics=q_topics, q_documents=undecided(self.X, self.k))

    def _rows(self, q_topics):
        return tuple(t.reshape(self.k, -1) for t in (q_topics.mean, q_topics.sd))


def _of_size(model, k):
    model = copy.copy(model)
    model.n_components = k
    return model


def _drawn(model, weights, k, generator):
    """Draw logits (k, n_features) of topics around the prior's mean."""
    return model._loc().to(weights) + _noise(model, weights, k, generator)


def _noise(model, weights, k, generator):
    noise = torch.randn(k, len(model.topic_loc), generator=generator, dtype=torch.float64)
    return _NOISE * model.topic_scale * noise.to(weights)


def undecided(X, k):
    """Return factors of documents that prefer no topic."""
    mean = X.new_zeros(len(X), k)
    return DiagonalFactors(mean, torch.ones_like(mean))
