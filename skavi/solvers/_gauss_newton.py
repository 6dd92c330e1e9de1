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

from skavi.solvers._arrow import Step, System, gradient_of, positive
from skavi.solvers._base import State

MAX_PARAMETERS = 2000
_LEAST_DAMPING, _LIGHT_DAMPING = 1e-9, 1e-6
_MAX_JACOBIAN = 20_000_000
_TRIALS, _FACTOR = 20, 4
_MOST_PIECES = 40
_NEAR = 1.0  # tangents elsewhere that count here, by what a step is expected to gain


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
        right, top, side = (
            flat.new_zeros(shape) for shape in (size, (size, size), (size, n_globals))
        )
        factor = torch.linalg.cholesky(positive(-H))
        n_part = max(1, _MAX_JACOBIAN // (raw.shape[-1] * size))
        for part in torch.arange(len(raw), device=raw.device).split(n_part):
            J = self._jacobian(flat, part) / row_steps[part].unsqueeze(-1)
            root = (factor[part].mT @ J).reshape(-1, size)
            right = right + torch.einsum("npi,np->i", J, g[part])
            top = top + root.mT @ root
            side = side - torch.einsum("npi,npq->iq", J, C[part])
        right, top, side = (self.group.sum(part) for part in (right, top, side))
        right = torch.cat([right, g_globals])
        self.system = torch.cat([torch.cat([top, side], 1), torch.cat([side.mT, -H_globals], 1)])
        self.right, self.steps = right, steps
        solution = self._solved(self.damping)
        free = solution if self.damping <= _LIGHT_DAMPING else self._solved(_LIGHT_DAMPING)
        decrement = 0.5 * float(right @ free)
        norm = float(right.norm()) / self.problem.total_weight
        return Step(solution, (None, steps), decrement, norm)

    def _jacobian(self, flat, part):
        return self.problem.function.jacobian(self._named(flat), self.problem.features[part])

    def _along(self, slopes, units):
        return self._solved(self.damping, torch.stack(slopes, 1) * units.unsqueeze(1))

    def _solved(self, damping, slopes=None):
        """Return the step along the shortest of all mixtures of slopes, in the damped metric."""
        damped = self.system.clone()
        damped.diagonal().add_(damping * self.system.diagonal().abs().mean())
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info):  # the globals' own block may be indefinite
            return torch.linalg.solve(damped, self.right)
        if slopes is None or slopes.shape[1] == 1:
            return torch.cholesky_solve(self.right.unsqueeze(-1), factor)[:, 0]
        halfway = torch.linalg.solve_triangular(factor, slopes, upper=False)
        step = halfway @ _shortest(halfway)
        return torch.linalg.solve_triangular(factor.mT, step.unsqueeze(-1), upper=True)[:, 0]

    def move(self, flat, globals_, value, step):
        size, kinked = len(flat), not self.problem.function.smooth
        units = torch.cat([torch.ones_like(flat), self.steps])[: len(self.right)]
        here, own = torch.cat([flat, globals_])[: len(units)], self.right / units
        pieces = [p for p in self.pieces if _meets(p, here, value, _NEAR * step.decrement)]
        solution = self._along([own, *(s for s, _ in pieces)], units) if pieces else step.local
        for trial in range(_TRIALS):
            there = here + units * solution
            moved = globals_ if self.frozen else there[size:]
            new_value = self.value(there[:size], moved)
            if torch.isfinite(new_value) and new_value > value:
                self.damping = max(self.damping / _FACTOR, _LEAST_DAMPING)
                self.pieces = [*pieces, (own, value - own @ here)] if kinked else []
                return there[:size], moved, new_value
            if kinked:
                slope = self._slope(there[:size], moved)
                if torch.isfinite(new_value + slope.sum()):
                    pieces = [*pieces, (slope, new_value - slope @ there)][-_MOST_PIECES:]
            if trial % 2 or not kinked:  # the slope is given a chance before a shorter step is
                self.damping *= _FACTOR
            solution = self._along([own, *(slope for slope, _ in pieces)], units)
        return None

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


def _meets(piece, here, value, most):
    """Say whether the ELBO's tangent somewhere else comes near the ELBO here."""
    slope, constant = piece
    return abs(float(slope @ here + constant - value)) <= most


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
