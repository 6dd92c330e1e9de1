"""One fit as an optimisation problem: rows, ELBO, noise and the map from rows to factors, bound.

Solvers see nothing else. Factorized and amortized VI are the same problem with another `function`.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from skavi._rows import Rows
from skavi.inference_functions import InferenceFunction
from skavi.noise import Nodes, Noise
from skavi.objective import Objective
from skavi.solvers import State


@dataclass(frozen=True)
class Batch:
    """Rows of one stochastic step.

    Attributes
    ----------
    index : Tensor of shape (n_batch,)
    lead : int
        How many rows at the front are there only for the next one to read (a series' edge).
    scale : float
        What makes the sum of the batch's terms an unbiased estimate of that of all rows.
    """

    index: Tensor
    lead: int
    scale: float


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
    """

    objective: Objective
    function: InferenceFunction
    rows: Rows
    features: Tensor
    noise: Noise
    generator: torch.Generator
    frozen_globals: bool = False
    _kept: list = field(default_factory=list, repr=False)

    @property
    def total_weight(self) -> float:
        """Sum of the rows' weights."""
        return self.rows.total_weight

    def with_noise(self, noise: Noise) -> "Problem":
        """Return the same problem under another noise rule."""
        return replace(self, noise=noise, _kept=[])

    def restricted(self, index: Tensor) -> "Problem":
        """Return the problem of the rows at `index` alone, under the same kept noise."""
        self.nodes()
        return replace(self, rows=self.rows[index], features=self.features[index])

    def nodes(self, n_rows: int | None = None) -> Nodes | None:
        """Return the noise of one evaluation: the same each time when the rule is deterministic."""
        n_rows = len(self.rows) if n_rows is None else n_rows
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
        return nodes if nodes is None or blocks == 1 else nodes.in_turn(n_rows, blocks)

    def raw(self, state: State) -> Tensor:
        """Evaluate the inference function on all rows, shape (n_rows, P)."""
        return self.function.evaluate(state.parameters, self.features)

    def row_terms(self, raw: Tensor, globals_: Tensor) -> Tensor:
        """Return the rows' ELBO terms."""
        return self.objective.row_terms(raw, globals_, self.rows.X, self.nodes())

    def elbo(self, state: State) -> Tensor:
        """Return the ELBO of all rows, in nats."""
        return self.elbo_of(self.raw(state), state.globals_)

    def elbo_of(self, raw: Tensor, globals_: Tensor) -> Tensor:
        """Return the ELBO for given raw local and global parameters."""
        X, weights = self.rows.X, self.rows.weights
        return self.objective.elbo(raw, globals_, X, weights, self.nodes())

    def draw_batch(self, size: int) -> "Batch":
        """Draw rows for one step: any rows, or for a series a piece of it."""
        n, device = len(self.rows), self.rows.X.device
        if not self.objective.model.ordered:
            index = torch.randperm(n, generator=self.generator)[:size]
            return Batch(index.to(device), 0, n / len(index))
        n_pieces = math.ceil(n / size)
        first = size * int(torch.randint(n_pieces, (), generator=self.generator))
        lead = min(first, 1)
        index = torch.arange(first - lead, min(first + size, n), device=device)
        return Batch(index, lead, float(n_pieces))

    def batch_elbo(self, state: State, batch: "Batch") -> Tensor:
        """Return an unbiased estimate of the ELBO from the rows of a batch."""
        raw = self.function.evaluate(state.parameters, self.features[batch.index])
        return self.batch_elbo_of(raw, state.globals_, batch)

    def batch_elbo_of(self, raw: Tensor, globals_: Tensor, batch: "Batch") -> Tensor:
        """Return the same for given raw local parameters of the batch."""
        rows = self.rows[batch.index]
        nodes = self.nodes(len(rows))
        terms = self.objective.row_terms(raw, globals_, rows.X, nodes)
        local = rows.weights[batch.lead :] @ terms[batch.lead :]
        return batch.scale * local + self.objective.global_term(globals_)
