"""One fit as an optimisation problem: rows, ELBO, noise and the map from rows to factors, bound.

Solvers see nothing else. Factorized and amortized VI are the same problem with another `function`.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from skavi._rows import Rows
from skavi.inference_functions import InferenceFunction
from skavi.noise import Nodes, Noise
from skavi.objective import Objective
from skavi.solvers import State


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
        if self._kept:
            return self._kept[0]
        space, k = self.objective.space, self.objective.n_latents
        n_rows = len(self.rows) if n_rows is None else n_rows
        nodes = self.noise.nodes(space.size, k, n_rows, self.generator)
        nodes = nodes if nodes is None else nodes.to(self.rows.X)
        if self.noise.deterministic:
            self._kept.append(nodes)
        return nodes

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

    def batch_elbo(self, state: State, index: Tensor) -> Tensor:
        """Return an unbiased estimate of the ELBO from the rows at `index`."""
        raw = self.function.evaluate(state.parameters, self.features[index])
        return self.batch_elbo_of(raw, state.globals_, index)

    def batch_elbo_of(self, raw: Tensor, globals_: Tensor, index: Tensor) -> Tensor:
        """Return the same for given raw local parameters of the batch."""
        batch = self.rows[index]
        nodes = self.nodes(len(index))
        terms = self.objective.row_terms(raw, globals_, batch.X, nodes)
        scale = len(self.rows) / len(index)
        return scale * (batch.weights @ terms) + self.objective.global_term(globals_)
