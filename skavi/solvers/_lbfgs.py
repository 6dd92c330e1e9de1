"""Limited-memory BFGS on a deterministic ELBO."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from skavi._data.process_ranks import over_ranks
from skavi.solvers._base import Memory, Outcome, Run, Solver
from skavi.solvers._conjugate_gradients import newton_step
from skavi.solvers._loss import Loss

#: Of the slope: least decrease of a step, the first Wolfe condition (Nocedal & Wright 2006,
#: 3.1).
_SUFFICIENT = 1e-4
#: Of the slope: what may be left of it, the second Wolfe condition (Nocedal & Wright 2006,
#: 3.1).
_CURVATURE = 0.9
#: Trials of a line search: each lengthens the step 4 times or cuts the interval. Not measured:
#: order of magnitude.
_MAX_TRIALS = 30
#: Small gains in a row before the Hessian is used: a single one may be an accident.
_CALM = 2


class LBFGS(Solver):
    """Limited-memory BFGS with a strong Wolfe line search, in the factors' natural units.

    Needs deterministic noise. When the gains fall below ``tol`` nats a row, conjugate gradients on
    the Hessian itself say how far the optimum still is; Newton steps found that way go on until it
    is nearer than ``tol`` nats a row.

    Parameters
    ----------
    memory : int, default=30
        Pairs of steps and gradient changes that are kept.

    Notes
    -----
    Source: Nocedal & Wright (2006), algorithms 7.1, 7.4, 7.5, 3.5 and 3.6.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> from skavi.solvers import LBFGS
    >>> vi = FactorizedVI(LinearModel(), solver=LBFGS()).fit([[0.0], [1.0], [5.0]])
    >>> vi.converged_
    True
    """

    def __init__(self, memory=30):
        self.memory = memory

    def check(self):
        self._require_integer("memory", 1)

    @over_ranks
    def begin(self, problem, state, tol):
        return _Descent(problem, state, tol, self.memory)


@dataclass(frozen=True, kw_only=True)
class _Memory(Memory):
    position: Tensor
    value: float
    gradient: Tensor
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    calm: int = 0
    decrement: float = math.inf


class _Descent(Run):
    """Quasi-Newton steps that lower the loss."""

    def __init__(self, problem, state, tol, n_pairs):
        self.loss, self.tol, self.n_pairs = Loss(problem, state), tol, n_pairs
        position = torch.zeros(self.loss.size, dtype=self.loss.dtype, device=self.loss.device)
        value, gradient = self.loss(position)
        super().__init__(_Memory(position=position, value=value, gradient=gradient))

    def step(self, memory):
        if memory.calm >= _CALM:
            return self._check_with_hessian(memory)
        pairs, gradient = memory.pairs, memory.gradient
        dot, norm = self.loss.dot, self.loss.norm
        direction = -_inverse_hessian_times(pairs, gradient, dot)
        slope = float(dot(gradient, direction))
        decrement = -slope / 2
        if not math.isfinite(decrement):
            raise FloatingPointError("the gradient is not finite")
        if decrement <= 0:
            return replace(memory, finished=True)
        first = 1.0 if pairs else min(1.0, 1.0 / norm(gradient))
        here = memory.position, memory.value, gradient
        found = _line_search(self.loss, *here, direction, slope, first)
        if found is None:
            # The pairs may be outdated: try the plain gradient before giving up.
            return replace(memory, pairs=[], finished=not pairs)
        length, value, new_gradient = found
        step, change = length * direction, new_gradient - gradient
        if dot(step, change) > 1e-12 * norm(step) * norm(change):
            pairs = [*pairs, (step, change)][-self.n_pairs :]
        small = max(decrement, memory.value - value) < self.tol
        return replace(
            memory,
            n_iter=memory.n_iter + 1,
            elbo=self.loss.elbo(value),
            position=memory.position + step,
            value=value,
            gradient=new_gradient,
            pairs=pairs,
            calm=memory.calm + 1 if small else 0,
        )

    def _check_with_hessian(self, memory):
        """Estimate what is left from the Hessian, and take its Newton step."""
        gradient, times = self.loss.products(memory.position)
        step, decrement, convex = newton_step(gradient, times, self.tol, self.loss.dot)
        if math.isnan(decrement):  # no Hessian: two small steps in a row are the end
            return replace(memory, finished=True)
        memory = replace(memory, decrement=decrement)
        enough = convex and decrement <= self.tol  # the step is still taken, as Newton does
        slope = float(self.loss.dot(gradient, step))
        found = _line_search(self.loss, memory.position, memory.value, gradient, step, slope, 1.0)
        if found is None:
            return replace(memory, pairs=[], calm=0, finished=enough or not memory.pairs)
        length, value, gradient = found
        # A gain below tol ends the run at a shallow saddle point; elsewhere a gain of rounding.
        shallow = not convex and decrement <= self.tol
        gain = memory.value - value
        done = enough or gain <= (self.tol if shallow else 1e-15 * abs(value))
        return replace(
            memory,
            n_iter=memory.n_iter + 1,
            elbo=self.loss.elbo(value),
            finished=done,
            position=memory.position + length * step,
            value=value,
            gradient=gradient,
            decrement=decrement if done else math.inf,
            calm=memory.calm if convex else 0,
        )

    def state(self):
        return self.loss.state(self.memory.position)

    def outcome(self):
        memory, scale = self.memory, self.loss.scale
        left = memory.decrement
        if not math.isfinite(left):
            gradient, times = self.loss.products(memory.position)
            _, left, convex = newton_step(gradient, times, self.tol, self.loss.dot)
            if not convex:
                step = _inverse_hessian_times(memory.pairs, memory.gradient, self.loss.dot)
                predicted = float(self.loss.dot(memory.gradient, step)) / 2
                left = predicted if math.isnan(left) else max(left, predicted)
        converged = left <= max(self.tol, 1e-13 * abs(memory.value))
        return Outcome(
            state=self.state(),
            curve=self.curve or [self.loss.elbo(memory.value)],
            converged=converged,
            suboptimality=left * scale,
            gradient_norm=self.loss.norm(memory.gradient),
            stuck=memory.finished and not converged,
        )


def _inverse_hessian_times(pairs, vector, dot):
    """Two-loop recursion (Nocedal & Wright 2006, algorithm 7.4)."""
    if not pairs:
        return vector
    vector, kept = vector.clone(), []
    for step, change in reversed(pairs):
        rho = 1 / dot(step, change)
        alpha = rho * dot(step, vector)
        vector -= alpha * change
        kept.append((rho, alpha))
    step, change = pairs[-1]
    vector *= dot(step, change) / dot(change, change)
    for (step, change), (rho, alpha) in zip(pairs, reversed(kept), strict=True):
        vector += (alpha - rho * dot(change, vector)) * step
    return vector


def _line_search(loss, position, value, gradient, direction, slope, length):
    """Find a step that satisfies the strong Wolfe conditions, or else the largest decrease found.

    Return (length, value, gradient), or None if no trial was lower. A step is too long where the
    loss is not finite.
    """
    low = (0.0, value, slope)
    high = None
    best = None
    rounding = 4e-16 * abs(value)  # near the optimum gains are below rounding: trust the slope
    for _ in range(_MAX_TRIALS):
        trial_value, trial_gradient = loss(position + length * direction)
        finite = math.isfinite(trial_value) and loss.finite(trial_gradient)
        trial_slope = float(loss.dot(trial_gradient, direction)) if finite else math.nan
        if finite and trial_value < value and (best is None or trial_value < best[1]):
            best = (length, trial_value, trial_gradient)
        too_long = not finite or trial_value > value + _SUFFICIENT * length * slope + rounding
        if too_long or trial_value > low[1] + rounding:
            high = (length, trial_value, trial_slope, finite)
        elif abs(trial_slope) <= -_CURVATURE * slope:
            return length, trial_value, trial_gradient
        elif trial_slope >= 0:
            high = (length, trial_value, trial_slope, finite)
        else:
            low = (length, trial_value, trial_slope)
        if high is None:
            length *= 4.0
        else:
            if abs(high[0] - low[0]) <= 1e-12 * max(high[0], 1e-300):
                break
            length = _interpolate(low, high)
    return best


def _interpolate(low, high):
    """Minimise the cubic through both ends, away from the ends; bisect if it has no minimum."""
    a, fa, ga = low
    b, fb, gb, finite = high
    middle = 0.5 * (a + b)
    if not finite:
        return a + 0.1 * (b - a)
    d = ga + gb - 3 * (fa - fb) / (a - b)
    inside = d * d - ga * gb
    if not (inside >= 0 and math.isfinite(inside)):
        return middle
    root = math.copysign(math.sqrt(inside), b - a)
    denominator = gb - ga + 2 * root
    if denominator == 0:
        return middle
    point = b - (b - a) * (gb + root - d) / denominator
    margin = 0.1 * (b - a)
    return min(max(point, a + margin), b - margin) if math.isfinite(point) else middle
