"""Damped Gauss-Newton steps of networks, also along the kinks of their units.

The ELBO has a kink where a rectified unit changes sign, and most optima lie at some kinks. A step
across a kink may gain nothing, however short. So the gradient at the end of a failed step is kept,
and the next step follows the convex combination of gradients that is shortest in the system's
metric: it is an ascent direction for each of them. Source: bundle methods, Lemarechal (1975), "An
extension of Davidon methods to non differentiable problems"; Burke, Lewis & Overton (2005), "A
robust gradient sampling algorithm".
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from skavi._curvature import arrow_derivatives, gradient_of
from skavi._data.blockwise import JACOBIAN_NUMBERS
from skavi._numerics.positive_definite import positive
from skavi.solvers._newton_system import Move, Step, System
from skavi.solvers._state import State

#: Parameters: the system is 32 MB and takes 3e9 operations to factor; two layers of 32 units
#: have 1,200.
MAX_PARAMETERS = 2000
#: Operations of a step (outputs x parameters ** 2): seconds on two cores, by order of
#: magnitude. Not measured.
_MAX_GRAM = 5e10
#: Of the mean diagonal: well above rounding (1e-16), and too small to shorten a step.
_LEAST_DAMPING = 1e-9
#: Of the mean diagonal, for the estimate of what is left: the system stays solvable.
_LIGHT_DAMPING = 1e-6
#: Strips of columns: with 8, 56 % of the products are computed (36 of 64 squares).
_STRIPS = 8
#: Columns of a strip at least: narrow products use little of a processor. Not measured.
_STRIP = 64
#: Trials with more damping each: 8 ** 9 = 1e8 times as much at the last.
_TRIALS = 10
#: Factor of the damping after a step that does not gain. Not measured; usual for
#: Levenberg-Marquardt.
_GROWTH = 8
#: Divisor of the damping after a step that gains: below the growth, so that it does not
#: oscillate. Not measured.
_RELIEF = 4
#: Trials at a kink: each adds a slope, every second one damping as well. Not measured.
_KINKED_TRIALS = 20
#: Factor of the damping at every second failure at a kink. Not measured.
_KINKED_GROWTH = 4
#: Tangents that are kept: each adds a column to a small least squares problem. Not measured.
_MOST_TANGENTS = 40


@dataclass(frozen=True)
class LocalModel:
    """A model of the ELBO near a point: a quadratic, and tangents found beyond kinks.

    Attributes
    ----------
    matrix : Tensor of shape (size, size)
        Minus the curvature, in natural units.
    right : Tensor of shape (size,)
        The gradient, in natural units.
    here, units : Tensor of shape (size,)
        The point in plain units, and the size of natural units in plain ones.
    tangents : list of (Tensor, Tensor)
        Tangents: slope in plain units, and constant.
    above : Tensor of shape (1 + n_tangents,)
        Distance of each tangent from the ELBO at the point, after a 0 for the tangent there.
    """

    matrix: Tensor
    right: Tensor
    here: Tensor
    units: Tensor
    tangents: list[tuple[Tensor, Tensor]]
    above: Tensor

    def with_tangents(self, tangents) -> "LocalModel":
        return LocalModel(self.matrix, self.right, self.here, self.units, tangents, self.above)

    def near(self, tangents, value) -> "LocalModel":
        """Return the model with those tangents whose distance is at most the possible gain."""
        zero = self.right.new_zeros(1)
        bare = LocalModel(self.matrix, self.right, self.here, self.units, [], zero)
        if not tangents:
            return bare
        most = bare.decrement()
        heights = torch.stack([slope @ self.here + constant for slope, constant in tangents])
        above = (heights - value).abs()
        kept = [p for p, a in zip(tangents, above, strict=True) if a <= most]
        above = torch.cat([zero, above[above <= most]])
        return LocalModel(self.matrix, self.right, self.here, self.units, kept, above)

    def slopes(self) -> Tensor:
        """Return all gradients in natural units, the point's own first, (size, 1 + n_tangents)."""
        slopes = [slope * self.units for slope, _ in self.tangents]
        return torch.stack([self.right, *slopes], 1)

    def decrement(self) -> float:
        """Return the possible gain of a step, in nats, under the model with all tangents."""
        step, weights = self.solve(_LIGHT_DAMPING)
        return 0.5 * float(self.slopes() @ weights @ step) + float(weights @ self.above)

    def solve(self, damping: float) -> tuple[Tensor, Tensor]:
        """Return the step along the convex combination of slopes that is shortest in the damped
        metric, and its weights.
        """
        damped, slopes = self.matrix.clone(), self.slopes()
        damped.diagonal().add_(damping * self.matrix.diagonal().abs().mean())
        factor, info = torch.linalg.cholesky_ex(damped)
        own = torch.eye(slopes.shape[1]).to(slopes)[0]
        if int(info):  # the block of the globals may be indefinite
            return torch.linalg.solve(damped, self.right), own
        halfway = torch.linalg.solve_triangular(factor, slopes, upper=False)
        weights = _find_shortest_mean(halfway) if len(own) > 1 else own
        step = (halfway @ weights).unsqueeze(-1)
        return torch.linalg.solve_triangular(factor.mT, step, upper=True)[:, 0], weights


