"""Second derivatives of topic models' bounds, in means and log sds of documents and of topics.

With a = m - log sum exp(m + s^2 / 2) of a document and b of a topic, each of their cells has
x log sum_k exp(a_k + b_kv). In a and b its slopes are x r, where r_k are the shares of the topics
in the word, and its second derivatives x (diag(r) - r r'), whose rows add up to 0. Hence the
normaliser of a document, which moves all a_k by one number, leaves no trace in what is mixed; those
of the topics, which move all b_kv of a topic, take the sum over words along.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from skavi._data.sparse_rows import SparseRows

#: Near the least normal float64: keeps quotients of a probability of zero finite.
_TINY = 1e-300


@dataclass(frozen=True)
class Normaliser:
    """Slopes and second derivatives of log sum exp(m + s^2 / 2) over the last dimension.

    Attributes
    ----------
    p, q : Tensors of shape (n, k)
        Slopes in m, and in log s: p s^2.
    variance : Tensor of shape (n, k)
    """

    p: Tensor
    q: Tensor
    variance: Tensor

    @classmethod
    def of(cls, mean: Tensor, sd: Tensor) -> "Normaliser":
        variance = sd**2
        p = torch.softmax(mean + 0.5 * variance, -1)
        return cls(p, p * variance, variance)

    def slopes(self) -> Tensor:
        """Return slopes in means, then log sds, shape (n, 2 k)."""
        return torch.cat([self.p, self.q], -1)

    def curvature(self) -> Tensor:
        """Return second derivatives, shape (n, 2 k, 2 k)."""
        slopes, k = self.slopes(), self.p.shape[-1]
        curved = -slopes.unsqueeze(-1) * slopes.unsqueeze(-2)
        curved.diagonal(dim1=-2, dim2=-1)[:, :k].add_(self.p)
        curved.diagonal(dim1=-2, dim2=-1)[:, k:].add_((2 + self.variance) * self.q)
        for offset in (k, -k):
            curved.diagonal(offset, -2, -1).add_(self.q)
        return curved


class DocumentDerivatives:
    """Derivatives of documents' terms, each times its document's weight.

    Parameters
    ----------
    X : SparseRows
    weights : Tensor of shape (n,)
    factors : DiagonalFactors
        Of the documents' logits.
    proportions, words : Tensors of shape (n, k), (n_features, k)
        exp a, exp b.
    """

    def __init__(self, X: SparseRows, weights: Tensor, factors, proportions, words):
        self.X, self.weights, self.factors = X, weights, factors
        parts = proportions[X.row] * words[X.columns]
        self.shares = parts / parts.sum(-1, keepdim=True).clamp_min(_TINY)
        self.said = (weights[X.row] * X.values).unsqueeze(-1) * self.shares
        self.explained = self._over_rows(self.said)

    def _over_rows(self, cells):
        return cells.new_zeros(len(self.X), cells.shape[-1]).index_add(0, self.X.row, cells)

    def _mixed_cells(self, topic):
        """Return the row of a topic in x (diag(r) - r r') of every cell, (n_cells, k)."""
        mixed = -self.said[:, [topic]] * self.shares
        mixed[:, topic] += self.said[:, topic]
        return mixed

    @property
    def fit(self) -> Tensor:
        """Second derivatives in a, shape (n, k, k)."""
        k = self.shares.shape[-1]
        return torch.stack([self._over_rows(self._mixed_cells(i)) for i in range(k)], 1)

    def of_rows(self, loc: Tensor, precision: float) -> tuple[Tensor, Tensor]:
        """Return slopes (n, 2 k) and second derivatives (n, 2 k, 2 k) in the documents' factors."""
        mean, variance = self.factors.mean, self.factors.sd**2
        normaliser, k = Normaliser.of(mean, self.factors.sd), mean.shape[-1]
        each, totals = self.weights.unsqueeze(-1), (self.weights * self.X.totals).unsqueeze(-1)
        slope = -totals * normaliser.slopes()
        slope[:, :k] += self.explained - each * precision * (mean - loc)
        slope[:, k:] += each * (1 - precision * variance)
        block = -totals.unsqueeze(-1) * normaliser.curvature()
        block[:, :k, :k] += self.fit
        prior = torch.cat([torch.ones_like(mean), 2 * variance], -1)
        block.diagonal(dim1=-2, dim2=-1).sub_(each * precision * prior)
        return slope, block

    def border(self, topics: Normaliser) -> Tensor:
        """Return mixed derivatives with means and log sds of topics, (n, 2 k, 2 k n_features)."""
        X, (k, n_features) = self.X, topics.p.shape
        border = self.said.new_zeros(len(X), 2, k, 2, k, n_features)
        fit = self.fit
        for place, slopes in enumerate((topics.p, topics.q)):
            border[:, 0, :, place] = -fit.unsqueeze(-1) * slopes
        for i in range(k):
            border[:, 0, i, 0].mT.index_put_(
                (X.row, X.columns), self._mixed_cells(i), accumulate=True
            )
        return border.reshape(len(X), 2 * k, -1)

    def of_topics(self, topics: Normaliser) -> tuple[Tensor, Tensor]:
        """Return the slope (Q,) and the Hessian (Q, Q) in means, then log sds, of all topics."""
        k, n_features = topics.p.shape
        said = self.said.new_zeros(n_features, k).index_add(0, self.X.columns, self.said).mT
        totals, curvature = said.sum(-1, keepdim=True), topics.curvature()
        slope = -totals * topics.slopes()
        slope[:, :n_features] += said
        H = self.said.new_zeros(k, 2 * n_features, k, 2 * n_features)
        for i in range(k):
            words = self.said.new_zeros(n_features, k)
            words = words.index_add(0, self.X.columns, self._mixed_cells(i)).mT  # of b_iv and b_jv
            for j in range(k):
                H[i, :, j] = _through(words[j], topics, i, j)
            H[i, :, i] -= totals[i] * curvature[i]
        order = slope.reshape(k, 2, n_features).transpose(0, 1).reshape(-1)
        H = H.reshape(k, 2, n_features, k, 2, n_features).permute(1, 0, 2, 4, 3, 5)
        return order, H.reshape(len(order), len(order))


def _through(words, topics, i, j):
    """Return J_i' diag(words) J_j, where J takes means and log sds of a topic to its b."""
    here, there = (
        torch.cat([-topics.p[each], -topics.q[each]]) for each in (i, j)
    )  # what the normalisers subtract
    n = len(words)
    found = words.sum() * here.unsqueeze(-1) * there
    found[:n] += words.unsqueeze(-1) * there
    found[:, :n] += here.unsqueeze(-1) * words
    found[:n, :n].diagonal().add_(words)
    return found
