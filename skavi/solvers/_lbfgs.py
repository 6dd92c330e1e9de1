"""Limited-memory BFGS on a deterministic ELBO."""

import math

import torch

from skavi.solvers._base import Outcome, Solver, State, natural_steps

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

    def solve(self, problem, state, tol, max_iter, progress):
        loss = _Loss(problem, state)
        position = torch.zeros(loss.size, dtype=loss.dtype, device=loss.device)
        value, gradient = loss(position)
        curve: list[float] = []
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        calm = 0
        decrement = math.inf
        while len(curve) < max_iter:
            direction = -_inverse_hessian_times(pairs, gradient)
            slope = float(gradient @ direction)
            decrement = -slope / 2
            if decrement <= 0 or not math.isfinite(decrement):
                break
            first = 1.0 if pairs else min(1.0, 1.0 / float(gradient.norm()))
            found = _line_search(loss, position, value, gradient, direction, slope, first)
            if found is None:
                if not pairs:
                    break
                pairs = []  # a stale memory: try the plain gradient before giving up
                continue
            length, new_value, new_gradient = found
            step, change = length * direction, new_gradient - gradient
            if step @ change > 1e-12 * float(step.norm() * change.norm()):
                pairs = [*pairs[1 - self.memory :], (step, change)]
            gain = value - new_value
            position, value, gradient = position + step, new_value, new_gradient
            curve.append(loss.elbo(value))
            calm = calm + 1 if max(decrement, gain) < tol else 0
            if progress(loss.state(position), curve[-1]) or calm >= 2:
                break
        return self._outcome(loss, position, value, gradient, pairs, curve, calm, tol)

    def _outcome(self, loss, position, value, gradient, pairs, curve, calm, tol):
        remaining = float(gradient @ _inverse_hessian_times(pairs, gradient)) / 2
        at_rounding = remaining <= max(tol, 1e-13 * abs(value))
        return Outcome(
            state=loss.state(position),
            curve=curve or [loss.elbo(value)],
            converged=calm >= 2 or at_rounding,
            suboptimality=max(remaining, 0.0) * loss.scale,
            gradient_norm=float(gradient.norm()),
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
