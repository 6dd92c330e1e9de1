"""Nodes of a cell's predictor under normal factors of both sides, however many latents there are.

eta = sum_k z_k w_k + (known, 1)'w + offset is not normal where z and w both vary, but nearly so:

* given z it is N(u'z + ..., V(z)) with V(z) = sum_k t_k^2 z_k^2 + v, where w_k ~ N(u_k, t_k^2) and
  v is the variance of what known numbers bring;
* a = u'z is N(u'm, A), A = sum_k s_k^2 u_k^2, and given a = u'm + A^(1/2) e, z ~ N(m + p e,
  diag(s^2) - p p') with p_k = s_k^2 u_k / A^(1/2).

So given e, V(z) has the mean V_0 + 2 V_1 e + V_2 (e^2 - 1) + v with V_0 = sum t^2 (m^2 + s^2),
V_1 = sum t^2 m p and V_2 = sum t^2 p^2, and the variance of a quadratic form, 2 tr(T C T C) +
4 mu'T C T mu, with T = diag(t^2), C = diag(s^2) - p p' and mu = m + p e. All are products of rows'
and columns' numbers. V(z) - v is then taken to be a gamma number with these two moments, and eta
given e is a normal scale mixture, of which five nodes have the first nine moments (a Gauss rule).
The gamma assumption is the only error beside the nodes': it is of third order in t^2.

Where u is 0, p depends on the direction from which it came there: slopes of tables of one value
were 1e9 nats. So where A is below S = sum_k s_k^2 t_k^2, e stands for a number whose variance is
larger by d = (S - A)^2 / S times a constant, and V(z) is smaller by d. The first four moments of
eta stay as they are, as d cancels in them, and V(z) - d has a positive mean: V_0 + 2 V_1 e + V_2
(e^2 - 1) is at least S d / (A + d), and A + d <= S.

Where loadings are narrow beside the bend of the likelihood, as in long tables, eta is so nearly
normal that its third and fourth cumulants do (Gram-Charlier: Kendall & Stuart 1977, "The advanced
theory of statistics", volume 1, section 6.17): under N(M, S^2), with Hermite polynomials He_j,

    E f(eta) = E f(M + S e) (1 + k_3 He_3(e) / 6 S^3 + k_4 He_4(e) / 24 S^4),
    k_3 = 6 sum t^2 u s^2 m,    k_4 = 6 sum (2 t^2 u^2 s^4 + t^4 s^4 + 2 t^4 s^2 m^2),

from the law of total cumulance: k_3 = 3 Cov(a, V) and k_4 = 6 Cum(a, a, V) + 3 Var(V), as a is
normal. That is one node for each e; the next cumulants are of second order in t^2.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from skavi.models._poisson_rates import Side

Rule = list[tuple[float, float]]
#: Of variances: keeps derivatives finite where loadings, or their sds, are 0.
_LEAST = 1e-30
#: Of S, that d is where A is 0: .25 adds 7e-6 nats to a logistic cell at sds of loadings of .3.
_APART = 0.03
#: Mean over columns of (sum_k t_k^2 / width^2)^2 up to which cumulants are taken: 2e5 cells of two
#: latents, sds of .1 to .4, then miss 1e-4 nats in all, of the 2e-3 that a rule may cost a fit.
_NARROW = 4e-6
#: Numbers at once, of cells at several nodes: one row of five cells took 20 times as long node by
#: node. As many as `skavi.models._linear_cells` has.
_NUMBERS = 8000


@dataclass(frozen=True)
class Spread:
    """What z brings to the variance of eta given z, as a function of e.

    Attributes
    ----------
    mean : tuple of Tensor
        V_0 - d, V_1, V_2, each of shape (n_rows, n_columns).
    square : tuple of Tensor
        sum t^4 s^4, sum t^4 s^2 p^2, sum t^4 s^2 m^2 and sum t^4 s^2 m p, of the same shape.
    """

    mean: tuple[Tensor, Tensor, Tensor]
    square: tuple[Tensor, Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, rows: Side, columns: Side, root: Tensor, apart: Tensor) -> "Spread":
        """Return the spread of rows and columns; `root` is (A + d)^(1/2), and `apart` is d."""
        m, s2, u, t2 = rows.mean, rows.variance, columns.mean, columns.variance
        t4, along = t2**2, u**2
        mean = (
            (m**2 + s2) @ t2.mT - apart,
            (m * s2) @ (u * t2).mT / root,
            s2**2 @ (along * t2).mT / root**2,
        )
        square = (
            s2**2 @ t4.mT,
            s2**3 @ (along * t4).mT / root**2,
            (s2 * m**2) @ t4.mT,
            (s2**2 * m) @ (u * t4).mT / root,
        )
        return cls(mean, square)

    def at(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance at several e, along the first dimension."""
        still, along, across = self.mean
        both, mixed, moved, tilted = self.square
        mean = still + 2 * e * along + (e**2 - 1) * across
        variance = 2 * (both - 2 * mixed + across**2)
        variance = variance + 4 * (
            moved + 2 * e * tilted + e**2 * mixed - (along + e * across) ** 2
        )
        return mean.clamp_min(_LEAST), variance.clamp_min(0.0)


