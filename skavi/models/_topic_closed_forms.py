"""Closed forms of topic models: the bound, and the steps that raise it by rows and by topics."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skavi._data.sparse_rows import SparseRows
from skavi.families import LOG_2PI, DiagonalFactors, DiagonalNormal, Family
from skavi.models._base import HierarchicalModel

_TINY = 1e-300
_SWEEP_STEPS, _MOST_STEPS, _STILL = 2, 200, 1e-4


class LogisticNormal(HierarchicalModel):
    """What is known of x_n ~ Multinomial(softmax(z_n) @ softmax(topics)) under normal factors.

    Each word's topic and the normalisers are at their optimum, so that what stands for a
    probability is its `tilted` one.
    """

    n_components: int
    proportion_scale: float
    topic_loc: Any
    topic_scale: float

    def has_closed_form(self, family: Family, global_family: Family) -> bool:
        return True

    def has_coordinate_updates(self, family: Family, global_family: Family) -> bool:
        return isinstance(family, DiagonalNormal) and isinstance(global_family, DiagonalNormal)

    def expected_log_local(self, factors, globals_, X):
        X = SparseRows.of(X)
        fit = log_mixture(X, tilted(factors.mean, factors.sd), self._tilted_words(globals_))
        second = (factors.mean**2 + factors.sd**2) / self.proportion_scale**2
        log_det = self.n_components * float(np.log(self.proportion_scale))
        return fit - 0.5 * (second + LOG_2PI).sum(-1) - log_det

    def given(self, globals_):
        model = copy.copy(self)
        model.tilted_words_ = self._tilted_words(globals_)
        return model

    def _tilted_words(self, globals_):
        known = getattr(self, "tilted_words_", None)
        if known is not None:
            return known
        shape = self.n_components, -1
        return tilted(globals_.mean.reshape(shape), globals_.sd.reshape(shape)).mT.contiguous()

    def local_optimum(self, globals_, X, family, start=None):
        """Maximise every row's bound to its optimum, or from `start` by a few steps."""
        X = SparseRows.of(X)
        words, k = self._tilted_words(globals_), self.n_components
        mean = X.new_zeros(len(X), k) if start is None else start.mean.clone()
        variance = (
            X.new_ones(len(X), k) * self.proportion_scale**2 if start is None else start.sd**2
        )
        active, part = torch.arange(len(X), device=X.device), X
        for _ in range(_MOST_STEPS if start is None else _SWEEP_STEPS):
            before = mean[active], variance[active]
            after = self._local_step(words, part, *before)
            mean[active], variance[active] = after
            if start is not None:
                continue
            move = ((after[0] - before[0]).abs() / before[1].sqrt()).amax(-1)
            moving = move > _STILL
            if not bool(moving.any()):
                break
            active = active[moving]
            part = part[moving] if not bool(moving.all()) else part
        return DiagonalFactors(mean, variance.sqrt())

    def _local_step(self, words, X, mean, variance):
        proportions = tilted(mean, variance.sqrt())
        ratio = X.values / X.sampled(proportions, words).clamp_min(_TINY)
        counts = proportions * X.product(ratio, words)
        loc, precision = mean.new_zeros(()), mean.new_tensor(self.proportion_scale**-2)
        return softmax_step(counts, X.totals.unsqueeze(-1), loc, precision, mean, variance)

    def global_optimum(self, globals_, factors, X, weights):
        """Raise the bound in every topic's logits, given how often each topic says each word."""
        X = SparseRows.of(X)
        words, proportions = self._tilted_words(globals_), tilted(factors.mean, factors.sd)
        ratio = X.values / X.sampled(proportions, words).clamp_min(_TINY)
        weighted = weights.unsqueeze(-1) * proportions
        counts = (words * X.transposed_product(ratio, weighted)).mT
        loc = torch.as_tensor(np.asarray(self.topic_loc, dtype=np.float64)).to(counts)
        precision = counts.new_tensor(self.topic_scale**-2)
        mean, variance = (t.reshape(counts.shape) for t in (globals_.mean, globals_.sd**2))
        for _ in range(_SWEEP_STEPS):
            totals = counts.sum(-1, keepdim=True)
            mean, variance = softmax_step(counts, totals, loc, precision, mean, variance)
        return DiagonalFactors(mean.reshape(-1), variance.reshape(-1).sqrt())


def log_mixture(X: SparseRows, proportions: Tensor, words: Tensor) -> Tensor:
    """Log multinomial densities for proportions (n_rows, k) and words (n_features, k)."""
    cells = X.sampled(proportions, words).clamp_min(_TINY).log()
    return X.over_rows(X.values * cells) + X.log_orderings


def tilted(mean: Tensor, sd: Tensor) -> Tensor:
    """exp E log softmax(u), with E log sum exp(u) replaced by its bound log sum E exp(u)."""
    return (mean - torch.logsumexp(mean + 0.5 * sd**2, -1, keepdim=True)).exp()


def softmax_step(counts, total, loc, precision, mean, variance):
    """Take a step up in N(mean, variance) for softmax logits that explain expected counts.

    Maximises counts . m - total log sum exp(m + v / 2) + E log N(u; loc, 1 / precision) + entropy
    over the last dimension: first in m by the Newton step, which is cheap (the Hessian is diagonal
    plus rank one), then in log v by a diagonal one. A step d is cut to d / (1 + max |d|): the
    curvature of log sum exp grows by at most exp(2 max |d|) on the way, so no step overshoots.

    Returns
    -------
    mean, variance : Tensors
    """
    p = torch.softmax(mean + 0.5 * variance, -1)
    curvature = total * p + precision
    step = (counts - total * p - (mean - loc) * precision) / curvature
    response = p / curvature
    rank_one = 1 - total * (p * response).sum(-1, keepdim=True)
    step = step + total * response * (p * step).sum(-1, keepdim=True) / rank_one
    mean = mean + step / (1 + step.abs().amax(-1, keepdim=True))
    expected = total * torch.softmax(mean + 0.5 * variance, -1)
    pull = variance * (expected + precision)
    step = (1 - pull) / (pull + 0.5 * variance**2 * expected)
    return mean, variance * (step / (1 + step.abs().amax(-1, keepdim=True))).exp()
