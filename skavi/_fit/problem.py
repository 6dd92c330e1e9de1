"""A fit as an optimisation problem: an ELBO bound to rows, noise and an inference function.

Factorized and amortized VI are the same problem with different functions.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from skavi._data.blockwise import EVALUATED_NUMBERS
from skavi._data.rows import Rows, cells_a_row, windows
from skavi._fit.sparse_curvature import sparse_derivatives
from skavi._numerics.sums import inner
from skavi.inference_functions import InferenceFunction
from skavi.models import LatentVariableModel
from skavi.noise import Nodes, Noise
from skavi.objective import Objective
from skavi.solvers import Setting, State

#: Cells of which steps take the model's own second derivatives: of one row of Student t cells, and
#: of 600 answers, three times as many steps took longer with near ones; of 1,000 cells fewer did.
_FEW_CELLS = 1000
#: Of the sd of inputs with the ends of a series: that of the other rows, below which it drowns.
#: A series then lies more than 10^5 of its sds from 0. Not measured: order of magnitude.
_DROWNED = 1e-5


@dataclass(frozen=True)
class Problem:
    """Maximise the ELBO over `State`.

    Attributes
    ----------
    objective : Objective
    function : InferenceFunction
    rows : Rows
    features : Tensor
        Inputs of the function, for each row.
    noise : Noise
    generator : torch.Generator
        For fresh draws and for batches.
    frozen_globals : bool
        Whether q(theta) is given, as in `transform`.
    single : bool
        Whether X is in single precision, so that stochastic steps may be, too.
    nodes : Nodes or None
        Nodes of a deterministic rule, the same at each evaluation; None for closed forms, and for
        rules that draw afresh at each evaluation.
    """

    objective: Objective
    function: InferenceFunction
    rows: Rows
    features: Tensor
    noise: Noise
    generator: torch.Generator
    frozen_globals: bool = False
    single: bool = False
    nodes: Nodes | None = field(default=None, repr=False)

    #: Whether the ELBO is mixed with a penalty, so that its optimum is only a start.
    is_start = False

    def __post_init__(self):
        if self.nodes is None and self.noise.deterministic:
            n_blocks = self.objective.n_colours(len(self.rows))
            nodes = self._nodes(self.objective.n_latents * n_blocks, self.n_rows)
            object.__setattr__(self, "nodes", nodes)

    @cached_property
    def total_weight(self) -> float:
        """Sum of the weights of all ranks' rows, cached."""
        return self.rows.total_weight

    @property
    def n_rows(self) -> int:
        """How many rows all ranks hold."""
        return self.rows.n_total

    @property
    def setting(self) -> Setting:
        """What choices depend on."""
        return Setting(self.objective, self.function, self.noise, self.n_rows)

    # --- variants of the problem ----------------------------------------------------------------

    def with_noise(self, noise: Noise) -> "Problem":
        """Return the same problem under another noise rule."""
        return replace(self, noise=noise, nodes=None)

    def in_single(self) -> "Problem":
        """Return the same problem in single precision."""
        X, weights = self.rows.X.to(torch.float32), self.rows.weights.to(torch.float32)
        rows = replace(self.rows, X=X, weights=weights)
        same = self.features is self.rows.X
        features = rows.X if same else self.features.to(torch.float32)
        noise = self.noise.in_single()
        return replace(self, rows=rows, features=features, noise=noise, nodes=None)

    def restricted(self, index) -> "Problem":
        """Return the problem of the rows at `index` only, with the same nodes."""
        return replace(self, rows=self.rows[index], features=self.features[index])

    def apart(self) -> "Problem":
        """Return the problem of this rank's rows, without the other ranks."""
        rows = self.rows
        return replace(self, rows=Rows(rows.X, rows.weights)) if rows.ranks.size > 1 else self

    def for_steps(self) -> "Problem":
        """Return the same problem with second derivatives near enough for steps, if cheaper."""
        few = self.n_rows * cells_a_row(self.rows.X) < _FEW_CELLS
        model = self.objective.model.with_quick_curvature()
        if few or self.frozen_globals or model is self.objective.model:
            return self
        return replace(self, objective=replace(self.objective, model=model))

    # --- noise ----------------------------------------------------------------------------------

    def current_nodes(self, drawn: Tensor | None = None) -> Nodes | None:
        """Return the noise of one evaluation, of all rows or of the rows `drawn` for a batch.

        Fresh noise is drawn for the rows of all ranks, so that a row's noise does not depend on the
        rank that holds it.
        """
        n_rows = self.n_rows if drawn is None else len(drawn)
        if self.noise.deterministic:
            n_blocks = self.objective.n_colours(len(self.rows))
            if self.nodes is None or n_blocks == 1:
                return self.nodes
            return self.nodes.in_turn(n_rows, n_blocks)
        nodes = self._nodes(self.objective.n_latents, n_rows)
        if nodes is None or self.rows.ranks.size == 1:
            return nodes
        first = self.rows.ranks.first
        here = slice(first, first + len(self.rows)) if drawn is None else self.rows.holds(drawn)
        return replace(nodes, locals_=nodes.locals_[:, here])

    def _nodes(self, n_latents, n_rows):
        size = self.objective.n_drawn_globals
        nodes = self.noise.nodes(size, n_latents, n_rows, self.generator)
        return None if nodes is None else nodes.to(self.rows.weights)

    # --- the ELBO -------------------------------------------------------------------------------

    def raw(self, state: State) -> Tensor:
        """Return the raw factors of all rows, shape (n_rows, P)."""
        return self.function.raw(state.raw_locals, state.shared, self.features)

    def row_terms(self, raw: Tensor, raw_globals: Tensor) -> Tensor:
        """Return the rows' ELBO terms; without gradients, in bounded memory."""
        nodes, X, parts = self.current_nodes(), self.rows.X, self.parts()
        if raw.requires_grad or raw_globals.requires_grad or len(parts) == 1:
            return self.objective.row_terms(raw, raw_globals, X, nodes)
        pieces = [self.objective.row_terms(raw[p], raw_globals, X[p], nodes) for p in parts]
        return torch.cat(pieces)

    def row_derivatives(self, raw: Tensor, raw_globals: Tensor):
        """Return derivatives of the rows' weighted terms where the model knows them, or None."""
        rows, frozen = self.rows, self.frozen_globals
        known = self.objective.row_derivatives(
            raw, raw_globals, rows.X, self.current_nodes(), rows.weights, frozen
        )
        if known is None or not frozen:
            return known
        return *known[:2], raw.new_empty(*raw.shape, 0), raw.new_empty(0), raw.new_empty(0, 0)

    def row_gradient(self, raw: Tensor, raw_globals: Tensor):
        """Return the slopes among these where the model has them for less, or None."""
        objective, rows, nodes = self.objective, self.rows, self.current_nodes()
        if nodes is None or objective.n_drawn_globals:
            return None
        factors, q_theta = objective.local_factors(raw), objective.global_factor(raw_globals)
        given = rows.X, nodes, rows.weights, self.frozen_globals
        return objective.model.row_gradient(factors, q_theta, *given)

    def second_derivatives(self, raw: Tensor, raw_globals: Tensor):
        """Return the same, or what takes far fewer backward passes than there are parameters."""
        known = self.row_derivatives(raw, raw_globals)
        if known is None and not self.is_start:
            known = sparse_derivatives(self, raw, raw_globals)
        return known

    def parts(self) -> list[slice]:
        """Split the rows into pieces whose evaluation takes bounded memory.

        There is one piece if rows are coupled, or if each row has its own draws.
        """
        n = len(self.rows)
        if not self.noise.deterministic:
            return [slice(0, n)]
        size = max(1, EVALUATED_NUMBERS // self.numbers_a_row)
        return self.objective.model.coupling.pieces(n, size)

    @property
    def numbers_a_row(self) -> int:
        """How many numbers (nodes x latents a row) an evaluation of one row holds."""
        n_nodes = 1 if self.nodes is None else len(self.nodes.weights)
        return n_nodes * self.objective.width

    def elbo(self, state: State) -> Tensor:
        """Return the ELBO of all rows, in nats."""
        return self.elbo_of(self.raw(state), state.raw_globals)

    def elbo_of(self, raw: Tensor, raw_globals: Tensor) -> Tensor:
        """Return the ELBO for given raw local and global parameters.

        Over several ranks it has no gradient; use `own_elbo`.
        """
        return self.elbo_from(self.row_terms(raw, raw_globals), raw_globals)

    def elbo_from(self, terms: Tensor, raw_globals: Tensor) -> Tensor:
        """Return the same, given the terms of this rank's rows."""
        return self.rows.ranks.sum(self.own_sum(terms, raw_globals, self.rows.weights))

    def own_elbo(self, state: State) -> Tensor:
        """Return this rank's part of the ELBO: its rows' terms, and on rank 0 the globals' term.

        The ELBO, its gradient and its Hessian are sums of these parts over ranks.
        """
        terms = self.row_terms(self.raw(state), state.raw_globals)
        return self.own_sum(terms, state.raw_globals, self.rows.weights)

    def own_elbo_nearby(self, state: State) -> Tensor:
        """Return `own_elbo` but for a constant and third derivatives: a polynomial where known.

        Where the model knows the rows' derivatives, products with its Hessian cost next to nothing.
        """
        raw, raw_globals = self.raw(state), state.raw_globals
        at, at_globals = raw.detach(), raw_globals.detach()
        terms = []
        for part in self.parts():
            some = self if len(at) == part.stop - part.start else self.restricted(part)
            known = some.row_derivatives(at[part], at_globals)
            if known is None:
                return self.own_elbo(state)
            g, H, C, g_globals, H_globals = known
            move, of_globals = (raw - at)[part], (raw_globals - at_globals)[: len(g_globals)]
            slopes = g + 0.5 * (H @ move.unsqueeze(-1))[..., 0] + C @ of_globals
            terms.append((slopes * move).sum())
            terms.append((g_globals + 0.5 * H_globals @ of_globals) @ of_globals)
        if self.rows.ranks.rank == 0:
            terms.append(self.objective.global_term(raw_globals))
        return sum(terms[1:], terms[0])

    def own_sum(self, terms, raw_globals, weights, objective=None) -> Tensor:
        """Sum the terms of this rank's rows, and on rank 0 the globals' term."""
        if self.rows.ranks.rank == 0:
            return (objective or self.objective).summed(terms, raw_globals, weights)
        return inner(weights, terms)

    def elbo_in_parts(self, state: State, size: int) -> Tensor:
        """Return the ELBO, computed for `size` rows at a time where rows are independent."""
        parts = self.objective.model.coupling.pieces(len(self.rows), size)
        if len(parts) == 1:
            return self.elbo(state)
        sums, every = [], self.current_nodes()
        for part in parts:
            own = state.of_rows(part)
            raw = self.function.raw(own.raw_locals, own.shared, self.features[part])
            nodes = _of_rows(every, part)
            terms = self.objective.row_terms(raw, state.raw_globals, self.rows.X[part], nodes)
            sums.append(inner(self.rows.weights[part], terms))
        if self.rows.ranks.rank == 0:
            sums.append(self.objective.global_term(state.raw_globals))
        return self.rows.ranks.sum(sum(sums[1:], sums[0]))


def _of_rows(nodes, part):
    """Return the nodes of some rows, where each row has noise of its own."""
    if nodes is None or nodes.locals_.shape[1] == 1:
        return nodes
    return replace(nodes, locals_=nodes.locals_[:, part])


# --- inputs of functions ----------------------------------------------------------------------


def windows_of(model: LatentVariableModel, function: InferenceFunction, X: Tensor) -> Tensor:
    """Return each row's window of what the function reads of rows."""
    context = function.context if function.context is not None else model.context
    return windows(function.inputs(model, X), context or (0, 0), model.padding)


def inputs_of(model: LatentVariableModel, function: InferenceFunction, X: Tensor) -> Tensor:
    """Return the windows, and a mask of observed cells if any was missing at the function's fit."""
    return with_mask(model, function, windows_of(model, function, X))


def with_moments(
    model: LatentVariableModel, function: InferenceFunction, inputs: Tensor, weights: Tensor
) -> InferenceFunction:
    """Return a copy of a function that standardises its inputs by their moments over the rows.

    Far from 0 these would be the moments of the padding at the ends of the series, beside which all
    rows look alike; a function that bounds what it reads then leaves the rows at the ends out.
    """
    fitted = function.fit_inputs(inputs, weights)
    before, after = function.context or model.context or (0, 0)
    if not function.bounded or before + after == 0 or before + after + 1 >= len(inputs):
        return fitted
    whole = weights.clone()
    whole[:before], whole[len(inputs) - after :] = 0.0, 0.0
    without = function.fit_inputs(inputs, whole)
    assert fitted.input_scale_ is not None and without.input_scale_ is not None
    drowned = (without.input_scale_ < _DROWNED * fitted.input_scale_).any()
    return without if drowned else fitted


def with_mask(model: LatentVariableModel, function: InferenceFunction, inputs: Tensor) -> Tensor:
    """Return windows, and a mask of observed cells where the model allows missing ones."""
    return function.with_mask(inputs) if model.allows_missing else inputs
