"""Cells of ordered levels, by cumulative logits, as logistic cells of their two neighbours.

P(x <= k) = s(c_k - eta), s the logistic function, is P(x = k) = s(c_{k+1} - eta) s(eta - c_k)
(1 - exp(c_k - c_{k+1})), cut points numbered by the level above them. So a cell says "above" at the
cut point below it, "below" at the one above it, and nothing at others: a yes and a no with eta
moved, and a term of the gap alone. McCullagh (1980), "Regression models for ordinal data".
"""

import torch
from torch import Tensor

from skavi._data.missing_cells import Cells
from skavi._numerics.quadrature import hermite_rule
from skavi.models._cut_points import CutPoints, shifted_log_normal
from skavi.models._likelihoods import BernoulliCells

#: Nodes for the log of a gap: 5e-8 nats a cell at an sd of 0.5, 7e-5 at 1.
_N_GAP_NODES = 9


class OrdinalCells(BernoulliCells):
    """A yes or no at each cut point, given the predictor less the column's middle cut point.

    Parameters
    ----------
    places : CutPoints
        Of the columns.
    """

    needs = "whole numbers from 0 to the last level that the fit knows"
    own_globals = ("cutpoints",)
    rule, n_noise_nodes = hermite_rule(7), 3  # 3e-5 nats a cell where sds are 0.3

    def __init__(self, places: CutPoints):
        self.places = places

    def pieces(self, cells: Cells) -> Cells:
        """Return the yes and no of columns' cells at their cut points."""
        x, places = cells.values, self.places
        column, level = places.column.to(x.device), places.level.to(x)
        x = x[:, column]
        near = (x == level) | (x == level - 1)
        if cells.observed is not None:
            near = near & cells.observed[:, column]
        return Cells((x == level).to(x) * near, near)

    # --- given cut points -----------------------------------------------------------------------

    def moved(self, theta) -> Tensor:
        """Return what a cut point adds to the predictor beside the column's intercept."""
        cuts = theta["cutpoints"]
        return cuts[self.places.anchor.to(cuts.device)] - cuts

    def kernel(self, x, eta, theta):
        return super().kernel(x, eta + self.moved(theta), theta)

    def constant(self, x, theta):
        cuts = theta["cutpoints"]
        has_gap = self.places.has_gap.to(cuts.device)
        gaps = torch.where(has_gap, cuts.roll(-1) - cuts, torch.ones_like(cuts))
        return x * torch.where(has_gap, torch.log(-torch.expm1(-gaps)), torch.zeros_like(cuts))

    # --- given factors of the free numbers of a cut point's column, `CutPoints.others` -----------

    def levels(self, noise):
        sign, moments = self._away(noise)
        nodes = torch.as_tensor(noise.rule()[0]).to(noise.mean).unsqueeze(-1)
        level = -sign * shifted_log_normal(moments, nodes)
        return level, torch.zeros_like(level)

    def rest(self, x, noise):
        sign, (mean, *_) = self._away(noise)
        own = self.places.others == self.places.gap.unsqueeze(-1)
        own = (own & self.places.has_gap.unsqueeze(-1)).to(noise.mean.device)
        zeros = torch.zeros_like(noise.mean)
        nodes, weights = (
            torch.as_tensor(each).to(noise.mean) for each in hermite_rule(_N_GAP_NODES)
        )
        logs = torch.where(own, noise.mean, zeros).unsqueeze(-1)
        logs = logs + torch.where(own, noise.sd, zeros).unsqueeze(-1) * nodes
        closed = torch.log(-torch.expm1(-logs.exp())) @ weights
        return x * (torch.where(own, closed, zeros).sum(-1) - sign * mean)

    def _away(self, noise):
        """Return the sign, and moments of the size, of each cut point less the middle one."""
        signs = self.places.signs.to(noise.mean)
        return signs.sum(-1).sign(), _log_normal_moments(noise, signs != 0)


def _log_normal_moments(noise, there):
    """Return mean, variance and third central moment of sums of log-normal numbers."""
    mean = torch.where(there, noise.mean, torch.zeros_like(noise.mean))
    square = torch.where(there, noise.sd, torch.zeros_like(noise.sd)) ** 2
    each = (mean + 0.5 * square).exp() * there
    wide = torch.expm1(square)
    cubes = each**3 * wide**2 * (wide + 3)
    return each.sum(-1), (each**2 * wide).sum(-1), cubes.sum(-1)
