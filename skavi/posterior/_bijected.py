"""The posterior of latents with bounds, which are bijections of normal ones, number by number."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.distributions.transforms import Transform

from skavi._numerics.aligned import aligned
from skavi._platform.array_types import Floats
from skavi._platform.forks_and_threads import guarded
from skavi.posterior._own_scale import OwnScalePosterior


@guarded
@dataclass(frozen=True)
class BijectedPosterior(OwnScalePosterior):
    """Posteriors of some rows' latents with bounds: positive ones, or those of an interval.

    Attributes
    ----------
    mean, sd : ndarray of shape (n_rows, n_latents)
        Posterior means and standard deviations.
    scale, index, names, latents
        As in `OwnScalePosterior`: `latents` are the normal factors of numbers without bounds.
    bijection : torch.distributions.transforms.Transform
        From those to the latents.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import Gamma, Poisson
    >>> from skavi import FactorizedVI
    >>> from skavi.models import HierarchicalModel
    >>> class Rates(HierarchicalModel):
    ...     n_latents = 1
    ...
    ...     def global_prior(self, n_features):
    ...         return {}
    ...
    ...     def local_prior(self, theta):
    ...         return Gamma(2.0, 1.0)
    ...
    ...     def likelihood(self, z, theta):
    ...         return Poisson(z)
    >>> posterior = FactorizedVI(Rates()).fit([[3.0], [0.0]]).posterior([[3.0]])
    >>> posterior.mean.round(1), posterior.quantile([0.05, 0.95]).round(1).ravel()
    (array([[2.5]]), array([1.1, 4.7]))
    """

    bijection: Transform = field(kw_only=True, repr=False)

    @classmethod
    def through(cls, bijection, latents, mean, sd):
        """Return the posterior that belongs to normal factors, with moments that are known."""
        return cls.of(latents, None, _Applied(bijection), mean, sd, bijection=bijection)

    def quantile(self, q: ArrayLike) -> Floats:
        """Return quantiles of each number, exact.

        Parameters
        ----------
        q : float or array-like
            Probabilities in [0, 1].

        Returns
        -------
        ndarray of shape (..., n_rows, n_latents)
            The shape of `q` comes first.
        """
        rising = self._sign > 0
        values = self.latents.quantile(np.asarray(q) if rising else 1 - np.asarray(q))
        return self.bijection(aligned(values)).numpy()

    def cdf(self, values):
        below = self.latents.cdf(self.bijection.inv(aligned(values)).numpy())
        return below if self._sign > 0 else 1 - below

    @property
    def _sign(self):
        sign = self.bijection.sign
        return float(sign) if not isinstance(sign, torch.Tensor) else float(sign.flatten()[0])


@dataclass(frozen=True)
class _Applied:
    """A bijection as `OwnScalePosterior` asks for it, with theta first."""

    bijection: Transform

    def __call__(self, theta, z):
        return self.bijection(z)
