"""Newton systems that are one dense matrix: few parameters, or few rows that meet."""

import math

import torch

from skavi.solvers._arrow import LONGEST_LOG_STEP, Step, System, gradient_of, positive
from skavi.solvers._base import State

MAX_PARAMETERS = 2000
_LEAST_DAMPING, _LIGHT_DAMPING = 1e-9, 1e-6
_MAX_JACOBIAN = 20_000_000
_SHRINK = 0.25


class Dense(System):
    """A function linear in its parameters: all of them, and the globals, in one system."""

    def __init__(self, problem):
        super().__init__(problem)
        self.basis = problem.features

    def read(self, state):
        return state.parameters["coefficients"]

    def write(self, coefficients, globals_):
        return State({"coefficients": coefficients}, globals_)

    def value(self, coefficients, globals_):
        return self.total(self.basis @ coefficients, globals_)

    def step(self, coefficients, globals_):
        raw = self.basis @ coefficients
        g, g_globals, H, C, H_globals, row_steps, steps = self.derivatives(raw, globals_)
        # Back to plain units in the rows: the coefficients have their own, the outputs' mean step.
        sums = self.group.sum(row_steps.log().sum(0))
        unit = (sums / self.problem.rows.n_total).exp()
        to_unit = unit / row_steps
        g, C = g * to_unit, C * to_unit.unsqueeze(-1)
        H = H * to_unit.unsqueeze(-1) * to_unit.unsqueeze(-2)
        B, (p, P) = self.basis, coefficients.shape
        own = torch.einsum("na,nij,nb->aibj", B, H, B), torch.einsum("na,niq->aiq", B, C)
        top, side = (self.group.sum(part).reshape(p * P, -1) for part in own)
        right = torch.cat([self.group.sum(B.mT @ g).reshape(-1), g_globals])
        full = torch.cat([torch.cat([top, side], 1), torch.cat([side.mT, H_globals], 1)])
        solution = torch.linalg.solve(positive(-0.5 * (full + full.mT)), right)
        decrement = 0.5 * float(right @ solution)
        norm = float(right.norm()) / self.problem.total_weight
        local = solution[: p * P].reshape(p, P) * unit
        return Step(local, (solution[p * P :], steps), decrement, norm)

    def move(self, coefficients, globals_, value, step):
        return _shrunk(self, coefficients, globals_, value, step)


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

    def _solved(self, damping):
        damped = self.system.clone()
        damped.diagonal().add_(damping * self.system.diagonal().abs().mean())
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info):  # the globals' own block may be indefinite
            return torch.linalg.solve(damped, self.right)
        return torch.cholesky_solve(self.right.unsqueeze(-1), factor)[:, 0]

    def move(self, flat, globals_, value, step):
        solution, size = step.local, len(flat)
        for _ in range(10):
            moved = globals_
            if not self.frozen:
                moved = globals_ + self.steps[: len(solution) - size] * solution[size:]
            new_value = self.value(flat + solution[:size], moved)
            if torch.isfinite(new_value) and new_value > value:
                self.damping = max(self.damping / 4, _LEAST_DAMPING)
                return flat + solution[:size], moved, new_value
            self.damping *= 8
            solution = self._solved(self.damping)
        return None


class Coupled(System):
    """Factorized VI of a model that couples its rows: one dense system, for few rows."""

    def read(self, state):
        return state.parameters["values"]

    def write(self, raw, globals_):
        return State({"values": raw}, globals_)

    def value(self, raw, globals_):
        return self.total(raw, globals_)

    def row_values(self, raw, globals_):
        return self.problem.row_terms(raw, globals_)

    def curvature(self, raw, globals_):
        """Gradient and Hessian of all rows' parameters, then the globals', in natural units."""
        objective = self.objective
        row_steps = objective.family.steps(objective.local_factors(raw))
        steps = objective.global_family.steps(objective.global_factor(globals_))
        lengths = torch.cat([row_steps.reshape(-1), steps[: 0 if self.frozen else len(steps)]])

        with torch.enable_grad():
            origin = torch.zeros_like(lengths, requires_grad=True)
            moved = lengths * origin
            new = raw + moved[: raw.numel()].reshape(raw.shape)
            there = globals_ if self.frozen else globals_ + moved[raw.numel() :]
            (slope,) = gradient_of(self.total(new, there), (origin,), create_graph=True)
            hessian = torch.stack([gradient_of(entry, (origin,))[0] for entry in slope])
        return slope.detach(), hessian, row_steps, steps

    def step(self, raw, globals_):
        gradient, hessian, row_steps, steps = self.curvature(raw, globals_)
        solution = torch.linalg.solve(positive(-0.5 * (hessian + hessian.mT)), gradient)
        decrement = 0.5 * float(gradient @ solution)
        norm = float(gradient.norm()) / self.problem.total_weight
        local = self.shortened(solution[: raw.numel()].reshape(raw.shape))
        return Step(local * row_steps, (solution[raw.numel() :], steps), decrement, norm)

    def shortened(self, solution):
        """Keep steps in log sds from leaping: they are steps of a factor."""
        k, longest = self.objective.n_latents, LONGEST_LOG_STEP / math.sqrt(0.5)
        solution = solution.clone()
        solution[:, k : 2 * k] = solution[:, k : 2 * k].clamp(-longest, longest)
        return solution

    def move(self, raw, globals_, value, step):
        return _shrunk(self, raw, globals_, value, step)


def _shrunk(system, unknowns, globals_, value, step):
    """Shrink a step of everything until the ELBO rises; None if it does not."""
    d_globals, lengths = step.d_globals
    for trial in range(12):
        scale = _SHRINK**trial
        moved = globals_
        if not system.frozen:
            moved = globals_ + scale * lengths[: len(d_globals)] * d_globals
        new = unknowns + scale * step.local
        new_value = system.value(new, moved)
        if torch.isfinite(new_value) and new_value > value:
            return new, moved, new_value
    return None
