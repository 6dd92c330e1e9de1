"""Increasing cut points of columns of ordered levels: their free numbers, and their prior.

A column of K levels has K - 1 cut points c_1 < c_2 < ... The middle one, c_a, is free up to its
sign: u_a = -c_a is the column's intercept, the predictor of a row whose latents are 0. The others
follow from logs of gaps, outwards: u_j = log(c_j - c_{j-1}) above the middle, log(c_{j+1} - c_j)
below it. All columns' cut points are one vector, a column after the other.
"""

import math
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, biject_to, constraints

from skavi.families import LOG_2PI


class CutPoints:
    """Places of columns' cut points in one vector.

    Parameters
    ----------
    sizes : tuple of int
        How many cut points each column has.
    """

    def __init__(self, sizes: tuple[int, ...]):
        self.sizes = tuple(sizes)

    @cached_property
    def column(self) -> Tensor:
        """Each cut point's column."""
        return torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))

    @cached_property
    def level(self) -> Tensor:
        """The level above each cut point."""
        return torch.cat([torch.arange(1, size + 1) for size in self.sizes])

    @cached_property
    def middle(self) -> Tensor:
        """Place of each column's middle cut point."""
        ends = torch.tensor(self.sizes).cumsum(0)
        return ends - torch.tensor(self.sizes) + torch.tensor(self.sizes) // 2

    @cached_property
    def anchor(self) -> Tensor:
        """Place of the middle one of each cut point's column."""
        return self.middle[self.column]

    @cached_property
    def has_gap(self) -> Tensor:
        """Whether a cut point has another one above it."""
        return self.level < torch.tensor(self.sizes)[self.column]

    @cached_property
    def gap(self) -> Tensor:
        """Place among free numbers of the gap above each cut point; its own if there is none."""
        at = torch.arange(len(self.anchor))
        return torch.where(self.has_gap & (at >= self.anchor), at + 1, at)

    @cached_property
    def others(self) -> Tensor:
        """Places of the gaps of each cut point's column, (n, widest - 1), padded by its middle."""
        first, rows = 0, []
        for size, anchor in zip(self.sizes, self.middle.tolist(), strict=True):
            own = [place for place in range(first, first + size) if place != anchor]
            rows += [own + [anchor] * (max(self.sizes) - size)] * size
            first += size
        return torch.tensor(rows, dtype=torch.long).reshape(len(self.anchor), -1)

    @cached_property
    def signs(self) -> Tensor:
        """Signs S of these gaps g on the way from the middle to each cut point: c = c_a + S g."""
        cut, anchor, gap = (
            torch.arange(len(self.anchor))[:, None],
            self.anchor[:, None],
            self.others,
        )
        above, below = (anchor < gap) & (gap <= cut), (cut <= gap) & (gap < anchor)
        return above.double() - below.double()

    def away(self, gaps: Tensor) -> Tensor:
        """Return every cut point less its column's middle one, given the gaps."""
        return (gaps[..., self.others.to(gaps.device)] * self.signs.to(gaps)).sum(-1)

    def __eq__(self, other):
        return isinstance(other, CutPoints) and self.sizes == other.sizes

    def __hash__(self):
        return hash(self.sizes)


class _Increasing(constraints.Constraint):
    """Vectors of every column's increasing cut points."""

    event_dim = 1

    def __init__(self, places: CutPoints):
        self.places = places

    def check(self, value):
        steps = value.diff(dim=-1)
        same = self.places.anchor.diff() == 0
        return ((steps > 0) | ~same.to(value.device)).all(-1)