def narrow(loadings: Side, width: Tensor | float) -> bool:
    """Say whether loadings are narrow beside the `width` within which the integrand bends."""
    wide = loadings.variance.detach().sum(-1) / width**2
    return float((wide**2).mean()) <= _NARROW


def predictor_nodes(
    rows: Side,
    columns: Side,
    known: Tensor,
    offset: Tensor,
    variance: Tensor | float,
    rule: Rule,
    width: Tensor | float = 1.0,
) -> tuple[Tensor, Iterator[tuple[Tensor, Tensor]]]:
    """Return the mean of eta, and pairs of weights and nodes, some at once along dimension 0.

    The mean has the shape (n_rows, n_columns); weights and nodes of a pair (n, n_rows, n_columns).

    Parameters
    ----------
    rows : Side of k components
    columns : Side of k + q components
        Loadings, then what meets the known numbers.
    known : Tensor of shape (n_rows, q)
    offset : Tensor of shape (n_rows, 1) or (n_rows, n_columns)
    variance : Tensor of shape (n_columns,), or float
        Of what is added to eta.
    rule : list of (float, float)
        Nodes of e, and their weights.
    width : Tensor of shape (n_columns,), or float
        Distance of eta within which the integrand bends.
    """
    k = rows.mean.shape[-1]
    loadings = columns.first(k)
    mean = rows.mean @ loadings.mean.mT + known @ columns.mean[:, k:].mT + offset
    fixed = known**2 @ columns.variance[:, k:].mT + variance
    along = rows.variance @ (loadings.mean**2).mT
    across = rows.variance @ loadings.variance.mT
    if narrow(loadings, width):
        spread = along + across + rows.mean**2 @ loadings.variance.mT + fixed
        return mean, _nearly_normal(mean, spread, _cumulants(rows, loadings), rule)
    apart = _APART * (across - along).clamp_min(0.0) ** 2 / across.clamp_min(_LEAST)
    root = (along + apart).clamp_min(_LEAST).sqrt()
    return mean, _nodes(mean, root, fixed, Spread.of(rows, loadings, root, apart), rule)


def _cumulants(rows, loadings):
    """Return the third and the fourth cumulant of eta, each of shape (n_rows, n_columns)."""
    m, s2, u, t2 = rows.mean, rows.variance, loadings.mean, loadings.variance
    third = 6 * (m * s2) @ (u * t2).mT
    fourth = s2**2 @ (6 * t2 * (2 * u**2 + t2)).mT + (s2 * m**2) @ (12 * t2**2).mT
    return third, fourth


def _nearly_normal(mean, variance, cumulants, rule):
    """Yield weights and nodes of a predictor of four known cumulants."""
    third, fourth = cumulants
    variance = variance.clamp_min(_LEAST)
    root = variance.sqrt()
    skew, tails = third / (6 * variance * root), fourth / (24 * variance**2)
    for part in mean.new_tensor(rule).split(max(1, _NUMBERS // max(1, mean.numel()))):
        e, weight = part.mT[..., None, None]
        apart = 1 + (e**3 - 3 * e) * skew + (e**4 - 6 * e**2 + 3) * tails
        yield weight * apart, mean + e * root


def _nodes(mean, root, fixed, spread, rule):
    for part in mean.new_tensor(rule).split(max(1, _NUMBERS // max(1, mean.numel()))):
        e, weight = part.mT[..., None, None]
        here, moments = mean + e * root, _moments(fixed, *spread.at(e))
        (w_far, far), (w_near, near) = _scale_mixture(*moments)
        yield weight * (1 - 2 * w_far - 2 * w_near), here
        for share, distance in ((w_far, far), (w_near, near)):
            yield weight * share, here + distance
            yield weight * share, here - distance


def _moments(fixed, mean, variance):
    """Return E V, and E V^j / (E V)^j for j = 2, 3, 4, of a gamma number plus what is fixed."""
    scale = variance / mean
    second = mean * (mean + scale)
    third = second * (mean + 2 * scale)
    fourth = third * (mean + 3 * scale)
    whole = mean + fixed
    of_2 = second + 2 * fixed * mean + fixed**2
    of_3 = third + 3 * fixed * second + 3 * fixed**2 * mean + fixed**3
    of_4 = fourth + 4 * fixed * third + 6 * fixed**2 * second + 4 * fixed**3 * mean + fixed**4
    return whole, of_2 / whole**2, of_3 / whole**3, of_4 / whole**4


def _scale_mixture(whole, of_2, of_3, of_4):
    """Return weights and distances of the two outer pairs of the five-node Gauss rule.

    In units of E V, even moments of V^(1/2) e, e ~ N(0, 1), are 1, 3 E V^2, 15 E V^3, 105 E V^4.
    Squares of nodes are the roots of the polynomial t^2 - b t + c that is orthogonal to 1 and t
    under t times the measure of t = V e^2.
    """
    one, two, three = 3 * of_2, 15 * of_3, 105 * of_4
    b = (one * two - three) / (one**2 - two)
    c = b * one - two
    half = (0.25 * b**2 - c).clamp_min(_LEAST).sqrt()
    far, near = 0.5 * b + half, 0.5 * b - half
    w_far = 0.5 * (one - near) / (far * (far - near))
    w_near = 0.5 * (far - one) / (near * (far - near))
    return (w_far, (whole * far).sqrt()), (w_near, (whole * near).sqrt())
