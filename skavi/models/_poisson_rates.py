"""Expected rates of Poisson cells whose log rate is bilinear in normal factors, and derivatives.

For independent z ~ N(m, s^2) and w ~ N(u, t^2), E[exp(z w) | w] = exp(m w + s^2 w^2 / 2). With
w = u + e the exponent is a constant m u + s^2 u^2 / 2, plus (m + s^2 u) e + s^2 e^2 / 2; over
e ~ N(0, t^2) this is a normal integral, finite while s t < 1:

    E exp(z w) = (1 - s^2 t^2)^(-1/2) exp{[m u + (m^2 t^2 + u^2 s^2) / 2] / (1 - s^2 t^2)}.

At s t >= 1 it is infinite. Factors of independent components multiply. With q = 1 / (1 - s^2 t^2),
for each component, the derivatives of log E are

    g = d/dm = (u + m t^2) q,   h = dg/dm = t^2 q,   d/ds^2 = (h + g^2) / 2  (as for any heat flow),
    dg/ds^2 = h g,   dh/ds^2 = h^2,   dg/du = q,

and the same with (m, s) and (u, t) exchanged. E is convex in m and log s, jointly, for it is a
mixture over w of exp(m w + s^2 w^2 / 2), whose exponent is: a row's problem given the columns is
concave, and a column's given the rows.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from skavi._data.missing_cells import Cells

#: Cells at once, and numbers of a table of derivatives (rows x columns x components): 1.3 and 6.4
#: MB. A fourth of that is as fast on one thread, but leaves two with too little each: 8,000 x 500
#: counts take 28 s on one, 18 on two, and 25 with a fourth.
_CELLS, _NUMBERS = 160_000, 800_000


@dataclass(frozen=True)
class Side:
    """Independent normal factors of rows (latents), or of columns (loadings, then mean).

    Known numbers of a row, its covariates, come after its latents, with variances of 0; a column
    has its coefficients between loadings and mean.

    Attributes
    ----------
    mean, variance : Tensor of shape (n, k)
    """

    mean: Tensor
    variance: Tensor

    def __len__(self):
        return len(self.mean)

    def __getitem__(self, index):
        return Side(self.mean[index], self.variance[index])

    def first(self, k: int) -> "Side":
        """Return the factors of the first k components."""
        return Side(self.mean[:, :k], self.variance[:, :k])

    def moved(self, step: Tensor) -> "Side":
        """Return the factors after a step (n, 2 k) in means and log sds of the first k numbers."""
        rest = self.mean.shape[-1] - step.shape[-1] // 2
        along, widening = (torch.nn.functional.pad(t, (0, rest)) for t in step.chunk(2, -1))
        return Side(self.mean + along, self.variance * (2 * widening).exp())


@dataclass(frozen=True)
class Counts:
    """Observed counts of rows, with what goes with a row.

    Attributes
    ----------
    cells : Cells
    log_exposure : Tensor of shape (n_rows, 1) or (n_rows, n_columns)
    weights : Tensor of shape (n_rows,)
    n_known : int
        How many of a row's numbers are known.
    """

    cells: Cells
    log_exposure: Tensor
    weights: Tensor
    n_known: int = 0

    def __len__(self):
        return len(self.weights)

    def __getitem__(self, index):
        observed = self.cells.observed
        cells = Cells(self.cells.values[index], None if observed is None else observed[index])
        return Counts(cells, self.log_exposure[index], self.weights[index], self.n_known)

    def n_latents(self, rows: Side) -> int:
        """Return how many of the rows' numbers are latent: the first ones."""
        return rows.mean.shape[-1] - self.n_known

    def rates(self, rows: Side, columns: Side) -> Tensor:
        """Return the expected rates of the cells, 0 where one is missing, shape (n_rows, D)."""
        size = max(1, _CELLS // max(1, len(columns)))
        parts = [slice(first, first + size) for first in range(0, max(1, len(rows)), size)]
        return torch.cat([self[part]._rates(rows[part], columns) for part in parts])

    def _rates(self, rows, columns):
        """Return the same at once; what is known of a row has no variance."""
        k = self.n_latents(rows)
        known = torch.nn.functional.pad(rows.mean[:, k:], (0, 1), value=1.0)
        fixed = known @ columns.mean[:, k:].mT + 0.5 * known**2 @ columns.variance[:, k:].mT
        log_rates = log_expected(rows.first(k), columns.first(k)) + fixed + self.log_exposure
        return self.cells.masked(log_rates.exp())


def log_expected(own: Side, other: Side) -> Tensor:
    """Return log E exp(z_n . w_d), shape (n_own, n_other); infinite where s t >= 1."""
    total, product = own.mean.new_zeros(()), own.mean.new_ones(len(own), len(other))
    one, apart = own.mean.new_ones(()), _apart(own.variance, other.variance)
    (m, s2), (u, t2) = ((side.mean.mT, side.variance.mT) for side in (own, other))
    of_own, of_other = torch.stack([m, 0.5 * m**2, 0.5 * s2], -1), torch.stack([u, t2, u**2], 1)
    for k in range(len(m)):
        left = torch.addr(one, s2[k], t2[k], alpha=-1)
        total = torch.addcdiv(total, of_own[k] @ of_other[k], left)
        product = product * (left if apart else left.clamp_min(0.0))  # two below 0 are not above
    if apart:
        return total - 0.5 * product.log()
    inside = product > 0
    return torch.where(inside, total - 0.5 * torch.where(inside, product, 1.0).log(), math.inf)


def _apart(s2, t2):
    """Return whether all products of variances of a component are below 1."""
    return bool(len(s2) and len(t2)) and bool((s2.detach().amax(0) * t2.detach().amax(0) < 1).all())


def log_expected_full(m: Tensor, covariance: Tensor, loadings: Tensor, root: Tensor) -> Tensor:
    """Return log E exp(z_n . w_d) for correlated z_n ~ N(m, S) and w_d ~ N(u, R R').

    Given w = u + R e, e ~ N(0, I), the exponent is m'u + u'S u / 2 + g'R e + e'R'S R e / 2 with
    g = m + S u; over e, with A = I - R'S R, positive definite where the eigenvalues of S R R' are
    below 1,

        log E = m'u + u'S u / 2 + g'R A^-1 R'g / 2 - log|A| / 2.

    Parameters
    ----------
    m : Tensor of shape (n_rows, k)
    covariance : Tensor of shape (n_rows, k, k)
        S.
    loadings : Tensor of shape (n_columns, k)
        u.
    root : Tensor of shape (n_columns, k, k)
        R.
    """
    covariance = covariance.unsqueeze(1)
    moved = (covariance @ loadings.unsqueeze(-1)).squeeze(-1)
    plain = m @ loadings.mT + 0.5 * (moved * loadings).sum(-1)
    right = (root.mT @ (m.unsqueeze(1) + moved).unsqueeze(-1)).squeeze(-1)
    A = torch.eye(m.shape[-1]).to(m) - root.mT @ covariance @ root
    factor, failed = torch.linalg.cholesky_ex(A)
    inside = failed == 0
    factor = torch.where(inside[..., None, None], factor, torch.eye(m.shape[-1]).to(m))
    half = torch.linalg.solve_triangular(factor, right.unsqueeze(-1), upper=False).squeeze(-1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.where(inside, plain + 0.5 * half.square().sum(-1) - log_det, math.inf)


def curvature(rates: Tensor, own: Side, other: Side, known: Tensor | None = None):
    """Return gradient and Hessian of each row's sum of rates, in its means and log sds.

    Parameters
    ----------
    rates : Tensor of shape (n_own, n_other)
    own : Side
        Of p components: k that meet those of `other`, then one for each known number.
    other : Side
        Of k components.
    known : Tensor of shape (n_other, p - k), default=None
        Numbers without variance, 1 for a mean.

    Returns
    -------
    gradient : Tensor of shape (n_own, 2 p)
    hessian : Tensor of shape (n_own, 2 p, 2 p)
    """
    p = own.mean.shape[-1]
    size = max(1, _NUMBERS // (2 * p * max(1, len(other))))
    gradient, hessian = (
        own.mean.new_empty(len(own), 2 * p),
        own.mean.new_empty(len(own), 2 * p, 2 * p),
    )
    for first in range(0, len(own), size):
        part = slice(first, first + size)
        gradient[part], hessian[part] = _curvature(rates[part], own[part], other, known)
    return gradient, hessian


def _curvature(rates, own, other, known):
    """Return the same at once, with few tables of cells in memory: fresh memory takes longer."""
    (n, p), k = own.mean.shape, other.mean.shape[-1]
    root, own_part = rates.sqrt(), rates.new_zeros(3, n, p)
    slopes = rates.new_empty(n, 2 * p, len(other))
    _of_latents(rates, own, other, slopes, own_part)
    if known is not None:
        slopes[:, k:p] = known.mT
        slopes[:, p + k :] = (known**2).mT * own.variance[:, k:].unsqueeze(-1)
    slopes *= root.unsqueeze(1)
    gradient, hessian = (slopes @ root.unsqueeze(-1)).squeeze(-1), slopes @ slopes.mT
    own_part[2] += 2 * gradient[:, p:]
    for i, j, part in ((0, 0, 0), (0, p, 1), (p, 0, 1), (p, p, 2)):
        block = hessian[:, i : i + p, j : j + p]
        block.diagonal(dim1=1, dim2=2).add_(own_part[part])
    return gradient, hessian


def _of_latents(rates, own, other, slopes, own_part):
    """Write the slopes g and (h + g^2) s^2, and what a number's own second derivatives add."""
    p, one = own.mean.shape[-1], rates.new_ones(())
    (m, s2), (u, t2) = ((side.mean.mT, side.variance.mT) for side in (own, other))
    left, h, weighted, half = (torch.empty_like(rates) for _ in range(4))
    for j in range(len(u)):
        g, bent, wide = slopes[:, j], slopes[:, p + j], s2[j].unsqueeze(-1)
        torch.addr(one, s2[j], t2[j], alpha=-1, out=left)
        torch.div(t2[j], left, out=h)
        torch.addcmul(u[j], m[j].unsqueeze(-1), t2[j], out=g).div_(left)
        torch.addcmul(h, g, g, out=bent)
        torch.mul(rates, h, out=weighted)
        own_part[0, :, j] = weighted.sum(-1)
        torch.add(bent, h, alpha=-0.5, out=half).mul_(weighted)
        own_part[2, :, j] = 4 * s2[j] ** 2 * half.sum(-1)
        own_part[1, :, j] = 2 * s2[j] * weighted.mul_(g).sum(-1)
        bent *= wide
