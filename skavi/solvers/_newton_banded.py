"""The Newton system of a chain: a band for neighbouring rows, and a border for the globals."""

import math

import torch

from skavi._curvature import Band, band_derivatives, eliminate
from skavi._numerics.positive_definite import positive
from skavi.solvers._newton_dense import RowsSystem
from skavi.solvers._newton_system import Step, damped


class BandedSystem(RowsSystem):
    """Factorized VI of a Markov model: a band and a border, in time linear in the rows."""

    @classmethod
    def suits(cls, setting):
        return setting.few_unknowns or setting.small

    def step(self, raw, raw_globals, damping=0.0, tangents=()):
        d = band_derivatives(self.problem, raw, raw_globals)
        band = -d.H
        left, d_globals, decrement = self._solve(d, band)
        if damping:
            band[-1] += damping * band[-1].abs().mean()
            left, d_globals, _ = self._solve(d, band, damping)
        solution = (left.free + left.response @ d_globals).reshape(raw.shape)
        squares = float((d.g**2).sum() + (d.g_globals**2).sum())
        norm = math.sqrt(squares) / self.problem.total_weight
        local = self.shorten(solution) * d.row_steps
        moved = d.steps[: len(d_globals)] * d_globals
        return Step(local, moved, decrement, norm, damping=damping)

    def _solve(self, d, band, damping=0.0):
        """Return the system without its rows, the step of theta, and the estimated gain."""
        left = eliminate(Band(band), d)
        schur = damped(positive(0.5 * (left.schur + left.schur.mT)), damping)
        d_globals = torch.linalg.solve(schur, left.right)
        decrement = 0.5 * float(d.g @ left.free) + 0.5 * float(left.right @ d_globals)
        return left, d_globals, decrement
