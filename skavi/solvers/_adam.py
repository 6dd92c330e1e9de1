"""Adam for any noise, with a stopping rule for a noisy ELBO."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skavi._data.process_ranks import over_ranks
from skavi._data.rows import take_rows
from skavi.solvers._adam_steps import move_rows, move_whole
from skavi.solvers._base import Memory, Outcome, Run, Solver
from skavi.solvers._loss import estimate_suboptimality
from skavi.solvers._minibatches import Minibatches
from skavi.solvers._state import natural_steps

#: Steps whose mean ELBO is compared with that of the window before: a mean of 200 has 1/14 of
#: the noise of one.
_WINDOW = 200
#: Of the learning rate, where a window brings no gain: five falls to the end. Not measured.
_DECAY = 0.3
#: Of the first learning rate: below it a fit has converged. Not measured.
_SMALLEST = 0.003
#: Sds of one ELBO by which a window's mean must be below the first ELBO to be worse for sure.
_SURE = 4.0
#: Times the first ELBO's size and the rows' weight: by so much no draw of an ordinary fit falls.
_RUIN = 1e6
#: Retreats from numbers that are not finite, and from losses: the rate is then 0.3 ** 10 = 6e-6
#: of the first.
_MAX_RETREATS = 10


class Adam(Solver):
    """Stochastic gradient steps with per-parameter lengths, for any noise rule and any size.

    One iteration is one step. Without a ``schedule`` the learning rate falls by 0.3 whenever the
    mean ELBO of one window of steps is not significantly above that of the window before (two
    standard errors, or tol). The fit has converged when the rate is below 0.003 of its start, or
    after one more fall where later ones promise less than tol: each gains 0.3 of what the one
    before did. Iterates of the last stage are averaged; one window of them ends it where that has
    gained less than tol since the fall. With a ``schedule`` the fit stops the first
    time a window brings no significant gain.

    Parameters
    ----------
    learning_rate : float, default=None
        Length of a step in natural units. None: 0.05 for factorized VI, 0.003 for a network.
    batch_size : int, default=None
        Rows a step, at random (a contiguous piece of a series). None: all rows. Rows that are not
        in the batch stay as they are.
    schedule : callable, default=None
        Map from the iteration (from 0) to a multiplier of the learning rate.

    Notes
    -----
    Steps are computed in the precision of X, float32 or float64; all else of a fit in float64.
    Source: Kingma & Ba (2015), algorithm 1; averaging: Polyak & Juditsky (1992).

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> from skavi.solvers import Adam
    >>> vi = FactorizedVI(LinearModel(), solver=Adam(learning_rate=0.1), random_state=0)
    >>> vi.fit([[0.0], [1.0], [5.0]]).converged_
    True
    """

    needs_deterministic_noise = False

    def __init__(self, learning_rate=None, batch_size=None, schedule=None):
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.schedule = schedule

    def check(self):
        if self.learning_rate is not None:
            self._require_positive("learning_rate")
        if self.batch_size is not None:
            self._require_integer("batch_size", 1)
        self._require("schedule", self.schedule is None or callable(self.schedule), "callable")

    def check_setting(self, setting):
        super().check_setting(setting)
        if self.batch_size is not None:
            setting.coupling.require_row_terms(
                f"Adam(batch_size={self.batch_size})",
                type(setting.objective.model).__name__,
                "use batch_size=None",
            )

    def suboptimality_of(self, problem, outcome, tol):
        """Estimate what is left from the Hessian where steps used all rows.

        Adam itself sees gains only. With minibatches the Hessian's products would take too long:
        each of up to a few hundred is a pass over all rows.
        """
        if self.batch_size in (None, problem.n_rows):
            return max(outcome.suboptimality, estimate_suboptimality(problem, outcome.state, tol))
        return outcome.suboptimality

    @over_ranks
    def begin(self, problem, state, tol):
        return _Ascent(self, problem, state, tol)


@dataclass(frozen=True, kw_only=True)
class _Memory(Memory):
    """Lists have one entry for each tensor that moves, in the order of `State.tensors`.

    A tensor that moves as a whole is its origin plus a departure in natural steps: torch updates
    the departure and the moments in place, and the value is computed from them.
    """

    values: list[Tensor]
    origins: list[Tensor]
    departures: list[Tensor]
    moments: list[tuple[Tensor, Tensor]]
    counts: list[Tensor]
    kept: list[Tensor]
    rate: float
    retreats: int = 0
    averages: list[Tensor] | None = None
    n_averaged: int = 0
    averaging: bool = False
    window_began: int = 0
    window_before: tuple[float, float] | None = None
    at_fall: float = -math.inf
    noise: float = math.inf
    gradient_norm: float = math.inf
    converged: bool = False


class _Ascent(Run):
    """Steps of Adam on every tensor; in minibatches, a table moves row by row.

    Such a table is updated in place, one batch at a time. The old values of the last batch are kept
    and restored if the step is interrupted. No other value is updated in place.
    """

    def __init__(self, solver, problem, state, tol):
        self.least = tol * problem.total_weight
        self.dtype, self.schedule = state.raw_globals.dtype, solver.schedule
        n = problem.rows.n_total
        if problem.single:
            problem, state = problem.in_single(), state.to(torch.float32)
        self.problem, self.origin, self.owned = problem, state, state.n_owned
        self.batches = None
        if solver.batch_size is not None and solver.batch_size < n:
            self.batches = Minibatches(problem, state, solver.batch_size)
        self.lazy = self.batches is not None and self.owned > 0
        self.window = _WINDOW
        if self.lazy:
            self.window *= math.ceil(math.ceil(n / solver.batch_size) / 20)
        moved = not problem.frozen_globals
        values = state.tensors(with_globals=moved)
        self.lengths = natural_steps(problem, state).tensors(with_globals=moved)
        # Adam's epsilon is compared with slopes in nats, for shared parameters in nats a row.
        self.scales = [1.0] * len(values)
        shared = slice(self.owned, self.owned + len(state.shared))
        self.scales[shared] = [problem.total_weight] * len(state.shared)
        self.units = [
            length if scale == 1.0 else length / scale
            for length, scale in zip(self.lengths, self.scales, strict=True)
        ]
        self.rate = solver.learning_rate or problem.function.learning_rate
        self.undo: tuple | None = None
        values = [value.clone() for value in values]
        super().__init__(
            _Memory(
                values=values,
                origins=values,
                departures=self._no_departures(values),
                moments=self._no_moments(values),
                counts=self._no_counts(values),
                kept=self._keep(values),
                rate=self.rate,
            )
        )

    def step(self, memory):
        multiplier = self.schedule(memory.n_iter) if self.schedule else 1.0
        batch = self.batches.draw() if self.batches is not None else None

        def read(table, i):
            return take_rows(table, batch.index) if batch and self._is_in_place(i) else table

        leaves = [
            read(value, i).detach().requires_grad_(True) for i, value in enumerate(memory.values)
        ]
        part = self._own_elbo(leaves, batch)
        gradients = torch.autograd.grad(part, leaves, materialize_grads=True)
        elbo, gradients = self._add_up(part.detach(), gradients)
        units = [read(unit, i) for i, unit in enumerate(self.units)]
        slopes = [gradient * unit for gradient, unit in zip(gradients, units, strict=True)]
        norm = self._norm(slopes)
        if not math.isfinite(norm + elbo) or self._is_ruin(memory, elbo):
            return self._retreat(memory)
        rate = memory.rate * multiplier
        if self.lazy:
            assert batch is not None
            before = leaves[0].detach()
            self.undo = memory.n_iter, batch.index, before
            own = memory.values[0], memory.moments[0], memory.counts[0]
            move_rows(batch.index, slopes[0], before, units[0], *own, rate)
        values = self._move(memory, slopes, rate)
        memory = replace(
            memory,
            n_iter=memory.n_iter + 1,
            elbo=elbo,
            values=values,
            gradient_norm=norm / self.problem.total_weight,
        )
        return self._judge(self._average(memory))

    def _is_ruin(self, memory, elbo):
        """Say whether steps lost so much that no later ones would bring it back."""
        if not memory.n_iter:
            return False
        first = self.curve[0]
        return elbo < first - _RUIN * (abs(first) + self.problem.total_weight)

    def _is_in_place(self, i):
        return self.lazy and i == 0

    def _keep(self, values):
        """Return values to retreat to, copied where later steps update them in place."""
        return [value.clone() if self._is_in_place(i) else value for i, value in enumerate(values)]

    def _no_moments(self, values):
        return [(torch.zeros_like(value), torch.zeros_like(value)) for value in values]

    def _no_counts(self, values):
        return [
            value.new_zeros(len(value), 1)
            if self._is_in_place(i)
            else value.new_zeros((), dtype=torch.float32)  # torch's fused kernel needs float32
            for i, value in enumerate(values)
        ]

    def _no_departures(self, values):
        return [
            value.new_zeros(0) if self._is_in_place(i) else torch.zeros_like(value)
            for i, value in enumerate(values)
        ]

    def _own_elbo(self, leaves, batch):
        state = self.origin.with_tensors(leaves)
        if self.batches is None:
            return self.problem.own_elbo(state)
        return self.batches.own_elbo(state, batch)

    def _add_up(self, elbo, gradients):
        """Sum the ELBO and the shared gradients over ranks; gradients of own rows stay."""
        ranks, owned = self.problem.rows.ranks, self.owned
        if ranks.size == 1:
            return float(elbo), gradients
        shared = gradients[owned:]
        flat = ranks.sum(torch.cat([elbo.reshape(1), *[g.reshape(-1) for g in shared]]))
        pieces = flat[1:].split([g.numel() for g in shared])
        added = [piece.reshape(g.shape) for piece, g in zip(pieces, shared, strict=True)]
        return float(flat[0]), [*gradients[:owned], *added]

    def _norm(self, slopes):
        """Return the norm of the gradient of all ranks, in nats."""
        ranks, owned = self.problem.rows.ranks, self.owned
        lengths = list(torch._foreach_norm(slopes))  # one call, for any number of tensors
        if ranks.size > 1 and owned:
            lengths[0] = ranks.sum(lengths[0] ** 2).sqrt()
        parts = zip(torch.stack(lengths).tolist(), self.scales, strict=True)
        return math.hypot(*(length * scale for length, scale in parts))

    def _move(self, memory, slopes, rate):
        """Move along the slopes; return the values, with a table that moves by rows unchanged."""
        values, whole = list(memory.values), slice(int(self.lazy), None)
        departures = memory.departures[whole]
        move_whole(slopes[whole], departures, memory.moments[whole], memory.counts[whole], rate)
        parts = zip(memory.origins[whole], self.lengths[whole], departures, strict=True)
        values[whole] = [torch.addcmul(*part) for part in parts]
        return values

    def _retreat(self, memory):
        """Return to the last kept values, with a smaller learning rate and moments of zero."""
        if memory.retreats == _MAX_RETREATS:
            raise FloatingPointError(
                "Adam met a non-finite ELBO or gradient, or an ELBO far below that of its start, "
                f"at iteration {memory.n_iter} and could not get round it in {_MAX_RETREATS} "
                "retreats: lower solver__learning_rate, or "
                "check the model's densities for overflow."
            )
        return replace(
            memory,
            values=(values := [value.clone() for value in memory.kept]),
            origins=values,
            departures=self._no_departures(values),
            moments=self._no_moments(memory.kept),
            counts=self._no_counts(memory.kept),
            rate=memory.rate * _DECAY,
            retreats=memory.retreats + 1,
            averages=None,  # they may contain values that are not finite
            n_averaged=0,
        )

    def _average(self, memory):
        """Add the values to the running averages, in the last stage."""
        if self.lazy or not memory.averaging:
            return memory
        if memory.averages is None:
            return replace(memory, averages=self._keep(memory.values), n_averaged=1)
        n = memory.n_averaged + 1
        pairs = zip(memory.averages, memory.values, strict=True)
        return replace(memory, averages=[torch.lerp(*pair, 1 / n) for pair in pairs], n_averaged=n)

    def _judge(self, memory):
        """Compare a full window of ELBOs with the one before; without a gain, lower the rate."""
        if memory.n_iter - memory.window_began < self.window:
            return memory
        window = [*self.curve[memory.window_began : memory.n_iter - 1], memory.elbo]
        values = torch.tensor(window, dtype=torch.float64)
        now, before = (
            (float(values.mean()), float(values.var()) / self.window),
            memory.window_before,
        )
        memory = replace(memory, window_began=memory.n_iter, window_before=now)
        if before is None:
            gain = now[0] - memory.at_fall + 2 * math.sqrt(2 * now[1])
            done = memory.averaging and 0 < gain <= self.least
            return replace(memory, finished=done, converged=done)
        noise = 2 * math.sqrt(now[1] + before[1])
        memory = replace(memory, noise=noise)
        if now[0] - before[0] > max(noise, self.least):
            return memory
        if now[0] < self.curve[0] - max(self.least, _SURE * float(values.std())):
            memory = replace(self._retreat(memory), window_began=memory.n_iter)
            return replace(memory, window_before=None)  # no end is below the start
        rate = memory.rate * _DECAY
        converged = self.schedule is not None or memory.averaging
        # What noisy steps lose is proportional to the rate: so are the gains of its falls.
        to_come = _DECAY**2 / (1 - _DECAY) * (now[0] - memory.at_fall + noise)
        last = rate * _DECAY < _SMALLEST * self.rate or 0 < to_come <= self.least
        return replace(
            memory,
            finished=converged,
            converged=converged,
            rate=rate,
            kept=self._keep(memory.values),
            window_before=None,
            at_fall=now[0],
            averaging=last,
        )

    def state(self):
        memory = self.memory
        if self.undo is not None and self.undo[0] == memory.n_iter:
            _, index, rows = self.undo  # a step was interrupted after it began to move the table
            memory.values[0][index] = rows
        return self.origin.with_tensors(memory.averages or memory.values).to(self.dtype)

    def outcome(self):
        return Outcome(
            state=self.state(),
            curve=self.curve,
            converged=self.memory.converged,
            suboptimality=self.memory.noise,
            gradient_norm=self.memory.gradient_norm,
        )
