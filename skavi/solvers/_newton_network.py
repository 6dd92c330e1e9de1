"""Damped Gauss-Newton steps of networks, also along the kinks of their units.

Where rectified units turn, the ELBO has a kink, and at most optima some do. A step across a kink
gains nothing, however short. So a step that fails leaves the slope found there, and the next one
follows the mixture of slopes that is the shortest in the system's metric: all of them agree that
it leads upwards. Source: bundle methods, Lemarechal (1975), "An extension of Davidon methods to non
differentiable problems"; Burke, Lewis & Overton (2005), "A robust gradient sampling algorithm".
"""

from contextlib import suppress

import numpy as np
import torch
from scipy.optimize import nnls

from skavi.solvers._base import State
from skavi.solvers._newton_arrow import Step, System, gradient_of, positive

MAX_PARAMETERS = 2000
_LEAST_DAMPING, _LIGHT_DAMPING = 1e-9, 1e-6
_MAX_JACOBIAN = 4_000_000  # numbers that are held at once: they should stay in the cache
_STRIPS, _STRIP = 8, 64  # of columns; so many at least
_TRIALS, _GROWTH, _RELIEF = 10, 8, 4  # of the damping
_KINKED_TRIALS, _KINKED_GROWTH = 20, 4
_MOST_PIECES = 40


