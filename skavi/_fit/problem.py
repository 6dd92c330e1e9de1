"""One fit as an optimisation problem: rows, ELBO, noise and the map from rows to factors, bound.

Solvers see nothing else. Factorized and amortized VI are the same problem with another `function`.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from skavi._data.rows import Rows, taken
from skavi._numerics.sums import inner
from skavi.inference_functions import InferenceFunction
from skavi.noise import Nodes, Noise
from skavi.objective import Objective
from skavi.solvers import State

#: Numbers (rows x nodes x latents a row) that are evaluated at once: they should stay in the cache.
_NUMBERS = 400_000
_FEW = 16  # times the size of a batch: rows that may be shuffled to draw one
_OUTLIER = 10.0  # nats: a pull that grows beyond grows as its logarithm


@dataclass(frozen=True)
class Batch:
    """Rows of one stochastic step.

    Attributes
    ----------
    index : Tensor of shape (n_batch,)
        Those of this rank.
    lead : int
        How many rows at the front are there only for the next one to read (a series' edge).
    scale : float
        What makes the sum of the batch's terms an unbiased estimate of that of all rows.
    drawn : Tensor
        The batch as drawn, among the rows of all ranks: noise goes by where a row stands in it.
    """

    index: Tensor
    lead: int
    scale: float
    drawn: Tensor


@dataclass(frozen=True)
class Pull:
    """A pull of every row towards a given factor, and how much of the ELBO is left beside it.

    Attributes
    ----------
    share : float
        Of the ELBO's terms; the rest is minus c log(1 + r^2 / 2 c), r the distance from `targets`
        in natural steps (Cauchy's loss).
    targets : Tensor of shape (n_rows, P)
    steps : Tensor of shape (n_rows, P)
    """

    share: float
    targets: Tensor
    steps: Tensor

    def __getitem__(self, index) -> "Pull":
        return Pull(self.share, self.targets[index], self.steps[index])

    def mixed(self, terms: Tensor, raw: Tensor) -> Tensor:
        """Mix the rows' ELBO terms with the pull of their raw parameters."""
        pull = 0.5 * (((raw - self.targets) / self.steps) ** 2).sum(-1)
        pull = _OUTLIER * torch.log1p(pull / _OUTLIER)
        return self.share * terms - (1 - self.share) * pull


@dataclass(frozen=True)
class Problem:
    """Maximise the ELBO over `State`.

    Attributes
    ----------
    objective : Objective
    function : InferenceFunction
    rows : Rows
    features : Tensor
        What the function reads of each row.
    noise : Noise
    generator : torch.Generator
        For fresh draws and for batches.
    frozen_globals : bool
        Whether q(theta) is given, as in `transform`.
    pull : Pull or None
        Of every row towards a factor, mixed into its term; only while a network starts.
    single : bool
        Whether stochastic steps may be computed in single precision: X came in it.
    """

    objective: Objective
    function: InferenceFunction
    rows: Rows
    features: Tensor
    noise: Noise
    generator: torch.Generator
    frozen_globals: bool = False
    pull: Pull | None = None
    single: bool = False
    _kept: list = field(default_factory=list, repr=False)
    _given: list = field(default_factory=list, repr=False)

    @cached_property
    def total_weight(self) -> float:
        """Sum of the rows' weights: a pass over all rows, made once."""
        return self.rows.total_weight

    def with_noise(self, noise: Noise) -> "Problem":
        """Return the same problem under another noise rule."""
        return replace(self, noise=noise, _kept=[])

    def in_single(self) -> "Problem":
        """Return the same problem in single precision."""
        X, weights = self.rows.X.to(torch.float32), self.rows.weights.to(torch.float32)
        rows = replace(self.rows, X=X, weights=weights)
        same = self.features is self.rows.X
        features = rows.X if same else self.features.to(torch.float32)
        noise = self.noise.in_single()
        return replace(self, rows=rows, features=features, noise=noise, _kept=[])

    def restricted(self, index: Tensor) -> "Problem":
        """Return the problem of the rows at `index` alone, under the same kept noise."""
        self.nodes()
        pull = None if self.pull is None else self.pull[index]
        return replace(self, rows=self.rows[index], features=self.features[index], pull=pull)

    def apart(self) -> "Problem":
        """Return the problem of this rank's rows, whatever the other ranks do."""
        rows = self.rows
        return replace(self, rows=Rows(rows.X, rows.weights)) if rows.group.size > 1 else self

    def nodes(self, drawn: Tensor | None = None) -> Nodes | None:
        """Return the noise of one evaluation: the same each time when the rule is deterministic.

        Fresh noise is drawn for the rows of all ranks, or for those `drawn` for a batch, so that a
        row's does not depend on where it is held.
        """
        n_rows = self.rows.n_total if drawn is None else len(drawn)
        objective, shared = self.objective, self.noise.deterministic
        blocks = objective.noise_blocks(len(self.rows)) if shared else 1
        if self._kept:
            nodes = self._kept[0]
        else:
            size, k = objective.n_drawn_globals, objective.n_latents
            nodes = self.noise.nodes(size, k * blocks, n_rows, self.generator)
            nodes = nodes if nodes is None else nodes.to(self.rows.weights)
            if shared:
                self._kept.append(nodes)
            elif nodes is not None and self.rows.group.size > 1:
                nodes = self._own(nodes, drawn)
        return nodes if nodes is None or blocks == 1 else nodes.in_turn(n_rows, blocks)

    def _own(self, nodes, drawn):
        """Return the noise of the rows that this rank holds."""
        first = self.rows.group.first
        here = slice(first, first + len(self.rows)) if drawn is None else self._holds(drawn)
        return replace(nodes, locals_=nodes.locals_[:, here])

    def _holds(self, index):
        first = self.rows.group.first
        return (index >= first) & (index < first + len(self.rows))

    def raw(self, state: State) -> Tensor:
        """Evaluate the inference function on all rows, shape (n_rows, P)."""
        return self.function.evaluate(state.parameters, self.features)

    def row_terms(self, raw: Tensor, globals_: Tensor) -> Tensor:
        """Return the rows' ELBO terms; where no gradient is asked for, in bounded memory."""
        nodes, X, parts = self.nodes(), self.rows.X, self.parts()
        if raw.requires_grad or globals_.requires_grad:
            parts = parts[:0]
        if len(parts) > 1:
            pieces = [self.objective.row_terms(raw[p], globals_, X[p], nodes) for p in parts]
            terms = torch.cat(pieces)
        else:
            terms = self.objective.row_terms(raw, globals_, X, nodes)
        return terms if self.pull is None else self.pull.mixed(terms, raw)

    def parts(self) -> list[slice]:
        """Split the rows into pieces whose evaluation takes bounded memory.

        One piece where rows are not independent given theta, or share no nodes.
        """
        n, model = len(self.rows), self.objective.model
        if not model.rowwise or model.ordered or not self.noise.deterministic:
            return [slice(0, n)]
        nodes = self.nodes()
        n_nodes = 1 if nodes is None else len(nodes.weights)
        size = max(1, _NUMBERS // (n_nodes * self.objective.n_latents))
        return [slice(first, min(first + size, n)) for first in range(0, n, size)]

    def elbo(self, state: State) -> Tensor:
        """Return the ELBO of all rows, in nats."""
        return self.elbo_of(self.raw(state), state.globals_)

    def elbo_of(self, raw: Tensor, globals_: Tensor) -> Tensor:
        """Return the ELBO for given raw local and global parameters.

        Over several ranks it has no gradient: see `own_elbo`.
        """
        return self.rows.group.sum(self._own_elbo_of(raw, globals_))

    def own_elbo(self, state: State) -> Tensor:
        """Return what this rank adds to the ELBO: its rows' terms, and on rank 0 the globals'.

        Gradients and Hessians add up over ranks like it.
        """
        return self._own_elbo_of(self.raw(state), state.globals_)

    def _own_elbo_of(self, raw, globals_):
        return self._summed(self.row_terms(raw, globals_), globals_, self.rows.weights)

    def _summed(self, terms, globals_, weights, objective=None):
        if self.rows.group.rank == 0:
            return (objective or self.objective).summed(terms, globals_, weights)
        return inner(weights, terms)

    def elbo_in_parts(self, state: State, size: int) -> Tensor:
        """Return the ELBO, `size` rows at a time where rows are independent: in bounded memory."""
        if not self.objective.model.rowwise or size >= len(self.rows):
            return self.elbo(state)
        sums, nodes = [], self.nodes()
        for first in range(0, len(self.rows), size):
            where = slice(first, first + size)
            if self.function.tabular:
                raw = state.parameters["values"][where]
            else:
                raw = self.function.evaluate(state.parameters, self.features[where])
            terms = self.objective.row_terms(raw, state.globals_, self.rows.X[where], nodes)
            sums.append(inner(self.rows.weights[where], terms))
        if self.rows.group.rank == 0:
            sums.append(self.objective.global_term(state.globals_))
        return self.rows.group.sum(sum(sums[1:], sums[0]))

    def draw_batch(self, size: int) -> "Batch":
        """Draw rows for one step: any rows, or for a series a piece of it."""
        n, device = self.rows.n_total, self.rows.X.device
        if not self.objective.model.ordered:
            drawn = _drawn_rows(n, min(size, n), self.generator)
            here = drawn
            if self.rows.group.size > 1:
                here = drawn[self._holds(drawn)] - self.rows.group.first
            return Batch(here.to(device), 0, n / len(drawn), drawn)
        n_pieces = math.ceil(n / size)
        first = size * int(torch.randint(n_pieces, (), generator=self.generator))
        lead = min(first, 1)
        index = torch.arange(first - lead, min(first + size, n), device=device)
        return Batch(index, lead, float(n_pieces), index)

    def batch_elbo(self, state: State, batch: "Batch") -> Tensor:
        """Return what this rank adds to an unbiased estimate of the ELBO from a batch."""
        features = taken(self.features, batch.index)
        raw = self.function.evaluate(state.parameters, features)
        return self.batch_elbo_of(raw, state.globals_, batch)

    def batch_elbo_of(self, raw: Tensor, globals_: Tensor, batch: "Batch") -> Tensor:
        """Return the same for given raw local parameters of the batch."""
        X, weights = (taken(own, batch.index) for own in (self.rows.X, self.rows.weights))
        rows, nodes = Rows(X, weights), self.nodes(batch.drawn)
        if not len(rows):  # all of them are other ranks'
            return self._summed(raw.sum(-1), globals_, rows.weights)
        objective = self._at(globals_)
        terms = objective.row_terms(raw, globals_, rows.X, nodes)
        weights = batch.scale * rows.weights[batch.lead :]
        return self._summed(terms[batch.lead :], globals_, weights, objective)

    def _at(self, globals_):
        """Return the objective; where q(theta) is given, one that works it out once, not a step."""
        if not self.frozen_globals:
            return self.objective
        known = self._given
        if not known or known[0] is not globals_ or known[1] is not self.objective:
            known[:] = globals_, self.objective, self.objective.given(globals_)
        return known[2]


def _drawn_rows(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw `size` of n rows, all different, in time that grows with `size` alone."""
    if n <= _FEW * size:
        return torch.randperm(n, generator=generator)[:size]
    index = torch.zeros(0, dtype=torch.long)
    while len(index) < size:
        more = torch.randint(n, (size,), generator=generator)
        index = torch.cat([index, more]).unique()
    return index[torch.randperm(len(index), generator=generator)[:size]]
