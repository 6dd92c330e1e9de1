"""The normal posterior of a chain of numbers, whose precision is a tridiagonal matrix."""

import numpy as np
from scipy.linalg import cho_solve_banded, cholesky_banded, solve_banded
from torch import Tensor

from skavi._numerics.aligned import aligned
from skavi.families import ChainFactors


def smoothed(diagonal: Tensor, off: Tensor, right: Tensor) -> ChainFactors:
    """Return the normal with precision P and mean P^-1 right: the Kalman smoother's answer.

    In time linear in the rows. With backward pivots d_n (the Cholesky factor of P from its end),
    var(z_n | z_{n-1}) = 1 / d_n and E[z_n | z_{n-1}] has the slope b_n = -P_{n,n-1} / d_n, so that
    the marginal variances follow v_n = b_n^2 v_{n-1} + 1 / d_n, a sum of positive numbers.

    Parameters
    ----------
    diagonal : Tensor of shape (n,)
    off : Tensor of shape (n - 1,)
        P_{n,n-1}.
    right : Tensor of shape (n,)
    """
    d, e, r = (each.detach().cpu().numpy() for each in (diagonal, off, right))
    if not len(e):
        pivots, mean = d, r / d
    else:
        reversed_ = np.stack([np.concatenate([[0.0], e[::-1]]), d[::-1]])
        factor = cholesky_banded(reversed_)
        mean = cho_solve_banded((factor, False), r[::-1])[::-1]
        pivots = factor[1, ::-1] ** 2
    slopes = -e / pivots[1:]
    below = np.stack([np.ones_like(pivots), np.concatenate([-(slopes**2), [0.0]])])
    variances = solve_banded((1, 0), below, 1 / pivots)
    link = np.concatenate([[0.0], slopes * np.sqrt(variances[:-1] * pivots[1:])])
    columns = (aligned(np.ascontiguousarray(each)) for each in (mean, np.sqrt(variances), link))
    means, scale, links = (each.to(right).reshape(-1, 1) for each in columns)
    return ChainFactors(means, scale.unsqueeze(-1), links.unsqueeze(-1))
