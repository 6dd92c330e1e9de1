"""A document's own problem in a topic model: its bound as a function of its factor.

The bound is a convex function of the logits' mean (each word's topic at its optimum) minus another
(the normaliser), so it has several optima: one for every set of topics that may explain a document.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

#: Near the least normal float64: keeps logs and quotients of a probability of zero finite.
_TINY = 1e-300


@dataclass(frozen=True)
class Documents:
    """A few documents beside the words' probabilities; cells are filled up with zero counts.

    Attributes
    ----------
    blocks : tuple of pairs of Tensors of shape (m, c), and (m, c, k)
        Of documents of about as many cells: counts, and exp E log~ words, of each cell's word under
        each topic. Documents are in the order of the blocks.
    totals : Tensor of shape (n, 1)
    loc : Tensor of shape (n, k)
        Of the logits' prior.
    precision : float
        Of the logits' prior.
    """

    blocks: tuple[tuple[Tensor, Tensor], ...]
    totals: Tensor
    loc: Tensor
    precision: float

    @classmethod
    def joined(cls, parts: "Sequence[Documents]") -> "Documents":
        """Return documents of several parts, in their order."""
        blocks = tuple(block for part in parts for block in part.blocks)
        totals, loc = (torch.cat([getattr(p, name) for p in parts]) for name in ("totals", "loc"))
        return cls(blocks, totals, loc, parts[0].precision)

    def __len__(self) -> int:
        return len(self.totals)

    def __getitem__(self, index) -> "Documents":
        """Return the documents at a mask or an index, which is ascending if there are blocks."""
        one = len(self.blocks) == 1
        blocks = [_at(self.blocks[0], index)] if one else _cut(self.blocks, index)
        return Documents(tuple(blocks), self.totals[index], self.loc[index], self.precision)

    def _by_block(self, function, *numbers: Tensor) -> tuple[Tensor, ...]:
        """Return what a function of counts, words and numbers of documents says of all blocks."""
        parts = zip(
            *(part.split([len(c) for c, _ in self.blocks]) for part in numbers), strict=True
        )
        found = [function(*block, *part) for block, part in zip(self.blocks, parts, strict=True)]
        return tuple(
            each[0] if len(each) == 1 else torch.cat(each) for each in zip(*found, strict=True)
        )

    def bound(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Return the ELBO's terms that depend on factors (n, s, k), shape (n, s), in nats."""
        (fit,) = self._by_block(_fit, _tilted(mean, variance))
        away = (mean - self.loc.unsqueeze(1)) ** 2
        return fit + 0.5 * (variance.log() - self.precision * (away + variance)).sum(-1)

    def looked(self, mean: Tensor, variance: Tensor, n_looks: int) -> tuple[Tensor, Tensor]:
        """Climb by steps in the words' topics and in factors (n, s, k) in turn."""
        loc, precision = self.loc.unsqueeze(1), mean.new_tensor(self.precision)
        for _ in range(n_looks):
            counts = self.explained(mean, variance)
            totals = self.totals.unsqueeze(1)
            mean, variance = softmax_step(counts, totals, loc, precision, mean, variance)
        return mean, variance

    def explained(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Return how many words each topic explains, shape (n, s, k)."""
        proportions = _tilted(mean, variance)
        return proportions * self._by_block(_slopes, proportions)[0]

    def curved(self, mean: Tensor, variance: Tensor) -> "Curved":
        """Return the bound's first two derivatives in one factor (n, k) a document."""
        sd, proportions = variance.sqrt(), _tilted(mean, variance)
        slopes, curvature = self._by_block(_slopes_and_curvature, proportions)
        explained = proportions * slopes
        expected = self.totals * torch.softmax(mean + 0.5 * variance, -1)
        pull = expected + self.precision
        root = self.totals.clamp_min(_TINY).sqrt()
        scale = sd * proportions
        return Curved(
            mean_gradient=sd * (explained - expected - self.precision * (mean - self.loc)),
            width_gradient=1 - variance * pull,
            words=curvature.mul_(scale.unsqueeze(-1)).mul_(scale.unsqueeze(-2)),
            means=variance * (pull - explained),
            mixed=sd * variance * expected,
            widths=variance**2 * expected + 2 * variance * pull,
            shared_mean=sd * expected / root,
            shared_width=variance * expected / root,
        )


def _cut(blocks, index):
    """Yield what is left of each block at a mask, or an ascending index, of all documents."""
    n, device = sum(len(counts) for counts, _ in blocks), blocks[0][0].device
    place, first = torch.arange(n, device=device)[index], 0
    for block in blocks:
        inside = place[(place >= first) & (place < first + len(block[0]))] - first
        first += len(block[0])
        if len(inside):
            yield _at(block, inside) if len(inside) < len(block[0]) else block


def _at(block, index):
    counts, words = block
    return counts[index], words[index]


def _fit(counts, words, proportions):
    cells = (proportions @ words.mT).clamp_min(_TINY).log()
    return ((cells @ counts.unsqueeze(-1))[..., 0],)


def _slopes(counts, words, proportions):
    cells = (proportions @ words.mT).clamp_min(_TINY)
    return ((counts.unsqueeze(1) / cells) @ words,)


def _slopes_and_curvature(counts, words, proportions):
    cells = (words @ proportions.unsqueeze(-1)).clamp_min(_TINY)
    slopes = (words.mT @ (counts.unsqueeze(-1) / cells))[..., 0]
    parts = (counts.sqrt().unsqueeze(-1) / cells) * words
    return slopes, parts.mT @ parts


@dataclass(frozen=True)
class Curved:
    """Gradient and negative Hessian of documents' bounds in (mean / sd, log sd).

    With f and b the shared parts, the negative Hessian is, in blocks,
    means + words - f f', mixed - f b' and widths - b b', where all but words is diagonal: the log
    sds are eliminated without a matrix.
    """

    mean_gradient: Tensor
    width_gradient: Tensor
    words: Tensor
    means: Tensor
    mixed: Tensor
    widths: Tensor
    shared_mean: Tensor
    shared_width: Tensor

    def __getitem__(self, index) -> "Curved":
        return Curved(*(getattr(self, each.name)[index] for each in fields(self)))

    def newton_step(self, damping: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return steps (n, k) in mean / sd and log sd, their gains (n,) and whether there is one.

        `damping` (n,) is added to the negative Hessian; there is no step where that is not
        positive definite.
        """
        widths, reduced = self._reduced(damping)
        factor, failed = torch.linalg.cholesky_ex(reduced)
        right = self.mean_gradient - self._mixed(self._widths_solved(widths, self.width_gradient))
        along = torch.cholesky_solve(right.unsqueeze(-1), factor)[..., 0]
        widening = self._widths_solved(widths, self.width_gradient - self._mixed_back(along))
        gain = 0.5 * (self.mean_gradient * along + self.width_gradient * widening).sum(-1)
        fine = (failed == 0) & torch.isfinite(gain)
        along, widening = (torch.where(fine.unsqueeze(-1), t, 0.0) for t in (along, widening))
        return along, widening, gain, fine

    def upward(self) -> tuple[Tensor, Tensor]:
        """Return a direction of length about one along which the bound is curved most upwards."""
        widths, reduced = self._reduced(torch.zeros_like(self.widths[:, 0]))
        along = torch.linalg.eigh(reduced)[1][..., 0]
        return along, -self._widths_solved(widths, self._mixed_back(along))

    def _reduced(self, damping):
        """Return the diagonal of the log sds' block, and the means' block without them."""
        damping = damping.unsqueeze(-1)
        widths = self.widths + damping
        shared = self.mixed * self.shared_width / widths - self.shared_mean
        left = 1 - (self.shared_width**2 / widths).sum(-1, keepdim=True)
        diagonal = self.means + damping - self.mixed**2 / widths
        ratio = (shared / left).unsqueeze(-2)
        reduced = torch.baddbmm(self.words, shared.unsqueeze(-1), ratio, alpha=-1)
        reduced.diagonal(dim1=-2, dim2=-1).add_(diagonal)
        return widths, reduced

    def _widths_solved(self, widths, right):
        response = self.shared_width / widths
        left = 1 - (self.shared_width * response).sum(-1, keepdim=True)
        return right / widths + response * (response * right).sum(-1, keepdim=True) / left

    def _mixed(self, widening):
        return self.mixed * widening - self.shared_mean * _dot(self.shared_width, widening)

    def _mixed_back(self, along):
        return self.mixed * along - self.shared_width * _dot(self.shared_mean, along)


def _dot(left, right):
    return (left * right).sum(-1, keepdim=True)


def _tilted(mean, variance):
    return (mean - torch.logsumexp(mean + 0.5 * variance, -1, keepdim=True)).exp()


def softmax_step(counts, total, loc, precision, mean, variance, dim=-1):
    """Take a step up in N(mean, variance) for softmax logits that explain expected counts.

    Maximises counts . m - total log sum exp(m + v / 2) + E log N(u; loc, 1 / precision) + entropy
    over `dim`: first in m by the Newton step, which is cheap (the Hessian is diagonal plus rank
    one), then in log v by a diagonal one. A step d is cut to d / (1 + max |d|): the curvature of
    log sum exp grows by at most exp(2 max |d|) on the way, so no step overshoots.

    Returns
    -------
    mean, variance : Tensors
    """
    p = torch.softmax(mean + 0.5 * variance, dim)
    curvature = total * p + precision
    step = (counts - total * p - (mean - loc) * precision) / curvature
    response = p / curvature
    rank_one = 1 - total * (p * response).sum(dim, keepdim=True)
    step = step + total * response * (p * step).sum(dim, keepdim=True) / rank_one
    mean = mean + step / (1 + step.abs().amax(dim, keepdim=True))
    expected = total * torch.softmax(mean + 0.5 * variance, dim)
    pull = variance * (expected + precision)
    step = (1 - pull) / (pull + 0.5 * variance**2 * expected)
    return mean, variance * (step / (1 + step.abs().amax(dim, keepdim=True))).exp()
