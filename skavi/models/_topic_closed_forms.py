"""Closed forms of topic models: the bound, and the steps that raise it by rows and by topics."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skavi._data.sparse_rows import SparseRows
from skavi.families import LOG_2PI, DiagonalFactors, DiagonalNormal, Family
from skavi.models._topic_covariates import DocumentsWithCovariates
from skavi.models._topic_derivatives import DocumentDerivatives, Normaliser
from skavi.models._topic_documents import softmax_step
from skavi.models._topic_rows import approached, polished, searched

#: Near the least normal float64: keeps logs and quotients of a probability of zero finite.
_TINY = 1e-300
#: Steps a block in each sweep: the next sweep goes on from there. Not measured.
_SWEEP_STEPS = 2


class LogisticNormal(DocumentsWithCovariates):
    """What is known of x_n ~ Multinomial(softmax(z_n) @ softmax(topics)) under normal factors.

    Each word's topic and the normalisers are at their optimum, so that what stands for a
    probability is its `tilted` one.
    """

    several_optima = approaches_all_rows = True

    topic_loc: Any
    topic_scale: float

    def has_closed_form(self, family: Family, global_family: Family) -> bool:
        return True

    def has_coordinate_updates(self, family: Family, global_family: Family) -> bool:
        return isinstance(family, DiagonalNormal) and isinstance(global_family, DiagonalNormal)

    def expected_log_local(self, factors, globals_, X):
        words, proportions = self._tilted_words(globals_), tilted(factors.mean, factors.sd)
        away = factors.mean - self._prior_means(globals_, X)
        second = (away**2 + factors.sd**2) / self.proportion_scale**2
        spread = self._prior_spread(globals_, X) / self.proportion_scale**2
        log_det = self.n_components * float(np.log(self.proportion_scale))
        fit = log_mixture(self._documents(X), proportions, words)
        return fit - 0.5 * ((second + LOG_2PI).sum(-1) + spread) - log_det

    def row_derivatives(self, factors, globals_, X, nodes, weights, frozen):
        closed = nodes is None and type(factors) is type(globals_) is DiagonalFactors
        if not closed or (self.n_covariates and not frozen):  # coefficients meet the documents
            return None
        words, proportions = self._tilted_words(globals_), tilted(factors.mean, factors.sd)
        known = DocumentDerivatives(self._documents(X), weights, factors, proportions, words)
        of_rows = known.of_rows(self._prior_means(globals_, X), self.proportion_scale**-2)
        if frozen:
            return *of_rows, None, None, None
        topics = Normaliser.of(*map(self._topics, (globals_.mean, globals_.sd)))
        return *of_rows, known.border(topics), *known.of_topics(topics)

    def given(self, globals_):
        model = copy.copy(self)
        model.tilted_words_ = self._tilted_words(globals_)
        return model

    def _tilted_words(self, globals_):
        known = getattr(self, "tilted_words_", None)
        if known is not None:
            return known
        return tilted(*map(self._topics, (globals_.mean, globals_.sd))).mT.contiguous()

    def local_optimum(self, globals_, X, family, start=None):
        """Maximise every row's bound to its best optimum; or from `start`, by a few steps."""
        if start is None:
            return self.best_locals(globals_, X, family)
        documents, words = self._documents(X), self._tilted_words(globals_)
        by_topic = self._prior_means(globals_, X), start.mean, start.sd**2
        loc, mean, variance = (each.mT.contiguous() for each in by_topic)  # quicker to sum over
        for _ in range(_SWEEP_STEPS):
            mean, variance = self._local_step(words, documents, loc, mean, variance)
        return DiagonalFactors(mean.mT.contiguous(), variance.sqrt().mT.contiguous())

    def best_locals(self, globals_, X, family, start=None):
        words, loc = self._tilted_words(globals_), self._prior_means(globals_, X)
        return searched(self._documents(X), words, loc, self.proportion_scale**-2, start)

    def nearest_locals(self, globals_, X, family, start):
        words, loc = self._tilted_words(globals_), self._prior_means(globals_, X)
        return polished(self._documents(X), words, loc, self.proportion_scale**-2, start)

    def approached_locals(self, globals_, X, family, start, nats):
        words, loc = self._tilted_words(globals_), self._prior_means(globals_, X)
        documents, precision = self._documents(X), self.proportion_scale**-2
        return approached(documents, words, loc, precision, start, nats)

    def _local_step(self, words, X, loc, mean, variance):
        """Take a step up in all documents, whose numbers are (k, n_rows)."""
        proportions = tilted(mean, variance.sqrt(), dim=-2)
        counts = proportions * X.quotients_times(proportions.mT, words).mT.contiguous()
        precision = mean.new_tensor(self.proportion_scale**-2)
        return softmax_step(counts, X.totals, loc, precision, mean, variance, -2)

    def global_optimum(self, globals_, factors, X, weights):
        """Raise the bound in every topic's logits, given how often each topic says each word.

        The coefficients, which meet the topics in the documents only, are put at their optimum.
        """
        covariates, X = self.given_columns(X), self._documents(X)
        words, proportions = self._tilted_words(globals_), tilted(factors.mean, factors.sd)
        counts = (words * X.transposed_quotients_times(proportions, words, weights)).mT
        loc = torch.as_tensor(np.asarray(self.topic_loc, dtype=np.float64)).to(counts)
        precision = counts.new_tensor(self.topic_scale**-2)
        mean, variance = map(self._topics, (globals_.mean, globals_.sd**2))
        for _ in range(_SWEEP_STEPS):
            totals = counts.sum(-1, keepdim=True)
            mean, variance = softmax_step(counts, totals, loc, precision, mean, variance)
        best, their_variance = self._best_coefficients(factors, covariates, weights)
        mean = torch.cat([mean.reshape(-1), best.reshape(-1)])
        variance = torch.cat([variance.reshape(-1), their_variance.reshape(-1)])
        return DiagonalFactors(mean, variance.sqrt())


def log_mixture(X: SparseRows, proportions: Tensor, words: Tensor) -> Tensor:
    """Log multinomial densities for proportions (n_rows, k) and words (n_features, k)."""
    cells = X.sampled(proportions, words).clamp_min(_TINY).log()
    return X.over_rows(X.values * cells) + X.log_orderings


def tilted(mean: Tensor, sd: Tensor, *, dim: int = -1) -> Tensor:
    """exp E log softmax(u), with E log sum exp(u) replaced by its bound log sum E exp(u)."""
    return (mean - torch.logsumexp(mean + 0.5 * sd**2, dim, keepdim=True)).exp()
