"""-ELBO as a function of one vector, and products of its Hessian with vectors."""

import math

import torch

from skavi._numerics.sums import inner
from skavi.solvers._conjugate_gradients import inner_products, newton_step
from skavi.solvers._state import natural_steps


class Loss:
    """-ELBO a row as a function of one vector: departures from the start in natural steps.

    Over several ranks the vector begins with the parameters of the rank's own rows, if they have
    any; the rest is the same on all ranks, as are values and inner products.
    """

    def __init__(self, problem, state):
        self.problem, self.scale = problem, max(problem.total_weight, 1e-300)
        self.origin, moved = state, not problem.frozen_globals
        tensors, lengths = (
            each.tensors(with_globals=moved) for each in (state, natural_steps(problem, state))
        )
        self.parts = list(zip(tensors, lengths, strict=True))
        self.size = sum(tensor.numel() for tensor in tensors)
        self.ranks = problem.rows.ranks
        self.owned = sum(tensor.numel() for tensor in tensors[: state.n_owned])
        self.dtype, self.device = problem.rows.X.dtype, problem.rows.X.device

    def state(self, position):
        tensors, offset = [], 0
        for start, length in self.parts:
            piece = position[offset : offset + start.numel()].reshape(start.shape)
            tensors.append(start + length * piece)
            offset += start.numel()
        return self.origin.with_tensors(tensors)

    def elbo(self, value):
        return -value * self.scale

    def __call__(self, position):
        with torch.enable_grad():  # `transform` disables gradients
            position = position.detach().requires_grad_(True)
            value = -self.problem.own_elbo(self.state(position)) / self.scale
            (gradient,) = torch.autograd.grad(value, position)
        if self.ranks.size > 1:
            both = self._add_up(torch.cat([gradient, value.detach().reshape(1)]))
            gradient, value = both[:-1], both[-1]
        return float(value.detach()), gradient

    def products(self, position):
        """Return the gradient, and a function that multiplies a vector by the Hessian."""
        with torch.enable_grad():
            position = position.detach().requires_grad_(True)
            value = -self.problem.own_elbo_nearby(self.state(position)) / self.scale
            (gradient,) = torch.autograd.grad(value, position, create_graph=True)

        def times(vector):
            with torch.enable_grad():
                # Not grad_outputs=vector: torch would import sympy for it.
                along = inner(gradient, vector)
            (product,) = torch.autograd.grad(
                along, position, retain_graph=True, materialize_grads=True
            )
            return self._add_up(product)

        return self._add_up(gradient.detach()), times

    def _add_up(self, vector):
        """Sum the entries that all ranks share over the ranks."""
        if self.ranks.size == 1:
            return vector
        return torch.cat([vector[: self.owned], self.ranks.sum(vector[self.owned :])])

    def dot(self, one, other):
        """Return inner products of vectors and a vector, including the entries of all ranks."""
        if self.ranks.size == 1 or not self.owned:
            return inner_products(one, other)
        own, shared = slice(None, self.owned), slice(self.owned, None)
        here = self.ranks.sum(inner_products(one[..., own], other[own]))
        return here + inner_products(one[..., shared], other[shared])

    def finite(self, vector):
        """Say whether every number of a vector is finite, on all ranks."""
        return not self.ranks.any(not bool(torch.isfinite(vector).all()))

    def norm(self, vector):
        """Return a vector's length, including the entries of all ranks."""
        return math.sqrt(float(self.dot(vector, vector)))


def gradient_norm(problem, state) -> float:
    """Return the norm of the gradient in natural steps, in nats a row."""
    loss = Loss(problem, state)
    _, gradient = loss(torch.zeros(loss.size, dtype=loss.dtype, device=loss.device))
    return loss.norm(gradient)


def estimate_suboptimality(problem, state, tol):
    """Estimate by one Newton step how far a state is below the optimum, in nats, to about `tol`."""
    loss = Loss(problem, state)
    position = torch.zeros(loss.size, dtype=loss.dtype, device=loss.device)
    gradient, times = loss.products(position)
    return newton_step(gradient, times, tol / loss.scale, loss.dot)[1] * loss.scale
