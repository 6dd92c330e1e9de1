"""Newton's method: an arrow, a band, or one dense matrix."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from skavi._data.ranks import over_ranks
from skavi._numerics.sums import add_up
from skavi.solvers._base import Memory, Outcome, Run, Solver, State, unwatched
from skavi.solvers._newton_arrow import Arrow
from skavi.solvers._newton_banded import Chain
from skavi.solvers._newton_dense import Coupled, Dense
from skavi.solvers._newton_network import GaussNewton

_MAX_GLOBALS = 400
MAX_COUPLED_UNKNOWNS = 600
_SHORTEST = 1e-9
_AT_ROUNDING = 1e-9
_AT_A_STAND = 10
_WINDOW = 20
_LEAST_GAIN = 1e-6  # nats a row and iteration: along kinks there is no end to smaller ones


class Newton(Solver):
    """Batched Newton steps for row-wise models under deterministic noise.

    For factorized VI every row has a small block of its own and rows meet only in the globals, so
    a step costs time linear in the number of rows (Schur complement). For functions linear in
    their parameters (`Constant`, `Polynomial`) the same derivatives are gathered into one dense
    system; for networks of up to 2000 parameters the step is a damped Gauss-Newton one. Each row
    accepts or rejects its own step.

    Notes
    -----
    Blocks come from differentiating the gradient once more, so any family and any row-wise model
    will do. Indefinite blocks are replaced by their absolute value (Dauphin et al. 2014) in the
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

    def check_problem(self, problem):
        super().check_problem(problem)
        model = problem.objective.model
        unknowns = n_unknowns(problem.objective, problem.rows.n_total)
        if not model.rowwise and not problem.function.tabular:
            raise ValueError(
                f"Newton fits inference functions of models whose rows meet only in the globals, "
                f"but {type(model).__name__} couples its rows: use solver=LBFGS()."
            )
        if not model.rowwise and model.one_log_joint and unknowns > MAX_COUPLED_UNKNOWNS:
            raise ValueError(
                f"Newton solves up to {MAX_COUPLED_UNKNOWNS} unknowns of a model that couples its "
                f"rows, but {type(model).__name__} has {unknowns}: use "
                "solver=LBFGS()."
            )
        if problem.objective.space.size > _MAX_GLOBALS:
            raise ValueError(
                f"Newton handles up to {_MAX_GLOBALS} globals, this model has "
                f"{problem.objective.space.size}: use solver=LBFGS()."
            )

    @over_ranks
    def begin(self, problem, state, tol):
        return _Ascent(problem, state, tol)

    def solve(self, problem, state, tol, max_iter, progress=unwatched):
        rowwise = problem.objective.model.rowwise
        if problem.frozen_globals and problem.function.tabular and rowwise:
            return _solve_rows(problem, state, tol, max_iter)
        return super().solve(problem, state, tol, max_iter, progress)


@dataclass(frozen=True, kw_only=True)
class _Memory(Memory):
    unknowns: Tensor
    globals_: Tensor
    value: Tensor
    damping: float
    pieces: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    decrement: float = math.inf
    gradient_norm: float = math.inf
    converged: bool = False


class _Ascent(Run):
    """Newton steps on one system."""

    def __init__(self, problem, state, tol):
        linear, tabular = problem.function.linear, problem.function.tabular
        model = problem.objective.model
        table = Arrow if model.rowwise else Coupled if model.one_log_joint else Chain
        self.system = (Dense if linear else table if tabular else GaussNewton)(problem)
        self.tolerance = tol * problem.total_weight
        self.least_gain = max(tol / 100, _LEAST_GAIN) * problem.total_weight
        unknowns, globals_ = self.system.read(state), state.globals_
        value, damping = self.system.value(unknowns, globals_), self.system.damping
        memory = _Memory(unknowns=unknowns, globals_=globals_, value=value, damping=damping)
        super().__init__(memory)

    def step(self, memory):
        system, here = self.system, (memory.unknowns, memory.globals_, memory.value)
        system.damping, system.pieces = memory.damping, memory.pieces
        step = system.step(memory.unknowns, memory.globals_)
        if not math.isfinite(step.gradient_norm):
            raise FloatingPointError("the gradient is not finite")
        found = system.move(*here, step)
        unknowns, globals_, value = found or here
        elbo = system.elbo(value)
        creeps = bool(system.pieces) and self._gained(elbo) <= self.least_gain
        stands = found is None or creeps
        # Where no step gains any more, rounding may leave what `converged_` still allows.
        decrement = step.decrement if found else min(step.decrement, system.decrement_left())
        converged = decrement <= self.tolerance * (_AT_A_STAND if stands else 1)
        return replace(
            memory,
            n_iter=memory.n_iter + 1,
            elbo=elbo,
            finished=converged or stands,
            unknowns=unknowns,
            globals_=globals_,
            value=value,
            damping=system.damping,
            pieces=system.pieces,
            decrement=decrement,
            gradient_norm=step.gradient_norm,
            converged=converged,
        )

    def _gained(self, elbo):
        """Return the mean gain of the last iterations, in nats."""
        curve = self.curve
        return (elbo - curve[-_WINDOW]) / _WINDOW if len(curve) >= _WINDOW else math.inf

    def decrement(self):
        """Return what a step from here is estimated to gain, in nats."""
        return max(self.system.step(self.memory.unknowns, self.memory.globals_).decrement, 0.0)

    def state(self):
        return self.system.write(self.memory.unknowns, self.memory.globals_)

    def outcome(self):
        memory = self.memory
        at_rounding = memory.decrement <= 1e-12 * abs(memory.elbo)
        return Outcome(
            state=self.state(),
            curve=self.curve,
            converged=memory.converged or at_rounding,
            suboptimality=max(memory.decrement, 0.0),
            gradient_norm=memory.gradient_norm,
        )


def _solve_rows(problem, state, tol, max_iter):
    """Solve every row on its own, q(theta) given; rows that have converged are left in peace."""
    raw, globals_ = state.parameters["values"].clone(), state.globals_
    separable = not problem.objective.model.ordered
    everyone = torch.arange(len(raw), device=raw.device)
    active, decrement = everyone, raw.new_full((len(raw),), math.inf)
    longest = raw.new_ones(len(raw))
    n_iter = 0
    while len(active) and n_iter < max_iter:
        n_iter += 1
        system = Arrow(problem.restricted(active) if separable else problem)
        which = active if separable else everyone
        step = system.step(raw[which], globals_)
        raw[which], gained = system.move_rows(raw[which], globals_, step, longest[which])
        decrement[which] = step.row_decrement
        further = (4 * longest[which]).clamp_max(1.0)
        longest[which] = torch.where(gained, further, longest[which] / 64)
        live = (decrement > tol) & (longest > _SHORTEST)
        active = live.nonzero()[:, 0]
    return Outcome(
        state=State({"values": raw}, globals_),
        curve=[math.nan] * max(n_iter, 1),
        converged=bool((decrement <= max(tol, _AT_ROUNDING)).all()),
        suboptimality=float(add_up(decrement)),
        gradient_norm=math.nan,
    )


def n_unknowns(objective, n_rows):
    """Count the numbers that factorized VI moves."""
    local = objective.family.n_parameters(objective.n_latents)
    return n_rows * local + objective.global_family.n_parameters(objective.space.size)
