"""The Newton system of rows that are independent given theta: blocks, and a border of globals."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skavi._curvature import (
    Blocks,
    Derivatives,
    arrow_derivatives,
    differentiate_global_term,
    eliminate,
    gradient_of,
    sum_of_rows,
)
from skavi._numerics.positive_definite import positive
from skavi._numerics.sums import add_up
from skavi.solvers._newton_system import (
    LONGEST_LOG_STEP,
    Move,
    Step,
    System,
    damped,
    less_damping,
    no_move,
)
from skavi.solvers._state import State

#: Ratio of the lengths that are tried: 1, 1/4, 1/16 cover a wide range in few evaluations.
_SHRINK = 0.25
#: Lengths of theta's step.
_LENGTHS = (*(_SHRINK**trial for trial in range(8)), 0.0)
#: Lengths of each row's step.
_ROW_LENGTHS = (1.0, _SHRINK, _SHRINK**2)
#: Of what a row's step promises with theta fixed: a row that gains so much tries no shorter one.
#: With .1, .3, .5 and .8 10,000 nonlinear rows take 23, 17, 20 and 17 steps, 1,000 of Student t
#: cells 10, 12, 15 and 12.
_ENOUGH = 0.8


@dataclass(frozen=True)
class ArrowStep(Step):
    """A step in which the rows' steps depend on the step of theta.

    Attributes
    ----------
    unknowns : callable
        Map from a step of theta, in natural units, to the rows' steps.
    d_globals : Tensor
        The step of theta, in natural units.
    row_decrement : Tensor of shape (n_rows,)
        Estimated gain of each row's step, with theta fixed.
    """

    unknowns: Callable[[Tensor], Tensor]
    d_globals: Tensor
    row_decrement: Tensor


class ArrowSystem(System):
    """A factor for every row, in time linear in the number of rows."""

    in_pieces = True

    @classmethod
    def suits(cls, setting):
        return setting.small

    def read(self, state):
        return state.raw_locals

    def write(self, raw, raw_globals):
        return State(raw, {}, raw_globals)

    def value(self, raw, raw_globals):
        """Return the rows' weighted terms, with the global term last: `elbo` sums them."""
        rows = self.row_values(raw, raw_globals)
        if self.frozen:
            return torch.cat([rows, rows.new_zeros(1)])
        return torch.cat([rows, self.objective.global_term(raw_globals).reshape(1)])

    def step(self, raw, raw_globals, damping=0.0, tangents=()):
        d = arrow_derivatives(self.problem.for_steps(), raw, raw_globals)
        return self.step_by(d, damping)

    def step_by(self, d, damping=0.0):
        """Return the step that derivatives lead to."""
        # Rows with derivatives that are not finite do not move.
        known = torch.isfinite(d.g).all(1) & torch.isfinite(d.H).all(2).all(1)
        live = (self.weights > 0) & known
        identity = torch.eye(d.H.shape[-1]).to(d.H)
        H = torch.where(known[:, None, None], d.H, -identity)
        A = positive(-H / self.weights.clamp_min(1e-300)[:, None, None])
        A = torch.where(live[:, None, None], A * self.weights[:, None, None], identity)
        g = torch.where(live[:, None], d.g, torch.zeros_like(d.g))
        C = torch.where(live[:, None, None], d.C, torch.zeros_like(d.C))
        left = eliminate(Blocks(A), replace(d, g=g, C=C), self.ranks.sum)
        schur = positive(0.5 * (left.schur + left.schur.mT))
        d_globals = torch.linalg.solve(schur, left.right)

        weights = torch.where(live, self.weights, torch.ones_like(self.weights))
        each, unweighted = g / weights.unsqueeze(-1), A / weights[:, None, None]

        def rows(d_globals):
            d_raw = left.free + left.response @ d_globals
            return safe_logs(d_raw, each, unweighted, self.objective.n_latents) * d.row_steps

        row_decrement = torch.where(known, 0.5 * (g * left.free).sum(-1), math.inf)
        own = torch.stack([add_up(row_decrement), add_up((g**2).reshape(-1)), (~known).sum().to(g)])
        gained, squares, unknown = self.ranks.sum(own).tolist()
        norm = math.sqrt(squares + float((d.g_globals**2).sum())) / self.problem.total_weight
        decrement = gained + 0.5 * float(left.right @ d_globals)
        if damping:
            schur = damped(schur, damping)
            d_globals = torch.linalg.solve(schur, left.right)
        d_globals = safe_logs(d_globals, left.right, schur, self.objective.space.size)
        norm = math.inf if unknown else norm
        return ArrowStep(rows, d.steps, decrement, norm, d_globals, row_decrement, damping=damping)

    def move(self, raw, raw_globals, value, step):
        """Try shorter and shorter steps of the globals; each row takes the best of its steps."""
        for length in _LENGTHS:
            moved = raw_globals + length * step.raw_globals * step.d_globals
            local = step.unknowns(length * step.d_globals)
            best, best_value, _ = self._best_of(raw, moved, local, step.row_decrement)
            if self.elbo(best_value) > self.elbo(value):
                return Move(best, moved, best_value, True, less_damping(step.damping))
        return no_move(raw, raw_globals, value, step.damping)

    def elbo(self, value):
        """Sum the terms of all ranks' rows, and the global term once."""
        if self.ranks.size == 1:
            return float(add_up(value))
        return float(self.ranks.sum(add_up(value[:-1])) + value[-1])

    def move_rows(self, raw, raw_globals, step, longest):
        """Move every row by its best step of at most its `longest`; return which rows gained."""
        local = longest.unsqueeze(-1) * step.unknowns(step.d_globals)
        best, _, gained = self._best_of(raw, raw_globals, local, step.row_decrement)
        return best, gained

    def _best_of(self, raw, raw_globals, local, promised):
        """Give each row the best of its full step, two shorter steps, and no step.

        A row that gains most of what its step promises is not tried again, whatever others do.
        """
        best, best_value = raw, self.value(raw, raw_globals)
        gained = torch.zeros(len(raw), dtype=torch.bool, device=raw.device)
        left = torch.arange(len(raw), device=raw.device)
        for length in _ROW_LENGTHS if raw.shape[1] else ():  # rows without latents have no step
            moved = raw[left] + length * local[left]
            new, old = self._row_values_of(left, moved, raw_globals), best_value[left]
            better = (new > old) | ~torch.isfinite(old)
            best = best.index_copy(0, left, torch.where(better[:, None], moved, best[left]))
            best_value = best_value.index_copy(0, left, torch.where(better, new, old))
            gained = gained.index_copy(0, left, better | gained[left])
            enough = better & (new - old >= _ENOUGH * promised[left])
            if self.problem.objective.model.coupling.independent:
                left = left[~enough]
            elif bool(enough.all()):
                break
            if not len(left):
                break
        return best, best_value, gained

    def _row_values_of(self, index, raw, raw_globals):
        """Return the weighted terms of some rows."""
        if len(index) == len(self.weights):
            return self.row_values(raw, raw_globals)
        return self.weights[index] * self.problem.restricted(index).row_terms(raw, raw_globals)


