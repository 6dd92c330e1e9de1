"""Newton's method, on an arrow matrix, a band, or one dense matrix."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from skavi._curvature import arrow_derivatives
from skavi._data import coupling as kinds
from skavi._data.coupling import Coupling
from skavi._data.process_ranks import over_ranks
from skavi._numerics.sums import add_up, lost_in
from skavi.inference_functions import InferenceFunction, Table
from skavi.inference_functions._linear import LinearFunction
from skavi.solvers._base import Memory, Outcome, Run, Solver, unwatched
from skavi.solvers._loss import estimate_suboptimality
from skavi.solvers._newton_arrow import ArrowSystem, with_slopes
from skavi.solvers._newton_banded import BandedSystem
from skavi.solvers._newton_coupled_network import CoupledNetworkSystem
from skavi.solvers._newton_dense import DenseSystem, LinearSystem
from skavi.solvers._newton_network import NetworkSystem
from skavi.solvers._newton_system import System
from skavi.solvers._state import State

#: Of a full step: each failure divides the length by 64, so this is five failures in a row.
_SHORTEST = 1e-9
#: Nats a row: what a row may leave over where rounding lets no step gain; `transform` asks for
#: no more.
_AT_ROUNDING = 1e-9
#: Times tol: what a fit may leave over where no step gains; none of 1,472 converged fits left
#: more (certificate.json).
_AT_A_STAND = 10
#: Iterations over which gains along kinks are averaged: single gains vary. Not measured.
_WINDOW = 20
#: Iterations of a network where tol is below the ELBO's rounding, so that no end could be told:
#: some then gained a ten-millionth a step for all 10,000 (40 rows, one of 1e8: 70 s).
_BEYOND_DIGITS = 500
#: Nats a row and iteration: along kinks smaller gains would go on without end (solvers.rst).
_LEAST_GAIN = 1e-6


class Newton(Solver):
    """Batched Newton steps for row-wise models under deterministic noise.

    For factorized VI every row has a small block, and rows are coupled by the globals only, so a
    step takes time linear in the number of rows (Schur complement). For functions linear in
    their parameters (`Constant`, `Polynomial`) the same derivatives are gathered into one dense
    system; for networks of up to 2000 parameters the step is a damped Gauss-Newton one, also over
    coupled rows. Each row accepts or rejects its own step.

    Notes
    -----
    Blocks come from differentiating the gradient once more, for any family and any row-wise
    model. Indefinite blocks are replaced by their absolute value (Dauphin et al. 2014) in the
    factors' natural units. Stops when the Newton decrement, half the gradient
    times the step, is below ``tol`` nats a row, after taking that step. Markov models are
    solved as a banded system, in time linear in the rows; other models that couple their rows as
    one dense system, up to 600 unknowns. Where rectified units of a network turn, steps follow the
    shortest mixture of the slopes on all sides, and what the tangents there allow is the estimate
    of what is left; it ends where 20 iterations gain less than 1e-6 nats a row each, or less than
    ``tol`` / 100 (Lemarechal 1975; Burke, Lewis & Overton 2005).

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> from skavi.solvers import Newton
    >>> vi = FactorizedVI(LinearModel(), solver=Newton()).fit([[0.0], [1.0], [5.0]])
    >>> vi.n_iter_ < 10
    True
    """

    second_order = True

    def check_setting(self, setting):
        super().check_setting(setting)
        name = type(setting.objective.model).__name__
        system = system_of(setting.function, setting.coupling)
        if system is None:
            raise ValueError(
                f"Newton fits inference functions of models whose rows meet only in the globals, "
                f"but {name} couples its rows: use solver=LBFGS()."
            )
        system.check(setting)

    def suits(self, setting):
        system = system_of(setting.function, setting.coupling)
        return system is not None and system.suits(setting)

    def works_in_pieces(self, setting):
        """Say whether the system is summed over pieces of rows, so that only time limits it."""
        system = system_of(setting.function, setting.coupling)
        return system is not None and system.in_pieces and setting.coupling.independent

    @over_ranks
    def begin(self, problem, state, tol):
        return _Ascent(problem, state, tol)

    def solve(self, problem, state, tol, max_iter, progress=unwatched):
        system = system_of(problem.function, problem.setting.coupling)
        if problem.frozen_globals and system is ArrowSystem:
            return _solve_rows(problem, state, tol, max_iter)
        return super().solve(problem, state, tol, max_iter, progress)

    def curvature_at(self, problem, state):
        arrow = system_of(problem.function, problem.setting.coupling) is ArrowSystem
        known = problem.objective.knows_row_derivatives  # which cost no passes
        same = problem.for_steps() is problem
        if (known and same) or problem.frozen_globals or not arrow:
            return None
        return arrow_derivatives(problem, state.raw_locals, state.raw_globals)

    def suboptimality_at(self, problem, state, tol, curvature=None):
        if curvature is None:
            return _Ascent(problem, state, 1.0).decrement()
        known = with_slopes(problem, state.raw_locals, state.raw_globals, curvature)
        return max(ArrowSystem(problem).step_by(known).decrement, 0.0)

    def suboptimality_of(self, problem, outcome, tol):
        system = system_of(problem.function, problem.setting.coupling)
        if system is not None and system.damped:
            return max(outcome.suboptimality, estimate_suboptimality(problem, outcome.state, tol))
        return outcome.suboptimality


#: The system of each kind of function (the nearest of its classes counts) under each coupling.
_SYSTEMS: dict[type, dict[type[Coupling], type[System]]] = {
    Table: {
        kinds.Independent: ArrowSystem,
        kinds.Series: ArrowSystem,
        kinds.Chain: BandedSystem,
        kinds.Joint: DenseSystem,
    },
    LinearFunction: {kinds.Independent: LinearSystem, kinds.Series: LinearSystem},
    InferenceFunction: {
        kinds.Independent: NetworkSystem,
        kinds.Series: NetworkSystem,
        kinds.Joint: CoupledNetworkSystem,
    },
}


def system_of(function, coupling: Coupling) -> Any:
    """Return the class of Newton systems for a function, or None if there is none."""
    kind = next(kind for kind in type(function).__mro__ if kind in _SYSTEMS)
    return kinds.of_kind(_SYSTEMS[kind], coupling)


@dataclass(frozen=True, kw_only=True)
class _Memory(Memory):
    unknowns: Tensor
    raw_globals: Tensor
    value: Tensor
    damping: float
    tangents: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    decrement: float = math.inf
    gradient_norm: float = math.inf
    converged: bool = False
    stuck: bool = False


class _Ascent(Run):
    """Newton steps on one system."""

    def __init__(self, problem, state, tol):
        self.system = system_of(problem.function, problem.setting.coupling)(problem)
        self.tolerance = tol * problem.total_weight
        self.least_gain = max(tol / 100, _LEAST_GAIN) * problem.total_weight
        unknowns, raw_globals = self.system.read(state), state.raw_globals
        super().__init__(
            _Memory(
                unknowns=unknowns,
                raw_globals=raw_globals,
                value=self.system.value(unknowns, raw_globals),
                damping=self.system.first_damping,
            )
        )

    def step(self, memory):
        here = memory.unknowns, memory.raw_globals
        step = self.system.step(*here, memory.damping, memory.tangents)
        if not math.isfinite(step.gradient_norm) or math.isnan(step.decrement):
            raise FloatingPointError("the derivatives are not finite")
        move = self.system.move(*here, memory.value, step)
        elbo = self.system.elbo(move.value)
        creeps = bool(move.tangents) and self._mean_gain(elbo) <= self.least_gain
        stands = not move.gained or creeps
        # Where no step gains, rounding hides what is left: a fit may then converge at 10 tol.
        decrement = step.decrement if move.gained else min(step.decrement, move.left)
        converged = decrement <= self.tolerance * (_AT_A_STAND if stands else 1)
        if move.again and not converged:  # a shorter step, nearer to the gradient, may gain
            stands = lost_in(decrement, elbo)
        if self.system.damped and memory.n_iter + 1 >= _BEYOND_DIGITS:
            stands = stands or lost_in(self.tolerance, elbo)
        return replace(
            memory,
            n_iter=memory.n_iter + 1,
            elbo=elbo,
            finished=converged or stands,
            unknowns=move.unknowns,
            raw_globals=move.raw_globals,
            value=move.value,
            damping=move.damping,
            tangents=move.tangents,
            decrement=decrement,
            gradient_norm=step.gradient_norm,
            converged=converged,
            stuck=stands and not converged and not self.system.damped,
        )

    def _mean_gain(self, elbo):
        """Return the mean gain of the last iterations, in nats."""
        curve = self.curve
        return (elbo - curve[-_WINDOW]) / _WINDOW if len(curve) >= _WINDOW else math.inf

    def decrement(self):
        """Return what a step from here is estimated to gain, in nats."""
        memory = self.memory
        step = self.system.step(memory.unknowns, memory.raw_globals, memory.damping)
        return max(step.decrement, 0.0)

    def state(self):
        return self.system.write(self.memory.unknowns, self.memory.raw_globals)

    def outcome(self):
        memory = self.memory
        at_rounding = lost_in(memory.decrement, memory.elbo)
        return Outcome(
            state=self.state(),
            curve=self.curve,
            converged=memory.converged or at_rounding,
            suboptimality=max(memory.decrement, 0.0),
            gradient_norm=memory.gradient_norm,
            stuck=memory.stuck and not at_rounding,
        )


def _solve_rows(problem, state, tol, max_iter):
    """Solve every row's local problem, with q(theta) given; converged rows are left out."""
    raw, raw_globals = state.raw_locals.clone(), state.raw_globals
    coupling = problem.objective.model.coupling
    everyone = torch.arange(len(raw), device=raw.device)
    active, decrement = everyone, raw.new_full((len(raw),), math.inf)
    longest = raw.new_ones(len(raw))
    n_iter = 0
    while len(active) and n_iter < max_iter:
        n_iter += 1
        needed = coupling.needed_for(active)
        system = ArrowSystem(problem if needed is None else problem.restricted(needed))
        which = everyone if needed is None else needed
        step = system.step(raw[which], raw_globals)
        raw[which], gained = system.move_rows(raw[which], raw_globals, step, longest[which])
        decrement[which] = step.row_decrement
        further = (4 * longest[which]).clamp_max(1.0)
        longest[which] = torch.where(gained, further, longest[which] / 64)
        live = (decrement > tol) & (longest > _SHORTEST)
        active = live.nonzero()[:, 0]
    return Outcome(
        state=State(raw, {}, raw_globals),
        curve=[math.nan] * max(n_iter, 1),
        converged=bool((decrement <= max(tol, _AT_ROUNDING)).all()),
        suboptimality=float(add_up(decrement)),
        gradient_norm=math.nan,
    )
