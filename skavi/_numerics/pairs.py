"""Jacobians of gradients whose numbers meet in pairs, by three backward passes for all of them."""

import torch
from torch import Tensor

#: Relative: what rounding leaves of the two numbers of a pair.
_ROUNDING = 1e-12


def jacobian_by_pairs(slope: Tensor, unknown: Tensor) -> Tensor | None:
    """Return the Jacobian (2 n, 2 n) of a gradient if number i meets i and i + n alone, else None.

    As where terms of independent normals, means first and log sds then, add up. A third pass, along
    a direction of its own, proves it.

    Examples
    --------
    >>> import torch
    >>> u = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> (slope,) = torch.autograd.grad(u[0] ** 2 * u[1], u, create_graph=True)
    >>> jacobian_by_pairs(slope, u)
    tensor([[4., 2.],
            [2., 0.]])
    """
    size = len(unknown)
    if size % 2 or not slope.requires_grad:
        return None
    place = torch.arange(size, device=unknown.device)
    first = (place < size // 2).to(slope)
    some = (place.to(slope) ** 2).cos()
    columns = [_pass(slope, unknown, direction) for direction in (first, 1 - first, some)]
    jacobian = slope.new_zeros(size, size)
    for half, column in zip((0, size // 2), columns[:2], strict=True):
        jacobian[place, half + place % (size // 2)] = column
    left = jacobian @ some - columns[2]
    known = _ROUNDING * (jacobian.abs() @ some.abs() + columns[2].abs())
    return jacobian if bool((left.abs() <= known).all()) else None


def _pass(slope, unknown, direction):
    along = slope @ direction  # a direction as an argument makes torch import sympy, half a second
    return torch.autograd.grad(along, (unknown,), retain_graph=True, materialize_grads=True)[0]
