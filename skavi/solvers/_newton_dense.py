"""Newton systems that are one dense matrix: few parameters, or few rows that meet."""

import math

import torch

from skavi.solvers._base import State
from skavi.solvers._newton_arrow import LONGEST_LOG_STEP, Step, System, gradient_of, positive

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
