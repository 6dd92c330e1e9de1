"""-ELBO as a function of one vector, its Hessian times vectors, and Newton steps made of those."""

import math

import torch
from scipy.linalg import eigh_tridiagonal

from skavi._numerics.sums import inner
from skavi.solvers._base import State, natural_steps

_MAX_PRODUCTS = 300
_NEGLIGIBLE = 0.01  # of what a Newton step gains, left over
_FEWEST = 20
_CONDITION = 1e8
_MOST_KEPT = 5_000_000


class Loss:
    """-ELBO a row as a function of one vector: departures from the start in natural steps.

    Over several ranks the vector begins with what a rank owns, its rows of a table; the rest is the
    same on all of them, and so are values and inner products.
    """

    def __init__(self, problem, state):
        self.problem, self.scale = problem, max(problem.total_weight, 1e-300)
        lengths, global_lengths = natural_steps(problem, state)
        self.parts = [(state.parameters[name], lengths[name]) for name in state.parameters]
        self.names = list(state.parameters)
        if problem.frozen_globals:
            self.globals_ = state.globals_
        else:
            self.parts.append((state.globals_, global_lengths))
        self.size = sum(start.numel() for start, _ in self.parts)
        self.group = problem.rows.group
        self.owned = self.parts[0][0].numel() if problem.function.tabular else 0
        self.dtype, self.device = problem.rows.X.dtype, problem.rows.X.device

    def state(self, position):
        values, offset = [], 0
        for start, length in self.parts:
            piece = position[offset : offset + start.numel()].reshape(start.shape)
            values.append(start + length * piece)
            offset += start.numel()
        globals_ = self.globals_ if self.problem.frozen_globals else values.pop()
        return State(dict(zip(self.names, values, strict=True)), globals_)

    def elbo(self, value):
        return -value * self.scale

    def __call__(self, position):
        with torch.enable_grad():  # also from `transform`, which runs without
            position = position.detach().requires_grad_(True)
            value = -self.problem.own_elbo(self.state(position)) / self.scale
            (gradient,) = torch.autograd.grad(value, position)
        if self.group.size > 1:
            both = self._added_up(torch.cat([gradient, value.detach().reshape(1)]))
            gradient, value = both[:-1], both[-1]
        return float(value.detach()), gradient

    def products(self, position):
        """Return gradient and a function that multiplies a vector by the Hessian."""
        with torch.enable_grad():
            position = position.detach().requires_grad_(True)
            value = -self.problem.own_elbo(self.state(position)) / self.scale
            (gradient,) = torch.autograd.grad(value, position, create_graph=True)

        def times(vector):
            with torch.enable_grad():
                # Summed here: torch imports sympy where a vector is passed to grad.
                along = inner(gradient, vector)
            (product,) = torch.autograd.grad(
                along, position, retain_graph=True, materialize_grads=True
            )
            return self._added_up(product)

        return self._added_up(gradient.detach()), times

    def _added_up(self, vector):
        """Add what is shared by all ranks up over them."""
        if self.group.size == 1:
            return vector
        return torch.cat([vector[: self.owned], self.group.sum(vector[self.owned :])])

    def dot(self, one, other):
        """Return inner products of vectors and a vector, every rank's own entries counted."""
        if self.group.size == 1 or not self.owned:
            return _dot(one, other)
        own, shared = slice(None, self.owned), slice(self.owned, None)
        here = self.group.sum(_dot(one[..., own], other[own]))
        return here + _dot(one[..., shared], other[shared])

    def finite(self, vector):
        """Say whether every number of a vector is finite, on all ranks."""
        return not self.group.any(not bool(torch.isfinite(vector).all()))

    def norm(self, vector):
        """Return a vector's length, in all ranks' entries."""
        return math.sqrt(float(self.dot(vector, vector)))


def _dot(one, other):
    return inner(one, other) if one.dim() == 1 else one @ other


def newton_step(gradient, times, tol, dot=_dot):
    """Solve H step = -gradient by conjugate gradients.

    Ends where what is left, by the smallest curvature met, is a tenth of `tol` or a hundredth of
    what was gained; at once where a condition number of 1e8 leaves less than a tenth of `tol`.
    Residuals are kept orthogonal to earlier ones while these fit in memory, so
    that as many products as unknowns solve a small system however ill conditioned.

    Returns
    -------
    step : Tensor
        Downhill; short of the solution where curvature turns negative or patience ends.
    decrement : float
        What the whole solution gains: minus half the gradient times the step, and what is left.
    convex : bool
        Whether no negative curvature was met.

    Notes
    -----
    What is left: Meurant & Tichy (2019), "Approximating the extreme Ritz values and upper bounds
    for the A-norm of the error in CG", equation 3.2 with the smallest Ritz value for their mu.
    """
    step, residual = torch.zeros_like(gradient), -gradient
    direction, size = residual.clone(), float(dot(residual, residual))
    gained, left, lanczos, kept = 0.0, 0.0, _Lanczos(), _Orthogonal(gradient, dot)
    for _ in range(_MAX_PRODUCTS if size else 0):
        product = times(direction)
        curvature = float(dot(direction, product))
        length = size / curvature if curvature > 0 else 0.0
        if not length > 0:  # or so short that rounding makes it nothing
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
    """Residuals of conjugate gradients: in exact arithmetic each is orthogonal to all others."""

    def __init__(self, like, dot):
        ones = torch.ones_like(like)
        self.most = _MOST_KEPT / float(dot(ones, ones))  # the same on all ranks
        self.dot, self.vectors = dot, []

    def add(self, vector, size):
        if len(self.vectors) < self.most:
            self.vectors.append(vector / math.sqrt(size))

    def rid(self, vector):
        """Take out what rounding has put in of earlier ones."""
        basis = torch.stack(self.vectors)
        return vector - basis.mT @ self.dot(basis, vector)


class _Lanczos:
    """The tridiagonal matrix that conjugate gradients' lengths and ratios spell out.

    Its smallest eigenvalue comes down to that of the Hessian, seen from the gradient.
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
        """Say whether the smallest has hardly come down over the second half of products."""
        n = len(self.smallest)
        return n >= _FEWEST and self.smallest[-1] >= 0.5 * self.smallest[n // 2 - 1]


def remaining(problem, state, tol):
    """Estimate by one Newton step how far a state is below the optimum, in nats, to about `tol`."""
    loss = Loss(problem, state)
    position = torch.zeros(loss.size, dtype=loss.dtype, device=loss.device)
    gradient, times = loss.products(position)
    return newton_step(gradient, times, tol / loss.scale, loss.dot)[1] * loss.scale
