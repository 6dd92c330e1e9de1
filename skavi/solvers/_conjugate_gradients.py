"""Conjugate gradients: Newton steps from products of a Hessian with vectors."""

import math

import torch
from scipy.linalg import eigh_tridiagonal

from skavi._data.blockwise import KEPT_RESIDUALS
from skavi._numerics.sums import inner

#: Hessian products of a Newton step, each at the cost of about two gradients. Not measured:
#: order of magnitude.
_MAX_PRODUCTS = 300
#: Of the gain so far: what may be left over. A stop at 1e-5 of the gain by one product left 35
#: times as much as it stated (e0f7ee8).
_NEGLIGIBLE = 0.01
#: Products before the smallest Ritz value counts as settled: curvatures from 1e-7 to 1 pass
#: (test_solvers).
_FEWEST = 20
#: Largest condition number assumed, one over the root of 2e-16: it saves products, 3.0 to 0.2 s
#: (0de7e5a).
_CONDITION = 1e8


def inner_products(one, other):
    """Return the inner product of two vectors, or of each row of `one` and a vector."""
    return inner(one, other) if one.dim() == 1 else one @ other


def newton_step(gradient, times, tol, dot=inner_products):
    """Solve H step = -gradient by conjugate gradients.

    It ends when the remaining gain, estimated with the smallest curvature met, is below a tenth of
    `tol` or a hundredth of the gain so far; or when a condition number of 1e8 would leave less than
    a tenth of `tol`. Residuals are kept orthogonal to earlier ones while these fit in memory, so a
    small system is solved in as many products as unknowns, even if it is ill conditioned.

    Returns
    -------
    step : Tensor
        A descent direction; not the full solution if curvature is negative or products run out.
    decrement : float
        Estimated gain of the full solution: minus half the gradient times the step, plus the
        remaining gain; NaN if a product with the Hessian is not finite.
    convex : bool
        Whether no negative curvature was met.

    Notes
    -----
    Remaining gain: Meurant & Tichy (2019), "Approximating the extreme Ritz values and upper bounds
    for the A-norm of the error in CG", equation 3.2 with the smallest Ritz value for their mu.
    """
    step, residual = torch.zeros_like(gradient), -gradient
    direction, size = residual.clone(), float(dot(residual, residual))
    gained, left, lanczos, kept = 0.0, 0.0, _Lanczos(), _Orthogonal(gradient, dot)
    for _ in range(_MAX_PRODUCTS if size else 0):
        product = times(direction)
        curvature = float(dot(direction, product))
        if math.isnan(curvature):
            return step, math.nan, False
        length = size / curvature if curvature > 0 else 0.0
        if not length > 0:  # negative curvature, or a length that underflows
            return step if gained else residual, gained + left, False
        kept.add(residual, size)
        step, residual = step + length * direction, kept.rid(residual - length * product)
        gained += 0.5 * length * size
        size, before = float(dot(residual, residual)), size
        direction = residual + size / before * direction
        lanczos.add(length, size / before)
        if not size:
            return step, gained, True
        left = 0.5 * size * size / float(dot(direction, direction)) / lanczos.smallest[-1]
        at_most = size * _CONDITION / (2 * lanczos.largest)
        if at_most <= 0.1 * tol:
            return step, gained + at_most, True
        if left <= max(0.1 * tol, _NEGLIGIBLE * gained) and lanczos.settled():
            break
    return step, gained + left, True


class _Orthogonal:
    """Earlier residuals, to which a new one is orthogonal in exact arithmetic."""

    def __init__(self, like, dot):
        ones = torch.ones_like(like)
        self.most = KEPT_RESIDUALS / float(dot(ones, ones))  # the same on all ranks
        self.dot, self.vectors = dot, []

    def add(self, vector, size):
        if len(self.vectors) < self.most:
            self.vectors.append(vector / math.sqrt(size))

    def rid(self, vector):
        """Remove the components along earlier residuals, which are due to rounding."""
        basis = torch.stack(self.vectors)
        return vector - basis.mT @ self.dot(basis, vector)


class _Lanczos:
    """The tridiagonal Lanczos matrix that follows from conjugate gradients' lengths and ratios.

    Its smallest eigenvalue (Ritz value) falls to the smallest of the Hessian's eigenvalues whose
    eigenvectors have a part in the gradient.
    """

    def __init__(self):
        self.diagonal, self.beside, self.carried = [], [], 0.0
        self.smallest, self.largest = [], 0.0

    def add(self, length, ratio):
        self.diagonal.append(1 / length + self.carried)
        self.largest = max(self.largest, self.diagonal[-1])
        ends = {"select": "i", "select_range": (0, 0), "eigvals_only": True}
        smallest = float(eigh_tridiagonal(self.diagonal, self.beside, **ends)[0])
        self.smallest.append(max(smallest, 1e-300))
        self.carried = ratio / length
        self.beside.append(math.sqrt(ratio) / length)

    def settled(self):
        """Say whether the smallest Ritz value hardly fell over the second half of products."""
        n = len(self.smallest)
        return n >= _FEWEST and self.smallest[-1] >= 0.5 * self.smallest[n // 2 - 1]
