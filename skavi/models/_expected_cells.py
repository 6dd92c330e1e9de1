"""Expected log densities of cells under a normal predictor and normal logs of the noise.

All likelihoods but the normal and the Poisson have the kernel

    slope(x) eta - (share(x) + factor(theta)) bend(x, eta, level(theta)),

theta their own globals, whose logs are independent normals. Level is a normal number, and factor's
expectation given the level is known, so that one dimension of nodes serves theta, however many
globals a cell has, and one serves eta. Sums over these nodes of `bend` and its derivatives, and the
chain rule, are all derivatives of the expectation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skavi._curvature import gradient_of
from skavi._data.missing_cells import Cells
from skavi.models._likelihood import Likelihood
from skavi.models._noise_factors import NoiseFactors, root_of


@dataclass(frozen=True)
class Jets:
    """Level and factor at the nodes of the noise, with derivatives in a column's own numbers.

    Attributes
    ----------
    level, factor : tuple of Tensor
        Values (n_nodes, n_columns), slopes (n_nodes, r, n_columns) and curvatures (n_nodes, r, r,
        n_columns).
    weights : list of float
    """

    level: tuple[Tensor, Tensor, Tensor]
    factor: tuple[Tensor, Tensor, Tensor]
    weights: list[float]

    @classmethod
    def of(cls, likelihood: Likelihood, own: NoiseFactors, own_too: bool = True) -> "Jets":
        """Differentiate a likelihood's level and factor; with no own numbers if not `own_too`."""
        weights = own.rule()[1].tolist()
        if not own.size or not own_too:
            values = likelihood.levels(own)
            level, factor = ((each, each.unsqueeze(1)[:, :0], each) for each in values)
        else:
            with torch.enable_grad():
                raw = own.raw().requires_grad_(True)
                level, factor = _jets(likelihood.levels(own.of_raw(raw)), raw)
        return cls(level, factor, weights)


def _jets(tables, raw):
    """Return tables (n, n_columns), and their derivatives in each column's own raw numbers."""
    values = torch.stack(tables)
    slopes = _by_column(values.flatten(0, 1), raw, True)
    curved = _by_column(slopes.movedim(-1, 1).flatten(0, 1), raw)
    shape = *values.shape[:2], raw.shape[-1]
    parts = slopes.mT.unflatten(0, shape[:2]), curved.mT.unflatten(0, shape)
    return list(zip(values.detach(), *(part.detach() for part in parts), strict=True))


def _by_column(values, raw, create_graph=False):
    """Return derivatives (n, n_columns, r) of values (n, n_columns), in one backward pass."""
    directions = torch.eye(len(values)).to(values).unsqueeze(-1).expand(-1, -1, values.shape[1])
    (slopes,) = torch.autograd.grad(
        values, (raw,), directions, create_graph=create_graph, is_grads_batched=True
    )
    return slopes