class CutPointsTransform(Transform):
    """The bijection from free numbers to cut points."""

    domain = constraints.real_vector
    bijective = True

    def __init__(self, places: CutPoints):
        super().__init__()
        self.places = places

    @property
    def codomain(self):  # type: ignore[override]
        return _Increasing(self.places)

    def __eq__(self, other):
        return isinstance(other, CutPointsTransform) and self.places == other.places

    def _call(self, x):
        middle = -x[..., self.places.anchor.to(x.device)]
        return middle + self.places.away(x.exp())

    def _inverse(self, y):
        anchor = self.places.anchor.to(y.device)
        at = torch.arange(len(anchor), device=y.device)
        toward = at - (at - anchor).sign()
        return torch.where(at == anchor, -y, (y - y[..., toward]).abs().log())

    def log_abs_det_jacobian(self, x, y):
        anchor = self.places.anchor.to(x.device)
        gaps = torch.arange(len(anchor), device=x.device) != anchor
        return (x * gaps).sum(-1)


@biject_to.register(_Increasing)
def _cut_points_transform(constraint):
    return CutPointsTransform(constraint.places)


class PriorOfCutPoints(Distribution):
    """Independent normal free numbers of cut points: middles are normal, gaps log-normal.

    Parameters
    ----------
    places : CutPoints
    loc, scale : Tensor of shape (n_cut_points,)
        Of the free numbers.
    """

    arg_constraints: dict = {}

    def __init__(self, places: CutPoints, loc: Tensor, scale: Tensor):
        self.places, self.loc, self.scale = places, loc, scale
        super().__init__(torch.Size(), loc.shape, validate_args=False)

    @property
    def support(self):  # type: ignore[override]
        return _Increasing(self.places)

    @property
    def mean(self):
        rising = self.places.away((self.loc + 0.5 * self.scale**2).exp())
        return rising - self.loc[self.places.anchor.to(self.loc.device)]

    def sample(self, sample_shape=()):
        shape = torch.Size(sample_shape) + self.event_shape
        with torch.no_grad():
            noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
            return CutPointsTransform(self.places)(self.loc + self.scale * noise)

    def log_prob(self, value):
        bijection = CutPointsTransform(self.places)
        u = bijection.inv(value)
        density = self.expected_log_density(u, torch.zeros_like(u))
        return density - bijection.log_abs_det_jacobian(u, value)

    def expected_log_density(self, mean: Tensor, sd: Tensor) -> Tensor:
        """Return E log density of the free numbers u for u ~ N(mean, sd^2)."""
        loc, scale = self.loc.to(mean), self.scale.to(mean)
        squares = ((mean - loc) ** 2 + sd**2) / scale**2
        return -0.5 * (squares + 2 * scale.log() + LOG_2PI).sum(-1)


def cut_points_moments(places: CutPoints, mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and sds of cut points for independent normal free numbers, exactly."""
    anchor, gaps = places.anchor.to(mean.device), (mean + 0.5 * sd**2).exp()
    variances = places.away(gaps**2 * torch.expm1(sd**2)).abs()  # gaps on a way have one sign
    return places.away(gaps) - mean[anchor], (variances + sd[anchor] ** 2).sqrt()


#: Prior sd of the log of a gap about a gap of 1: 90 % between 0.2 and 5.2 on the scale of logits.
LOG_GAP_SCALE = 1.0


def shifted_log_normal(moments: tuple[Tensor, Tensor, Tensor], noise: Tensor) -> Tensor:
    """Return values at standard normal `noise` of a shifted log-normal number with these moments.

    Mean, variance and third central moment.

    Sums of log-normal numbers are close to it (Fenton 1960, "The sum of log-normal probability
    distributions in scatter transmission systems", with a shift); one is it. With skewness g,
    w = exp(s^2) solves (w + 2) (w - 1)^(1/2) = g: w - 1 = 4 sinh^2(t / 2) for t = 2/3 asinh(g / 2).
    """
    mean, variance, third = moments
    root = (variance + _TINY).sqrt()
    half = torch.asinh(0.5 * third / root**3) / 3 + math.sqrt(_TINY)
    width = 2 * half.sinh()
    s = torch.log1p(width**2).sqrt()
    return mean + root / width * torch.expm1(s * noise - 0.5 * s**2)


_TINY = 1e-24  # keeps derivatives finite where nothing varies
