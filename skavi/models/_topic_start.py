"""Where topics start: several guesses raced on the bound itself, over a part of the documents.

Topics have many local optima, and from one start a fit ends percents below the best. Half of the
guesses are drawn near the prior, from where topics that the data do not need are never taken up;
half are clusters of documents (Arthur & Vassilvitskii 2007, "k-means++", on square roots of
frequencies), from where those that they need are found. All are improved together by sweeps, and
the worse half is left time and again.
"""

import torch
from torch import Tensor

from skavi._data.rows import distinct
from skavi._data.sparse_rows import SparseRows
from skavi.families import DiagonalFactors

#: Documents on which guesses are compared: with these, and the cells, guesses and sweeps below,
#: eight seeds on 1,500 simulated documents end within 0.05 % of the best.
_MOST_ROWS = 1_000
#: Non-zero cells of the documents on which guesses are compared: halving 30,000 lost nothing on
#: 1,500 simulated documents.
_MOST_CELLS = 15_000
#: Guesses of theta, half noise and half clusters: 16 gained nothing on 1,500 simulated documents.
_GUESSES = 8
_SWEEPS = 4  # before half of the guesses are left
#: Sweeps of the best guesses: 10 gained nothing on 1,500 simulated documents.
_LAST_SWEEPS = 6
#: Rounds of k-means: clusters are guesses only. Not measured.
_ASSIGNMENTS = 3
_BORROWED = 10.0  # words, of the corpus' frequencies, that a cluster borrows
_SD = 0.2  # of a guess's logits
_NOISE = 0.2  # sds of the topics' logits around the prior


def raced(model, X: SparseRows, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Return topics' logits (n_components, n_features) that a race has won."""
    X, index = distinct(X)  # in an order of their own: it makes no difference how rows are given
    weights = weights.new_zeros(len(X)).index_add(0, index, weights)
    X, weights = _part(X, weights, generator)
    runs = [_Guess(model, X, weights, topics) for topics in _guesses(model, X, weights, generator)]
    while len(runs) > 1:
        for run in runs:
            run.sweep(_SWEEPS)
        runs = sorted(runs, key=lambda run: -run.elbo)[: len(runs) // 2]
    runs[0].sweep(_LAST_SWEEPS)
    return runs[0].globals_.mean.reshape(model.n_components, -1)


def _part(X, weights, generator):
    """Return documents that have words: a random part of many."""
    index = ((weights > 0) & (X.totals > 0)).nonzero()[:, 0]
    order = torch.randperm(len(index), generator=generator).to(index.device)
    cells = X.starts.diff()[index[order]].cumsum(0)
    few = order[: max(1, min(_MOST_ROWS, int((cells <= _MOST_CELLS).sum())))]
    index = index[few.sort().values]
    return X[index], weights[index]


def _guesses(model, X, weights, generator):
    k, shape = model.n_components, (model.n_components, X.n_features)
    loc = model._loc().to(weights).expand(shape)
    for i in range(_GUESSES):
        if i % 2 or len(X) < k:
            noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(loc)
            yield loc + _NOISE * model.topic_scale * noise
        else:
            yield _clustered(X, weights, torch.softmax(loc[0], -1), k, generator).log()


def _clustered(X, weights, frequency, k, generator):
    """Return the words' probabilities in k clusters of documents."""
    chosen = _spread_out(X, weights, k, generator)
    words = X[chosen].dense()
    for last in range(_ASSIGNMENTS + 1):
        words = words + _BORROWED * frequency
        words = words / words.sum(-1, keepdim=True)
        if last == _ASSIGNMENTS:
            break
        fit = X @ words.log().mT.contiguous()
        shares = weights.unsqueeze(-1) * torch.softmax(fit, -1)
        words = X.transposed_product(X.values, shares).mT
    return words


def _spread_out(X, weights, k, generator):
    """Return k documents that are far from each other."""
    weights = weights * X.totals.clamp_max(1e6)
    roots = (X.values / X.totals[X.row]).sqrt()
    distance, chosen = torch.ones_like(weights), []
    for _ in range(k):
        chance = weights * distance
        chance = chance if float(chance.sum()) > 0 else weights
        new = int(torch.multinomial(chance.cpu(), 1, generator=generator))
        chosen.append(new)
        here = slice(int(X.starts[new]), int(X.starts[new + 1]))
        document = roots.new_zeros(X.n_features)
        document[X.columns[here]] = roots[here]
        overlap = X.over_rows(roots * document[X.columns])
        distance = torch.minimum(distance, (1 - overlap).clamp_min(0))
    return torch.tensor(chosen, device=X.device)


class _Guess:
    """One guess at the topics, and the documents' factors that go with it."""

    def __init__(self, model, X, weights, topics):
        self.model, self.X, self.weights, self.elbo = model, X, weights, -torch.inf
        flat = topics.reshape(-1)
        self.globals_ = DiagonalFactors(flat, torch.full_like(flat, _SD))
        mean = X.new_zeros(len(X), model.n_components)
        self.locals_ = DiagonalFactors(mean, torch.ones_like(mean))

    def sweep(self, n_sweeps):
        """Make sweeps, and note the ELBO, up to a constant."""
        for _ in range(n_sweeps):
            here = self.X, None, self.locals_
            self.locals_ = self.model.local_optimum(self.globals_, *here)
            self.globals_ = self.model.global_optimum(
                self.globals_, self.locals_, self.X, self.weights
            )
        terms = self.model.expected_log_local(self.locals_, self.globals_, self.X)
        terms = terms + self.locals_.entropy()
        loc = self.model._loc().to(terms).repeat(self.model.n_components)
        second = (self.globals_.mean - loc) ** 2 + self.globals_.sd**2
        prior = -0.5 * second.sum() / self.model.topic_scale**2
        self.elbo = float(self.weights @ terms + prior + self.globals_.sd.log().sum())