def with_slopes(problem, raw: Tensor, raw_globals: Tensor, d: Derivatives) -> Derivatives:
    """Return derivatives whose gradient is that of another problem, under a finer rule."""
    found = []
    for part in problem.parts():
        some = problem if part == slice(0, len(raw)) else problem.restricted(part)
        if (known := some.row_gradient(raw[part], raw_globals)) is None:
            with torch.enable_grad():
                here, there, value = sum_of_rows(some, raw[part], raw_globals)
                known = gradient_of(value, (here, there))
        found.append(known)
    g, of_globals = zip(*found, strict=True)
    g_globals = problem.rows.ranks.sum(sum(of_globals))
    g_globals = g_globals + differentiate_global_term(problem.objective, raw_globals)[0]
    return replace(d, g=torch.cat(g) * d.row_steps, g_globals=g_globals * d.steps)


def safe_logs(step, gradient, curvature, k):
    """Correct a step where log scales (coordinates k, ..., 2k - 1) are far from their optimum.

    In log s the gradient is 1 - s^2 E[-d2 log p], so log s has the fixed point log s - log(1 - g)
    / 2, which Newton steps reach slowly, or overshoot. The means then take a separate Newton step,
    so that both parts, and so the whole step, increase the ELBO. Units are natural: sqrt(1/2) in
    log s.
    """
    root = math.sqrt(0.5)
    g = gradient[..., k : 2 * k] / root
    floor = math.exp(-2 * LONGEST_LOG_STEP)
    fixed_point = -0.5 * (1 - g).clamp_min(floor).log() / root
    far = (g.abs() > 0.5).any(-1, keepdim=True)
    if not bool(far.any()):
        return step
    own = torch.linalg.solve(curvature[..., :k, :k], gradient[..., :k].unsqueeze(-1)).squeeze(-1)
    means = torch.where(far, own, step[..., :k])
    logs = torch.where(far, fixed_point, step[..., k : 2 * k])
    rest = torch.where(far, torch.zeros_like(step[..., 2 * k :]), step[..., 2 * k :])
    return torch.cat([means, logs, rest], -1)
