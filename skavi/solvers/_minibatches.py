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


class Minibatches:
    """Batches of a problem's rows.

    Parameters
    ----------
    problem : Problem
    state : State
        Where the run starts; its q(theta) is that of all steps where the problem holds it fixed.
    size : int
        Rows a batch.
    """

    def __init__(self, problem, state, size: int):
        self.problem, self.size, self.objective = problem, size, problem.objective
        if problem.frozen_globals:  # what follows from q(theta) is worked out once, not a step
            self.objective = problem.objective.given(state.raw_globals)

    def draw(self) -> Batch:
        """Draw rows for one step: any rows, or for a series a piece of it."""
        rows, coupling = self.problem.rows, self.problem.objective.model.coupling
        n, generator = rows.n_total, self.problem.generator
        drawn, lead, scale = coupling.batch(n, self.size, generator)
        here = drawn[rows.holds(drawn)] - rows.group.first if rows.group.size > 1 else drawn
        return Batch(here.to(rows.X.device), lead, scale, drawn)

    def own_elbo(self, state, batch: Batch) -> Tensor:
        """Return what this rank adds to an unbiased estimate of the ELBO.

        `state` is that of the batch: of the rows' own factors it holds those in the batch.
        """
        problem, rows = self.problem, self.problem.rows
        every = rows.X, rows.weights, problem.features
        X, weights, features = (take_rows(own, batch.index) for own in every)
        raw = problem.function.raw(state.raw_locals, state.shared, features)
        nodes = problem.current_nodes(batch.drawn)
        if not len(weights):  # all of them are other ranks'
            return problem.own_sum(raw.sum(-1), state.raw_globals, weights)
        terms = self.objective.row_terms(raw, state.raw_globals, X, nodes)
        weights = batch.scale * weights[batch.lead :]
        terms = terms[batch.lead :]
        return problem.own_sum(terms, state.raw_globals, weights, self.objective)