@dataclass(frozen=True)
class NetworkStep(Step):
    """A step of all parameters and theta together, in natural units.

    Attributes
    ----------
    model : LocalModel
        With which the step was solved.
    """

    model: LocalModel


class NetworkSystem(System):
    """A network, linearised by its Jacobian, with Levenberg-Marquardt damping."""

    first_damping = 1e-2
    damped = True

    @classmethod
    def suits(cls, setting):
        n = setting.n_parameters
        few = n <= MAX_PARAMETERS and setting.n_outputs * n**2 <= _MAX_GRAM
        return setting.small and few

    def read(self, state):
        self.shapes = {name: value.shape for name, value in state.shared.items()}
        size = sum(value.numel() for value in state.shared.values())
        if size > MAX_PARAMETERS:
            raise ValueError(
                f"Newton fits inference functions of up to {MAX_PARAMETERS} parameters, but "
                f"{type(self.problem.function).__name__} has {size}: use solver=LBFGS()."
            )
        return torch.cat([value.reshape(-1) for value in state.shared.values()])

    def write(self, flat, raw_globals):
        return State(None, self._unflatten(flat), raw_globals)

    def _unflatten(self, flat):
        pieces = flat.split([shape.numel() for shape in self.shapes.values()])
        return {n: v.reshape(s) for (n, s), v in zip(self.shapes.items(), pieces, strict=True)}

    def raw(self, flat):
        return self.problem.function.evaluate(self._unflatten(flat), self.problem.features)

    def value(self, flat, raw_globals):
        return self.total(self.raw(flat), raw_globals)

    def step(self, flat, raw_globals, damping=first_damping, tangents=()):
        raw = self.raw(flat)
        d = arrow_derivatives(self.problem, raw, raw_globals)
        size, n_globals = len(flat), d.C.shape[-1]
        factor = torch.linalg.cholesky(positive(-d.H))
        carried = torch.cat([d.g.unsqueeze(-1), -d.C], -1)
        carried = torch.linalg.solve_triangular(factor, carried, upper=False)
        factor = factor.mT / d.row_steps.unsqueeze(1)
        top, rest = flat.new_zeros(size, size), flat.new_zeros(size, 1 + n_globals)
        n_part = max(1, JACOBIAN_NUMBERS // (raw.shape[-1] * size))
        for part in torch.arange(len(raw), device=raw.device).split(n_part):
            root = (factor[part] @ self._jacobian(flat, part)).reshape(-1, size)
            top = top + _gram(root)
            rest = rest + root.mT @ carried[part].reshape(-1, 1 + n_globals)
        top, rest = self.ranks.sum(top), self.ranks.sum(rest)
        right, side = torch.cat([rest[:, 0], d.g_globals]), rest[:, 1:]
        matrix = torch.cat([torch.cat([top, side], 1), torch.cat([side.mT, -d.H_globals], 1)])
        return self.solved(matrix, right, (flat, raw_globals), d.steps, damping, tangents)

    def solved(self, matrix, right, here, steps, damping, tangents) -> NetworkStep:
        """Return the step of a system in natural units, `steps` those of q(theta)'s parameters."""
        units = torch.cat([torch.ones_like(here[0]), steps])[: len(right)]
        unknowns = torch.cat(here)[: len(right)]
        model = LocalModel(matrix, right, unknowns, units, [], right.new_zeros(1))
        if tangents:
            model = model.near(tangents, self.value(*here))
        solution, _ = model.solve(damping)
        norm = float(right.norm()) / self.problem.total_weight
        return NetworkStep(solution, steps, model.decrement(), norm, model, damping=damping)

    def _jacobian(self, flat, part):
        return self.problem.function.jacobian(self._unflatten(flat), self.problem.features[part])

    @property
    def kinked(self):
        """Whether steps go along kinks.

        Not in the search for a start, which the fit itself leaves: rounding grows along kinks.
        """
        return not (self.problem.function.smooth or self.problem.is_start)

    def move(self, flat, raw_globals, value, step):
        """Try steps with more and more damping, and along kinks with more and more slopes."""
        kinked, model, damping = self.kinked, step.model, step.damping
        trials, growth = (_KINKED_TRIALS, _KINKED_GROWTH) if kinked else (_TRIALS, _GROWTH)
        size, own, solution = len(flat), model.right / model.units, step.unknowns
        for trial in range(trials):
            there = model.here + model.units * solution
            moved = raw_globals if self.frozen else there[size:]
            new_value = self.value(there[:size], moved)
            if torch.isfinite(new_value) and new_value > value:
                damping = max(damping / _RELIEF, _LEAST_DAMPING)
                tangents = [*model.tangents, (own, value - own @ model.here)] if kinked else []
                return Move(there[:size], moved, new_value, True, damping, tangents)
            if kinked:
                slope = self._slope(there[:size], moved)
                if torch.isfinite(new_value + slope.sum()):
                    tangent = slope, new_value - slope @ there
                    model = model.with_tangents([*model.tangents, tangent][-_MOST_TANGENTS:])
            if trial % 2 or not kinked:  # try the new slope before more damping
                damping *= growth
            solution, _ = model.solve(damping)
        if model.tangents:
            model = model.near(model.tangents, value)
        return Move(flat, raw_globals, value, False, damping, model.tangents, model.decrement())

    def _slope(self, flat, raw_globals):
        """Return the gradient of `value` in plain units."""
        parts = self.problem.parts()
        with torch.enable_grad():
            flat = flat.detach().requires_grad_(True)
            raw_globals = raw_globals.detach().requires_grad_(not self.frozen)
            unknowns = (flat,) if self.frozen else (flat, raw_globals)
            pieces = [gradient_of(self._part(part, flat, raw_globals), unknowns) for part in parts]
            slopes = [self.ranks.sum(sum(each)) for each in zip(*pieces, strict=True)]
            if not self.frozen:
                slopes[1] += gradient_of(self.objective.global_term(raw_globals), (raw_globals,))[0]
        return torch.cat(slopes)

    def _part(self, part, flat, raw_globals):
        problem = self.problem.restricted(part)
        raw = problem.function.evaluate(self._unflatten(flat), problem.features)
        return (problem.rows.weights * problem.row_terms(raw, raw_globals)).sum()


def _gram(rows):
    """Return R'R of rows R from strips below the diagonal, with little over half the products."""
    size = rows.shape[1]
    lower, width = rows.new_zeros(size, size), max(_STRIP, size // _STRIPS)
    for first in range(0, size, width):
        strip = slice(first, first + width)
        lower[strip, : first + width] = rows[:, strip].mT @ rows[:, : first + width]
    return lower.tril() + lower.tril(-1).mT


def _find_shortest_mean(vectors):
    """Return the weights of the shortest convex combination of vectors, (dimension, n).

    Non-negative least squares with an additional row for the sum of the weights. Source: Lawson &
    Hanson (1974), Solving least squares problems, section 23.4 (least distance programming).
    """
    corner = torch.linalg.qr(vectors).R.cpu().numpy()
    size = np.abs(corner[:, 0]).max(initial=0.0)
    weights = np.eye(corner.shape[1])[0]
    if size > 0 and np.isfinite(corner).all():
        system = np.vstack([corner / size, np.ones(corner.shape[1])])
        with suppress(RuntimeError):  # if it does not converge, keep the first vector
            found, _ = nnls(system, np.append(np.zeros(len(corner)), 1.0))
            weights = found / found.sum()
    return torch.from_numpy(weights).to(vectors)