@dataclass(frozen=True)
class Expected:
    """Derivatives of cells' expected log densities, times nodes' weights, 0 where one is missing.

    Attributes
    ----------
    mean, variance, mm, mv, vv : Tensor of shape (n_nodes, n_rows, n_columns)
        In mean and variance of the predictor.
    m_own, v_own : list of Tensor of shape (n_nodes, n_rows, n_columns)
        Mixed derivatives, for each own number of a column.
    bends : list of tuple of Tensor
        For each node of the noise: what derivatives in own numbers alone are made of.
    """

    mean: Tensor
    variance: Tensor
    mm: Tensor
    mv: Tensor
    vv: Tensor
    m_own: Sequence[Tensor]
    v_own: Sequence[Tensor]
    bends: list[tuple[Tensor, ...]]

    def of_own(self, jets: Jets, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return weighted sums over rows of slopes (n_columns, r) and blocks in own numbers."""
        parts = [self._of_own_at(jets, j, weights.unsqueeze(-1)) for j in range(len(jets.weights))]
        slope, block = (sum(each[1:], each[0]) for each in zip(*parts, strict=True))
        return slope.mT, block.movedim(-1, 0)

    def _of_own_at(self, jets, j, weights):
        """Return the part of one node of the noise, columns last."""
        sums = ((each * weights).sum((0, 1)) for each in self.bends[j])
        value, by_level, shared, bent = (-jets.weights[j] * each for each in sums)
        _, level, level_curved = (each[j] for each in jets.level)
        _, factor, factor_curved = (each[j] for each in jets.factor)
        mixed = factor.unsqueeze(0) * level.unsqueeze(1)
        block = factor_curved * value + (mixed + mixed.transpose(0, 1)) * by_level
        block = block + level.unsqueeze(0) * level.unsqueeze(1) * bent + level_curved * shared
        return factor * value + level * shared, block


def expected_cells(
    likelihood: Likelihood, cells: Cells, mean: Tensor, variance: Tensor, jets: Jets, by: Tensor
) -> Expected:
    """Differentiate cells' expected log densities at nodes of the rows, weighed `by` theirs."""
    x, root = cells.values, root_of(variance)
    e, w = (torch.as_tensor(each).to(mean) for each in likelihood.rule)
    powers = torch.stack([w, w * e, w * e**2])
    eta, by = mean + e[:, None, None, None] * root, by[:, None, None]

    def sums(bend, order):
        return (powers[:order] @ bend.flatten(1)).unflatten(-1, mean.shape)

    slopes, curved = (mean.new_zeros(order, *mean.shape) for order in (2, 3))
    m_own, s_own = ([torch.zeros_like(mean) for _ in jets.level[1][0]] for _ in range(2))
    bends: list[tuple[Tensor, ...]] = []
    for j, weight in enumerate(jets.weights):
        (level, dlevel, _), (factor, dfactor, _) = (
            [each[j] for each in jet] for jet in (jets.level, jets.factor)
        )
        bent, share = likelihood.bent(x, eta, level), likelihood.share(x) + factor
        first = sums(bent.eta, 2)
        slopes.addcmul_(share.expand_as(mean), first, value=-weight)
        curved.addcmul_(share.expand_as(mean), sums(bent.eta_eta, 3), value=-weight)
        if not m_own:
            continue
        across = share * sums(bent.eta_level, 2)
        for a, (by_factor, by_level) in enumerate(zip(dfactor, dlevel, strict=True)):
            for own, one, mixed in zip((m_own[a], s_own[a]), first, across, strict=True):
                own.addcmul_(one, by_factor, value=-weight).addcmul_(mixed, by_level, value=-weight)
        value, by_level, level_level = (
            cells.masked(by * sums(each, 1)[0])
            for each in (likelihood.bend(x, eta, level), bent.level, bent.level_level)
        )
        bends.append((value, by_level, share * by_level, share * level_level))
    parts = _in_variance(slopes[0] + likelihood.slope(x), slopes[1], curved, root)
    of_mean, of_variance, mm, mv, vv = (cells.masked(by * each) for each in parts)
    m_own = [cells.masked(by * each) for each in m_own]
    v_own = [cells.masked(by * 0.5 / root * each) for each in s_own]
    return Expected(of_mean, of_variance, mm, mv, vv, m_own, v_own, bends)


def _in_variance(of_mean, of_root, curved, root):
    """Return derivatives in mean and variance, from those in mean and sd."""
    half = 0.5 / root
    in_variance = half**2 * (curved[2] - of_root / root)
    return of_mean, half * of_root, curved[0], half * curved[1], in_variance


def derivatives_of_rest(likelihood: Likelihood, own: NoiseFactors, cells: Cells, weights: Tensor):
    """Differentiate what does not depend on eta, weighed and summed over rows, in own numbers."""
    with torch.enable_grad():
        raw = own.raw().requires_grad_(True)
        rest = cells.masked(likelihood.rest(cells.values, own.of_raw(raw)))
        (slope,) = gradient_of((weights @ rest).sum(), (raw,), create_graph=True)
        block = [gradient_of(column.sum(), (raw,))[0] for column in slope.unbind(-1)]
    return slope.detach(), torch.stack(block, -2)
