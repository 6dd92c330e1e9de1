"""Newton systems that are one dense matrix: few parameters, or few coupled rows."""

import math

import torch

from skavi._curvature import arrow_derivatives, dense_derivatives, total
from skavi._numerics.positive_definite import positive
from skavi.solvers._newton_system import LONGEST_LOG_STEP, Step, System, damped
from skavi.solvers._setting import FEW_UNKNOWNS
from skavi.solvers._state import State

#: Parameters of one dense system: 8 MB, and 3e8 operations to solve. Not measured.
_MAX_LINEAR_PARAMETERS = 1000


class LinearSystem(System):
    """A function linear in its parameters: all of them, and the globals, in one system."""

    in_pieces = True

    def __init__(self, problem):
        super().__init__(problem)
        self.basis = problem.features

    @classmethod
    def suits(cls, setting):
        return setting.small and setting.n_parameters <= _MAX_LINEAR_PARAMETERS

    def read(self, state):
        return state.shared["coefficients"]

    def write(self, coefficients, raw_globals):
        return State(None, {"coefficients": coefficients}, raw_globals)

    def value(self, coefficients, raw_globals):
        return self.total(self.basis @ coefficients, raw_globals)

    def step(self, coefficients, raw_globals, damping=0.0, tangents=()):
        d = arrow_derivatives(self.problem, self.basis @ coefficients, raw_globals)
        # One unit for each output, the geometric mean of its natural steps over rows: the unit of
        # its coefficients.
        sums = self.ranks.sum(d.row_steps.log().sum(0))
        unit = (sums / self.problem.n_rows).exp()
        to_unit = unit / d.row_steps
        g, C = d.g * to_unit, d.C * to_unit.unsqueeze(-1)
        H = d.H * to_unit.unsqueeze(-1) * to_unit.unsqueeze(-2)
        B, (p, P) = self.basis, coefficients.shape
        own = torch.einsum("na,nij,nb->aibj", B, H, B), torch.einsum("na,niq->aiq", B, C)
        top, side = (self.ranks.sum(part).reshape(p * P, -1) for part in own)
        right = torch.cat([self.ranks.sum(B.mT @ g).reshape(-1), d.g_globals])
        full = torch.cat([torch.cat([top, side], 1), torch.cat([side.mT, d.H_globals], 1)])
        solution, decrement = damped_solution(full, right, damping)
        norm = float(right.norm()) / self.problem.total_weight
        d_globals = solution[p * P :]
        local = solution[: p * P].reshape(p, P) * unit
        moved = d.steps[: len(d_globals)] * d_globals
        return Step(local, moved, decrement, norm, damping=damping)


def damped_solution(hessian, gradient, damping):
    """Return a damped Newton step, and the gain that the undamped one is estimated to have."""
    matrix = positive(-0.5 * (hessian + hessian.mT))
    solution = torch.linalg.solve(matrix, gradient)
    decrement = 0.5 * float(gradient @ solution)
    if damping:
        solution = torch.linalg.solve(damped(matrix, damping), gradient)
    return solution, decrement


class RowsSystem(System):
    """Factorized VI of a model with coupled rows."""

    def read(self, state):
        return state.raw_locals

    def write(self, raw, raw_globals):
        return State(raw, {}, raw_globals)

    def value(self, raw, raw_globals):
        return total(self.problem, raw, raw_globals)

    def shorten(self, solution):
        """Limit the steps of log sds, which change an sd by a factor."""
        k, longest = self.objective.n_latents, LONGEST_LOG_STEP / math.sqrt(0.5)
        solution = solution.clone()
        solution[:, k : 2 * k] = solution[:, k : 2 * k].clamp(-longest, longest)
        return solution


class DenseSystem(RowsSystem):
    """Few rows that are all coupled: one dense system."""

    @classmethod
    def check(cls, setting):
        super().check(setting)
        if not setting.few_unknowns:
            raise ValueError(
                f"Newton solves up to {FEW_UNKNOWNS} unknowns of a model that couples its "
                f"rows, but {type(setting.objective.model).__name__} has {setting.n_unknowns}: use "
                "solver=LBFGS()."
            )

    @classmethod
    def suits(cls, setting):
        return setting.few_unknowns

    def step(self, raw, raw_globals, damping=0.0, tangents=()):
        gradient, hessian, row_steps, steps = dense_derivatives(self.problem, raw, raw_globals)
        solution, decrement = damped_solution(hessian, gradient, damping)
        norm = float(gradient.norm()) / self.problem.total_weight
        local = self.shorten(solution[: raw.numel()].reshape(raw.shape))
        d_globals = solution[raw.numel() :]
        moved = steps[: len(d_globals)] * d_globals
        return Step(local * row_steps, moved, decrement, norm, damping=damping)