class GaussNewton(System):
    """A network: its Jacobian in place of a basis, with Levenberg-Marquardt damping."""

    def __init__(self, problem):
        super().__init__(problem)
        self.damping = 1e-2

    def read(self, state):
        self.shapes = {name: value.shape for name, value in state.parameters.items()}
        size = sum(value.numel() for value in state.parameters.values())
        if size > MAX_PARAMETERS:
            raise ValueError(
                f"Newton fits inference functions of up to {MAX_PARAMETERS} parameters, but "
                f"{type(self.problem.function).__name__} has {size}: use solver=LBFGS()."
            )
        return torch.cat([value.reshape(-1) for value in state.parameters.values()])

    def write(self, flat, globals_):
        return State(self._named(flat), globals_)

    def _named(self, flat):
        pieces = flat.split([shape.numel() for shape in self.shapes.values()])
        return {n: v.reshape(s) for (n, s), v in zip(self.shapes.items(), pieces, strict=True)}

    def raw(self, flat):
        return self.problem.function.evaluate(self._named(flat), self.problem.features)

    def value(self, flat, globals_):
        return self.total(self.raw(flat), globals_)

    def step(self, flat, globals_):
        raw = self.raw(flat)
        g, g_globals, H, C, H_globals, row_steps, steps = self.derivatives(raw, globals_)
        size, n_globals = len(flat), C.shape[-1]
        factor = torch.linalg.cholesky(positive(-H))
        carried = torch.cat([g.unsqueeze(-1), -C], -1)
        carried = torch.linalg.solve_triangular(factor, carried, upper=False)
        factor = factor.mT / row_steps.unsqueeze(1)
        top, rest = flat.new_zeros(size, size), flat.new_zeros(size, 1 + n_globals)
        n_part = max(1, _MAX_JACOBIAN // (raw.shape[-1] * size))
        for part in torch.arange(len(raw), device=raw.device).split(n_part):
            root = (factor[part] @ self._jacobian(flat, part)).reshape(-1, size)
            top = top + _gram(root)
            rest = rest + root.mT @ carried[part].reshape(-1, 1 + n_globals)
        top, rest = self.group.sum(top), self.group.sum(rest)
        right, side = torch.cat([rest[:, 0], g_globals]), rest[:, 1:]
        self.system = torch.cat([torch.cat([top, side], 1), torch.cat([side.mT, -H_globals], 1)])
        self.right, self.steps = right, steps
        self._note_kinks(flat, globals_, raw)
        solution, _ = self._solved(self.damping)
        norm = float(right.norm()) / self.problem.total_weight
        return Step(solution, (None, steps), self._decrement(), norm)

    def _note_kinks(self, flat, globals_, raw):
        self.units = torch.cat([torch.ones_like(flat), self.steps])[: len(self.right)]
        self.here = torch.cat([flat, globals_])[: len(self.right)]
        pieces, self.pieces, self.above = self.pieces, [], self.right.new_zeros(1)
        if pieces:
            self._keep_near(pieces, self.total(raw, globals_))

    def _keep_near(self, pieces, value):
        """Keep the tangents that come as near to the ELBO here as a step may lead up."""
        self.pieces, self.above = [], self.above[:1]
        most = self._decrement()
        heights = torch.stack([slope @ self.here + constant for slope, constant in pieces])
        above = (heights - value).abs()
        self.pieces = [p for p, a in zip(pieces, above, strict=True) if a <= most]
        self.above = torch.cat([self.above, above[above <= most]])

    def _decrement(self):
        """Return what a step may gain, in nats: where tangents meet, the model of them all."""
        step, weights = self._solved(_LIGHT_DAMPING)
        return 0.5 * float(self._slopes() @ weights @ step) + float(weights @ self.above)

    def _slopes(self):
        slopes = [slope * self.units for slope, _ in self.pieces]
        return torch.stack([self.right, *slopes], 1)

    def _jacobian(self, flat, part):
        return self.problem.function.jacobian(self._named(flat), self.problem.features[part])

    def _solved(self, damping):
        """Return the step along the shortest mixture of slopes, in the damped metric; and that."""
        damped, slopes = self.system.clone(), self._slopes()
        damped.diagonal().add_(damping * self.system.diagonal().abs().mean())
        factor, info = torch.linalg.cholesky_ex(damped)
        own = torch.eye(slopes.shape[1]).to(slopes)[0]
        if int(info):  # the globals' own block may be indefinite
            return torch.linalg.solve(damped, self.right), own
        halfway = torch.linalg.solve_triangular(factor, slopes, upper=False)
        weights = _shortest(halfway) if len(own) > 1 else own
        step = (halfway @ weights).unsqueeze(-1)
        return torch.linalg.solve_triangular(factor.mT, step, upper=True)[:, 0], weights

    def move(self, flat, globals_, value, step):
        # Pulled are only starts: rounding grows along kinks, and nothing is to be gained there.
        kinked = not self.problem.function.smooth and self.problem.pull is None
        trials, growth = (_KINKED_TRIALS, _KINKED_GROWTH) if kinked else (_TRIALS, _GROWTH)
        size, own, solution = len(flat), self.right / self.units, step.local
        for trial in range(trials):
            there = self.here + self.units * solution
            moved = globals_ if self.frozen else there[size:]
            new_value = self.value(there[:size], moved)
            if torch.isfinite(new_value) and new_value > value:
                self.damping = max(self.damping / _RELIEF, _LEAST_DAMPING)
                self.pieces = [*self.pieces, (own, value - own @ self.here)] if kinked else []
                return there[:size], moved, new_value
            if kinked:
                slope = self._slope(there[:size], moved)
                if torch.isfinite(new_value + slope.sum()):
                    tangent = slope, new_value - slope @ there
                    self.pieces = [*self.pieces, tangent][-_MOST_PIECES:]
            if trial % 2 or not kinked:  # the slope is given a chance before a shorter step is
                self.damping *= growth
            solution, _ = self._solved(self.damping)
        if self.pieces:
            self._keep_near(self.pieces, value)
        self.left = self._decrement()
        return None

    def decrement_left(self):
        return self.left

    def _slope(self, flat, globals_):
        """Gradient in plain units of what `value` returns."""
        parts = self.problem.parts()
        with torch.enable_grad():
            flat = flat.detach().requires_grad_(True)
            globals_ = globals_.detach().requires_grad_(not self.frozen)
            unknowns = (flat,) if self.frozen else (flat, globals_)
            pieces = [gradient_of(self._part(part, flat, globals_), unknowns) for part in parts]
            slopes = [self.group.sum(sum(each)) for each in zip(*pieces, strict=True)]
            if not self.frozen:
                slopes[1] += gradient_of(self.objective.global_term(globals_), (globals_,))[0]
        return torch.cat(slopes)

    def _part(self, part, flat, globals_):
        problem = self.problem.restricted(part)
        raw = problem.function.evaluate(self._named(flat), problem.features)
        return (problem.rows.weights * problem.row_terms(raw, globals_)).sum()


def _gram(rows):
    """Return R'R of rows R, in strips up to the diagonal: little more than half of the products."""
    size = rows.shape[1]
    lower, width = rows.new_zeros(size, size), max(_STRIP, size // _STRIPS)
    for first in range(0, size, width):
        strip = slice(first, first + width)
        lower[strip, : first + width] = rows[:, strip].mT @ rows[:, : first + width]
    return lower.tril() + lower.tril(-1).mT


def _shortest(vectors):
    """Return the weights of the shortest mean of vectors, (dimension, n).

    Non-negative least squares on a system with a row for their sum more: Lawson & Hanson (1974),
    Solving least squares problems, section 23.4 (least distance programming).
    """
    corner = torch.linalg.qr(vectors).R.cpu().numpy()
    size = np.abs(corner[:, 0]).max(initial=0.0)
    weights = np.eye(corner.shape[1])[0]
    if size > 0 and np.isfinite(corner).all():
        system = np.vstack([corner / size, np.ones(corner.shape[1])])
        with suppress(RuntimeError):  # it gave up: the first alone will do
            found, _ = nnls(system, np.append(np.zeros(len(corner)), 1.0))
            weights = found / found.sum()
    return torch.from_numpy(weights).to(vectors)
