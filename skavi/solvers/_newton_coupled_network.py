"""Gauss-Newton steps of networks where rows are coupled: one dense Hessian of all rows' factors."""

import torch

from skavi._curvature import dense_derivatives, total
from skavi._numerics.positive_definite import positive
from skavi._numerics.sums import add_up
from skavi.solvers._newton_dense import DenseSystem
from skavi.solvers._newton_network import NetworkSystem


class CoupledNetworkSystem(NetworkSystem):
    """A network over few rows that are all coupled."""

    @classmethod
    def check(cls, setting):
        DenseSystem.check(setting)

    @classmethod
    def suits(cls, setting):
        return DenseSystem.suits(setting) and super().suits(setting)

    def value(self, flat, raw_globals):
        return total(self.problem, self.raw(flat), raw_globals)

    def step(self, flat, raw_globals, damping=NetworkSystem.first_damping, tangents=()):
        raw = self.raw(flat)
        slope, hessian, row_steps, steps = dense_derivatives(self.problem, raw, raw_globals)
        n_rows, everyone = raw.numel(), torch.arange(len(raw), device=raw.device)
        outputs = self._jacobian(flat, everyone).reshape(n_rows, -1) / row_steps.reshape(-1, 1)
        curved = positive(-0.5 * (hessian + hessian.mT)[:n_rows, :n_rows])
        top, side = outputs.mT @ curved @ outputs, -outputs.mT @ hessian[:n_rows, n_rows:]
        corner = -hessian[n_rows:, n_rows:]
        matrix = torch.cat([torch.cat([top, side], 1), torch.cat([side.mT, corner], 1)])
        right = torch.cat([outputs.mT @ slope[:n_rows], slope[n_rows:]])
        return self.solved(matrix, right, (flat, raw_globals), steps, damping, tangents)

    def _part(self, part, flat, raw_globals):
        return add_up(self.problem.row_terms(self.raw(flat), raw_globals).reshape(-1))
