"""The Newton system of a chain: neighbouring rows meet, and all of them in the globals."""

import math

import numpy as np
import torch
from scipy.linalg import cho_solve_banded, cholesky_banded
from torch import Tensor

from skavi._numerics.aligned import aligned
from skavi.solvers._newton_arrow import Step, gradient_of, positive
from skavi.solvers._newton_dense import Coupled

_COLOURS = 3  # rows this far apart have no neighbour in common
_LIFTS = 30


class Chain(Coupled):
    """Factorized VI of a Markov model: a banded matrix and a border, in time linear in the rows.

    A Hessian column of every third row comes out of one backward pass, since such rows have no
    neighbour in common. Where the band is not positive definite its diagonal is lifted.
    """

    def step(self, raw, globals_):
        objective, (n, n_row) = self.objective, raw.shape
        row_steps = objective.family.steps(objective.local_factors(raw))
        steps = objective.global_family.steps(objective.global_factor(globals_))
        gradient, band, border, corner = self._derivatives(raw, globals_)
        lengths = row_steps.reshape(-1)
        g, g_globals = gradient[: raw.numel()] * lengths, gradient[raw.numel() :]
        steps_used = steps[: len(g_globals)]
        g_globals, C = g_globals * steps_used, border * lengths.unsqueeze(-1) * steps_used
        factor = _factor(_scaled(-band, lengths))
        pulled = _solve(factor, torch.cat([g.unsqueeze(-1), C], -1))
        free, response = pulled[:, 0], pulled[:, 1:]
        schur = -corner * steps_used * steps_used.unsqueeze(-1) - C.mT @ response
        right = g_globals + C.mT @ free
        d_globals = torch.linalg.solve(positive(0.5 * (schur + schur.mT)), right)
        solution = (free + response @ d_globals).reshape(n, n_row)
        decrement = 0.5 * float(g @ free) + 0.5 * float(right @ d_globals)
        norm = math.sqrt(float((g**2).sum() + (g_globals**2).sum())) / self.problem.total_weight
        return Step(self.shortened(solution) * row_steps, (d_globals, steps), decrement, norm)

    def _derivatives(self, raw, globals_):
        """Gradient of all unknowns, Hessian band (upper form), border and corner."""
        n_row, n_global = raw.shape[-1], 0 if self.frozen else globals_.numel()
        with torch.enable_grad():
            raw = raw.detach().requires_grad_(True)
            globals_ = globals_.detach().requires_grad_(n_global > 0)
            unknowns = (raw, globals_) if n_global else (raw,)
            slopes = gradient_of(self.total(raw, globals_), unknowns, create_graph=True)
            band = raw.new_zeros(2 * n_row, raw.numel())
            for colour in range(min(_COLOURS, len(raw))):
                for p in range(n_row):
                    column = gradient_of(slopes[0][colour::_COLOURS, p].sum(), (raw,))[0]
                    _put(band, column.detach(), colour, p)
            borders = [gradient_of(slopes[1][q], unknowns) for q in range(n_global)]
        gradient = torch.cat([slope.detach().reshape(-1) for slope in slopes])
        if not borders:
            return gradient, band, raw.new_empty(raw.numel(), 0), raw.new_empty(0, 0)
        border = torch.stack([one[0].reshape(-1) for one in borders], -1)
        corner = torch.stack([one[1] for one in borders])
        return gradient, band, border.detach(), corner.detach()


def _put(band: Tensor, column: Tensor, colour: int, p: int) -> None:
    """Write a coloured Hessian column into the band: ``band[u + i - j, j] = H[i, j]``, i <= j."""
    n, n_row = column.shape
    upper = len(band) - 1
    rows = torch.arange(colour, n, _COLOURS, device=band.device)
    j = rows * n_row + p
    for q in range(p + 1):  # of the row itself
        band[upper - (p - q), j] = column[rows, q]
    before = rows[rows > 0]
    for q in range(n_row):  # of the row before
        distance = n_row + p - q
        band[upper - distance, before * n_row + p] = column[before - 1, q]


def _scaled(band: Tensor, lengths: Tensor) -> Tensor:
    """Measure every unknown in its own natural length."""
    upper, size = len(band) - 1, len(lengths)
    scaled = band * lengths
    for distance in range(upper + 1):
        scaled[upper - distance, distance:] *= lengths[: size - distance]
    return scaled


def _factor(band: Tensor) -> tuple[np.ndarray, bool]:
    """Factor a band, with its diagonal lifted as far as it needs to be positive definite."""
    matrix = band.cpu().numpy()
    lift, size = 0.0, float(np.abs(matrix[-1]).max(initial=1e-300))
    for _ in range(_LIFTS):
        lifted = matrix.copy()
        lifted[-1] += lift
        try:
            return cholesky_banded(lifted), False
        except np.linalg.LinAlgError:
            lift = max(4 * lift, 1e-6 * size)
    raise FloatingPointError("Newton's matrix of the chain is not finite.")


def _solve(factor: tuple[np.ndarray, bool], right: Tensor) -> Tensor:
    return aligned(cho_solve_banded(factor, right.cpu().numpy())).to(right)
