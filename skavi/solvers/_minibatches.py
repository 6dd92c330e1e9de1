"""Minibatches: rows of one stochastic step, and an unbiased estimate of the ELBO from them."""

from dataclasses import dataclass

from torch import Tensor

from skavi._data.rows import take_rows


@dataclass(frozen=True)
class Batch:
    """Rows of one stochastic step.

    Attributes
    ----------
    index : Tensor of shape (n_batch,)
        Rows of this rank.
    lead : int
        How many rows at the front only serve as context of the next row, in a series.
    scale : float
        Factor that makes the sum of the batch's terms an unbiased estimate of the full sum.
    drawn : Tensor
        The whole batch, as an index into the rows of all ranks; noise is drawn for all of it.
    """

    index: Tensor
    lead: int
    scale: float
    drawn: Tensor


class Minibatches:
    """Batches of a problem's rows.

    Parameters
    ----------
    problem : Problem
    state : State
        Start of the run; its q(theta) is that of all steps if the problem freezes it.
    size : int
        Rows a batch.
    """

    def __init__(self, problem, state, size: int):
        self.problem, self.size, self.objective = problem, size, problem.objective
        if problem.frozen_globals:  # compute what depends on q(theta) once, not at each step
            self.objective = problem.objective.given(state.raw_globals)

    def draw(self) -> Batch:
        """Draw rows for one step: random rows, or a piece of a series."""
        rows, coupling = self.problem.rows, self.problem.objective.model.coupling
        n, generator = rows.n_total, self.problem.generator
        drawn, lead, scale = coupling.batch(n, self.size, generator)
        here = drawn[rows.holds(drawn)] - rows.ranks.first if rows.ranks.size > 1 else drawn
        return Batch(here.to(rows.X.device), lead, scale, drawn)

    def own_elbo(self, state, batch: Batch) -> Tensor:
        """Return this rank's part of an unbiased estimate of the ELBO.

        `state` holds the factors of the batch's rows only.
        """
        problem, rows = self.problem, self.problem.rows
        every = rows.X, rows.weights, problem.features
        X, weights, features = (take_rows(own, batch.index) for own in every)
        raw = problem.function.raw(state.raw_locals, state.shared, features)
        nodes = problem.current_nodes(batch.drawn)
        if not len(weights):  # all rows of the batch are on other ranks
            return problem.own_sum(raw.sum(-1), state.raw_globals, weights)
        terms = self.objective.row_terms(raw, state.raw_globals, X, nodes)
        weights = batch.scale * weights[batch.lead :]
        terms = terms[batch.lead :]
        return problem.own_sum(terms, state.raw_globals, weights, self.objective)
