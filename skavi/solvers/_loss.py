"""-ELBO as a function of one vector, its Hessian times vectors, and Newton steps made of those."""

import torch

from skavi.solvers._base import State, natural_steps

_MAX_PRODUCTS = 300
_NEGLIGIBLE = 1e-5  # of the decrement, gained by a product
_CONDITION = 1e8


class Loss:
    """-ELBO a row as a function of one vector: departures from the start in natural steps."""

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
            value = -self.problem.elbo(self.state(position)) / self.scale
            (gradient,) = torch.autograd.grad(value, position)
        return float(value.detach()), gradient

    def products(self, position):
        """Return gradient and a function that multiplies a vector by the Hessian."""
        with torch.enable_grad():
            position = position.detach().requires_grad_(True)
            value = -self.problem.elbo(self.state(position)) / self.scale
            (gradient,) = torch.autograd.grad(value, position, create_graph=True)

        def times(vector):
            (product,) = torch.autograd.grad(
                gradient, position, vector, retain_graph=True, materialize_grads=True
            )
            return product

        return gradient.detach(), times


def newton_step(gradient, times, tol):
    """Solve H step = -gradient by conjugate gradients.

    Ends where what is left is below a tenth of `tol` for any condition number up to 1e8.

    Returns
    -------
    step : Tensor
        Downhill; short of the solution where curvature turns negative or patience ends.
    decrement : float
        Minus half the gradient times the step: what the step gains, in the unit of the loss.
    convex : bool
        Whether no negative curvature was met.
    """
    step, residual = torch.zeros_like(gradient), -gradient
    direction, size = residual.clone(), float(residual @ residual)
    decrement, steepest = 0.0, 0.0
    for _ in range(min(_MAX_PRODUCTS, len(gradient))):
        product = times(direction)
        curvature = float(direction @ product)
        if not curvature > 0:
            return step if decrement else residual, decrement, size == 0
        steepest = max(steepest, curvature / float(direction @ direction))
        length = size / curvature
        step, residual = step + length * direction, residual - length * product
        gain, decrement = 0.5 * length * size, decrement + 0.5 * length * size
        size, before = float(residual @ residual), size
        at_most = size * _CONDITION / (2 * steepest)
        if gain <= _NEGLIGIBLE * decrement or at_most <= 0.1 * tol:
            break
        direction = residual + size / before * direction
    return step, decrement, True


def remaining(problem, state, tol):
    """Estimate by one Newton step how far a state is below the optimum, in nats, to about `tol`."""
    loss = Loss(problem, state)
    position = torch.zeros(loss.size, dtype=loss.dtype, device=loss.device)
    gradient, times = loss.products(position)
    return newton_step(gradient, times, tol / loss.scale)[1] * loss.scale
