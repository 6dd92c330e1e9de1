"""Limited-memory BFGS on a deterministic ELBO."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from skavi.solvers._base import Memory, Outcome, Run, Solver, State, natural_steps

_SUFFICIENT, _CURVATURE = 1e-4, 0.9
_MAX_TRIALS = 30


class LBFGS(Solver):
    """Limited-memory BFGS with a strong Wolfe line search, in the factors' natural units.

    Needs deterministic noise. Stops when the estimated distance to the optimum, half the gradient
    times the quasi-Newton step, and the last gain are both below ``tol`` nats a row.

    Parameters
    ----------
    memory : int, default=30
        Pairs of steps and gradient changes that are kept.

    Notes
    -----
    Source: Nocedal & Wright (2006), algorithms 7.4, 7.5, 3.5 and 3.6.

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

    def begin(self, problem, state, tol):
        return _Descent(problem, state, tol, self.memory)


@dataclass(frozen=True, kw_only=True)
class _Memory(Memory):
    position: Tensor
    value: float
    gradient: Tensor
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    calm: int = 0


class _Descent(Run):
    """Quasi-Newton steps down the loss."""

    def __init__(self, problem, state, tol, n_pairs):
        self.loss, self.tol, self.n_pairs = _Loss(problem, state), tol, n_pairs
        position = torch.zeros(self.loss.size, dtype=self.loss.dtype, device=self.loss.device)
        value, gradient = self.loss(position)
        super().__init__(_Memory(position=position, value=value, gradient=gradient))

    def step(self, memory):
        pairs, gradient = memory.pairs, memory.gradient
        direction = -_inverse_hessian_times(pairs, gradient)
        slope = float(gradient @ direction)
        decrement = -slope / 2
        if not math.isfinite(decrement):
            raise FloatingPointError("the gradient is not finite")
        if decrement <= 0:
            return replace(memory, finished=True)
        first = 1.0 if pairs else min(1.0, 1.0 / float(gradient.norm()))
        here = memory.position, memory.value, gradient
        found = _line_search(self.loss, *here, direction, slope, first)
        if found is None:
            # A stale memory: try the plain gradient before giving up.
            return replace(memory, pairs=[], finished=not pairs)
        length, value, new_gradient = found
        step, change = length * direction, new_gradient - gradient
        if step @ change > 1e-12 * float(step.norm() * change.norm()):
            pairs = [*pairs, (step, change)][-self.n_pairs :]
        small = max(decrement, memory.value - value) < self.tol
        calm = memory.calm + 1 if small else 0
        return replace(
            memory,
            n_iter=memory.n_iter + 1,
            elbo=self.loss.elbo(value),
            finished=calm >= 2,
            position=memory.position + step,
            value=value,
            gradient=new_gradient,
            pairs=pairs,
            calm=calm,
        )

    def state(self):
        return self.loss.state(self.memory.position)

    def outcome(self):
        memory, scale = self.memory, self.loss.scale
        step = _inverse_hessian_times(memory.pairs, memory.gradient)
        remaining = float(memory.gradient @ step) / 2
        at_rounding = remaining <= max(self.tol, 1e-13 * abs(memory.value))
        return Outcome(
            state=self.state(),
            curve=self.curve or [self.loss.elbo(memory.value)],
            converged=memory.calm >= 2 or at_rounding,
            suboptimality=max(remaining, 0.0) * scale,
            gradient_norm=float(memory.gradient.norm()),
        )


class _Loss:
    """-ELBO a row as a function of one vector: departures from the start in natural steps."""

    def __init__(self, problem, state):
        self.problem, self.scale = problem, max(problem.total_weight, 1e-300)
        lengths, global_lengths = natural_steps(problem, state)
        self.parts = [(state.parameters[name], lengths[name]) for name in state.parameters]
        self.names = list(state.parameters)
        if problem.frozen_globals:
            self.globals_ = state.globals_
        else:
            self.parts.append((state.globals_, global_lengths))
        self.size = sum(start.numel() for start, _ in self.parts)
        self.dtype, self.device = problem.rows.X.dtype, problem.rows.X.device

    def state(self, position):
        values, offset = [], 0
        for start, length in self.parts:
            piece = position[offset : offset + start.numel()].reshape(start.shape)
            values.append(start + length * piece)
            offset += start.numel()
        globals_ = self.globals_ if self.problem.frozen_globals else values.pop()
        return State(dict(zip(self.names, values, strict=True)), globals_)

    def elbo(self, value):
        return -value * self.scale

    def __call__(self, position):
        with torch.enable_grad():  # also from `transform`, which runs without
            position = position.detach().requires_grad_(True)
            value = -self.problem.elbo(self.state(position)) / self.scale
            (gradient,) = torch.autograd.grad(value, position)
        return float(value.detach()), gradient


def _inverse_hessian_times(pairs, vector):
    """Two-loop recursion (Nocedal & Wright 2006, algorithm 7.4)."""
    if not pairs:
        return vector
    vector, kept = vector.clone(), []
    for step, change in reversed(pairs):
        rho = 1 / (step @ change)
        alpha = rho * (step @ vector)
        vector -= alpha * change
        kept.append((rho, alpha))
    step, change = pairs[-1]
    vector *= (step @ change) / (change @ change)
    for (step, change), (rho, alpha) in zip(pairs, reversed(kept), strict=True):
        vector += (alpha - rho * (change @ vector)) * step
    return vector


def _line_search(loss, position, value, gradient, direction, slope, length):
    """Find a step that satisfies the strong Wolfe conditions, or the best decrease met.

    Returns (length, value, gradient), or None when nothing lower was found. A non-finite loss
    counts as too long a step.
    """
    low = (0.0, value, slope)
    high = None
    best = None
    rounding = 4e-16 * abs(value)  # near the optimum gains drown in it: trust the slope
    for _ in range(_MAX_TRIALS):
        trial_value, trial_gradient = loss(position + length * direction)
        finite = math.isfinite(trial_value) and bool(torch.isfinite(trial_gradient).all())
        trial_slope = float(trial_gradient @ direction) if finite else math.nan
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
            length = _between(low, high)
    return best


def _between(low, high):
    """Minimise the cubic through both ends, kept off the ends; bisect where there is none."""
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
