"""The Newton system of a chain: a band for neighbouring rows, and a border for the globals."""

import math

import torch

from skavi._curvature import Band, band_derivatives, eliminate, positive
from skavi.solvers._newton_dense import RowsSystem
from skavi.solvers._newton_system import Step


class BandedSystem(RowsSystem):
    """Factorized VI of a Markov model: a band and a border, in time linear in the rows."""

    @classmethod
    def suits(cls, setting):
        return setting.few_unknowns or setting.small

    def step(self, raw, raw_globals, damping=0.0, tangents=()):
        d = band_derivatives(self.problem, raw, raw_globals)
        left = eliminate(Band(-d.H), d)
        d_globals = torch.linalg.solve(positive(0.5 * (left.schur + left.schur.mT)), left.right)
        solution = (left.free + left.response @ d_globals).reshape(raw.shape)
        decrement = 0.5 * float(d.g @ left.free) + 0.5 * float(left.right @ d_globals)
        squares = float((d.g**2).sum() + (d.g_globals**2).sum())
        norm = math.sqrt(squares) / self.problem.total_weight
        local = self.shorten(solution) * d.row_steps
        return Step(local, d.steps[: len(d_globals)] * d_globals, decrement, norm)
