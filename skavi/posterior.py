"""Posteriors of a fit: of the latents of given rows, and of the globals."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from skavi._quadrature import hermite_rule, sobol_normal
from skavi._random import private_state
from skavi.distributions import defaults_of
from skavi.families import Family
from skavi.models import LatentVariableModel

_N_NODES = 64
_N_DRAWS = 4096


@dataclass(frozen=True)
class LatentPosterior:
    """Factors q(z_n) of some rows.

    Attributes
    ----------
    mean, sd : ndarray of shape (n_rows, n_latents)
        Posterior means and standard deviations.
    scale : ndarray of shape (n_rows, n_latents, n_latents)
        Lower Cholesky factors of the covariances.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> vi = FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]])
    >>> vi.posterior([[2.0]]).sample(100, random_state=0).shape
    (100, 1, 1)
    """

    mean: np.ndarray
    sd: np.ndarray
    scale: np.ndarray = field(repr=False)

    def sample(self, n_draws, random_state=None):
        """Draw latents.

        Parameters
        ----------
        n_draws : int
            Draws a row.
        random_state : int, RandomState or None, default=None
            Seed or generator.

        Returns
        -------
        ndarray of shape (n_draws, n_rows, n_latents)
        """
        noise = private_state(random_state).standard_normal((n_draws, *self.mean.shape))
        return self.mean + np.einsum("nij,dnj->dni", self.scale, noise)


class GlobalPosterior:
    """The factor q(theta), read on the model's own (constrained) scale.

    Attributes
    ----------
    mean, sd : dict of str to ndarray
        Posterior means and standard deviations by the names of ``model.global_prior``.
    unconstrained_mean, unconstrained_sd : dict of str to ndarray
        Of the same globals on the real line, where q is normal (for example log tau).

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> vi = FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]])
    >>> round(float(vi.global_posterior_.mean["theta"]), 6)
    2.0
    """

    def __init__(
        self, model: LatentVariableModel, family: Family, raw: np.ndarray, n_features: int
    ):
        self._model, self._family, self._raw = model, family, raw
        self._n_features = n_features

    # Moments are taken when they are read: callbacks see a posterior after every iteration.

    @cached_property
    def unconstrained_mean(self):
        space, factor = self._space_and_factor()
        return {name: factor.mean[where].numpy().copy() for name, where in space.slices.items()}

    @cached_property
    def unconstrained_sd(self):
        space, factor = self._space_and_factor()
        return {name: factor.sd[where].numpy().copy() for name, where in space.slices.items()}

    @property
    def mean(self):
        return {name: mean for name, (mean, _) in self._mean_and_sd.items()}

    @property
    def sd(self):
        return {name: sd for name, (_, sd) in self._mean_and_sd.items()}

    @cached_property
    def _mean_and_sd(self):
        space, factor = self._space_and_factor()
        moments = {}
        for name, where in space.slices.items():
            mean, sd = _moments(space, name, factor.mean[where], factor.sd[where], factor, where)
            moments[name] = mean.numpy().copy(), sd.numpy().copy()
        return moments

    def _space_and_factor(self):
        raw = torch.as_tensor(self._raw, dtype=torch.float64)
        space = self._model.global_space(raw.new_zeros(1, self._n_features))
        return space, self._family.factors(raw, space.size)

    def draw_unconstrained(self, noise: np.ndarray) -> np.ndarray:
        """Map standard normals, shape (n_draws, size), to draws of the unconstrained globals."""
        _, factor = self._space_and_factor()
        return factor.draw(torch.as_tensor(noise)).numpy()

    def sample(self, n_draws, random_state=None):
        """Draw globals.

        Parameters
        ----------
        n_draws : int
            Number of draws.
        random_state : int, RandomState or None, default=None
            Seed or generator.

        Returns
        -------
        dict of str to ndarray of shape (n_draws, ...)
        """
        space, _ = self._space_and_factor()
        noise = private_state(random_state).standard_normal((n_draws, space.size))
        u = torch.as_tensor(self.draw_unconstrained(noise))
        with defaults_of(u):
            theta = {
                name: space.bijections[name](u[:, where].reshape(n_draws, *space.raw_shapes[name]))
                for name, where in space.slices.items()
            }
        return {name: value.numpy() for name, value in theta.items()}

    def __repr__(self):
        shapes = ", ".join(f"{name}: {value.shape}" for name, value in self.mean.items())
        return f"GlobalPosterior({shapes})"


def _moments(space, name, mean, sd, factor, where):
    """Mean and sd on the constrained scale: quadrature for scalars, Sobol draws for vectors."""
    shape, bijection = space.raw_shapes[name], space.bijections[name]
    if not space.prior[name].event_shape:
        nodes, weights = (torch.as_tensor(a) for a in hermite_rule(_N_NODES))
        draws = mean + sd * nodes.unsqueeze(-1)
    else:
        noise = torch.as_tensor(sobol_normal(_N_DRAWS, space.size, 0))
        draws = factor.draw(noise)[:, where]
        weights = torch.full((len(draws),), 1 / len(draws), dtype=draws.dtype)
    values = bijection(draws.reshape(-1, *shape))
    centre = torch.tensordot(weights, values, 1)
    return centre, torch.tensordot(weights, (values - centre) ** 2, 1).clamp_min(0).sqrt()
