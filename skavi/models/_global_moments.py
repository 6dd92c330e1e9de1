"""Moments and quantiles of one global on the model's own (constrained) scale."""

import numpy as np
import torch
from scipy.special import ndtri
from torch.distributions import IndependentTransform
from torch.distributions.transforms import identity_transform

from skavi._numerics.aligned import aligned
from skavi._numerics.quadrature import hermite_rule, sobol_normal

_N_NODES = 64
_N_DRAWS = 4096


def moments(space, name, factor):
    """Mean and sd, differentiable in the factor: quadrature for scalars, Sobol draws for vectors.

    Parameters
    ----------
    space : GlobalSpace
    name : str
    factor : NormalFactors
        q(u) of all unconstrained globals.

    Returns
    -------
    mean, sd : Tensor of the global's shape
    """
    where, shape, bijection = space.slices[name], space.raw_shapes[name], space.bijections[name]
    mean, sd = factor.mean[where], factor.sd[where]
    if bijection is identity_transform:
        return mean.reshape(shape), sd.reshape(shape)
    if not space.prior[name].event_shape:
        nodes, weights = map(aligned, hermite_rule(_N_NODES))
        draws = mean + sd * nodes.unsqueeze(-1)
    else:
        noise = aligned(sobol_normal(_N_DRAWS, space.size, 0))
        draws = factor.draw(noise)[:, where]
        weights = torch.full((len(draws),), 1 / len(draws), dtype=draws.dtype)
    values = bijection(draws.reshape(-1, *shape))
    centre = torch.tensordot(weights, values, 1)
    return centre, torch.tensordot(weights, (values - centre) ** 2, 1).clamp_min(0).sqrt()


def quantiles(space, name, factor, q):
    """Quantiles, exact through the bijection where it is elementwise, or of Sobol draws.

    Returns
    -------
    ndarray of shape (*q.shape, *the global's shape)
    """
    where, shape = space.slices[name], space.raw_shapes[name]
    bijection = _number_by_number(space.bijections[name])
    if bijection is not None:
        mean, sd = factor.mean[where].numpy(), factor.sd[where].numpy()
        # A bijection that falls (onto x < bound) takes the upper tail to the lower.
        rising = q if bijection.sign > 0 else 1 - q
        u = mean + sd * ndtri(rising)[..., None]
        return bijection(torch.as_tensor(u.reshape((*q.shape, *shape)))).numpy()
    noise = aligned(sobol_normal(_N_DRAWS, space.size, 0))
    draws = space.bijections[name](factor.draw(noise)[:, where].reshape(-1, *shape))
    return np.quantile(draws.numpy(), q, axis=0)


def _number_by_number(bijection):
    """Return a bijection that works elementwise, without its wrappers; None for any other."""
    while isinstance(bijection, IndependentTransform):
        bijection = bijection.base_transform
    return None if bijection.domain.event_dim or bijection.codomain.event_dim else bijection
