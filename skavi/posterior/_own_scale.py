"""The posterior of given rows on the scale of what their latents stand for."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike

from skavi._numerics.aligned import aligned
from skavi._platform.array_types import Floats
from skavi._platform.forks_and_threads import guarded
from skavi._platform.random_state import private_state
from skavi.models._own_scale import fixed_noise
from skavi.posterior._global import GlobalPosterior
from skavi.posterior._latent import LatentPosterior
from skavi.posterior._quantiles import probabilities

#: Quasi-random draws for quantiles: the 5 % one is then the 51st smallest.
_FIXED_DRAWS = 1024
#: Numbers held at once: 8 MB.
_FIXED_NUMBERS = 1_000_000


@guarded
@dataclass(frozen=True)
class OwnScalePosterior(LatentPosterior):
    """Posteriors of some rows on the scale that their model speaks: topics' proportions, say.

    Attributes
    ----------
    mean, sd : ndarray of shape (n_rows, n_latents)
        Posterior means and standard deviations.
    scale : ndarray of shape (n_rows, n_latents, n_latents)
        Lower Cholesky factors of the covariances.
    index, names
        As in `LatentPosterior`.
    latents : LatentPosterior
        The normal factors q(z_n) themselves.
    globals_ : GlobalPosterior or None
        q(theta), if the model's scale depends on theta.
    own_scale : callable
        Map from one draw of theta (empty without `globals_`), draws of latents, and what is given,
        to the model's scale.
    given : tuple of Tensor
        What that map reads of each row.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import TopicModel
    >>> vi = FactorizedVI(TopicModel(2), random_state=0).fit([[5.0, 0.0], [0.0, 5.0]])
    >>> posterior = vi.posterior([[5.0, 0.0]])
    >>> float(posterior.sample(100, random_state=0).sum(-1).round(6).max())
    1.0
    >>> posterior.logits.mean.shape
    (1, 2)
    """

    latents: LatentPosterior = field(kw_only=True, repr=False)
    globals_: GlobalPosterior | None = field(kw_only=True, repr=False)
    own_scale: Callable = field(kw_only=True, repr=False)
    given: tuple[torch.Tensor, ...] = field(kw_only=True, repr=False, default=())

    @classmethod
    def of(cls, latents, globals_, own_scale, mean, sd, given=(), **own):
        """Return the posterior that belongs to normal factors, with moments that are known.

        `own`: what a subclass holds besides.
        """
        posterior = cls(
            mean,
            sd,
            scale := np.empty_like(latents.scale),
            latents.index,
            latents.names,
            latents=latents,
            groups=latents.groups,
            globals_=globals_,
            own_scale=own_scale,
            given=given,
            **own,
        )
        for rows, values in posterior._fixed_draws():
            away = (values - values.mean(0)) / len(values) ** 0.5
            lower = np.swapaxes(np.linalg.qr(away.transpose(1, 0, 2), mode="r"), 1, 2)
            sign = np.where(np.diagonal(lower, axis1=1, axis2=2) < 0, -1.0, 1.0)
            scale[rows] = lower * sign[:, None]
        return posterior

    @property
    def logits(self):
        """The posterior of the latents, for a model in which they are logits."""
        return self.latents

    def sample(self, n_draws, random_state=None):
        state = private_state(random_state)
        z = self.latents.sample(n_draws, state)
        return self._on_own_scale(z, state.standard_normal((n_draws, self._n_globals)))

    def quantile(self, q: ArrayLike) -> Floats:
        """Return quantiles of each number, of 1,024 quasi-random draws.

        Parameters
        ----------
        q : float or array-like
            Probabilities in [0, 1].

        Returns
        -------
        ndarray of shape (..., n_rows, n_latents)
            The shape of `q` comes first.
        """
        asked = probabilities(q)
        quantiles = np.empty((*asked.shape, *self.mean.shape))
        for rows, values in self._fixed_draws():
            quantiles[..., rows, :] = np.quantile(values, asked, axis=0)
        return quantiles

    def cdf(self, values):
        values, probability = np.asarray(values), np.empty_like(self.mean)
        for rows, draws in self._fixed_draws():
            probability[rows] = (draws < values[rows]).mean(0)
        return probability

    def _fixed_draws(self):
        """Yield a few rows and their draws, shape (n_draws, n_few, n_latents)."""
        n_rows, k = self.mean.shape
        noise = fixed_noise(_FIXED_DRAWS, k + self._n_globals)[:, 0].numpy()
        noise, of_globals = noise[:, :k], noise[:, k:]
        for first in range(0, n_rows, max(1, _FIXED_NUMBERS // (_FIXED_DRAWS * k))):
            rows = slice(first, min(n_rows, first + max(1, _FIXED_NUMBERS // (_FIXED_DRAWS * k))))
            z = np.einsum("nij,dj->dni", self.latents.scale[rows], noise)
            yield rows, self._on_own_scale(self.latents.mean[rows] + z, of_globals, rows)

    @property
    def _n_globals(self):
        return 0 if self.globals_ is None else self.globals_.size

    def _on_own_scale(self, z, noise, rows=slice(None)):
        """Map draws of latents of rows, (n_draws, n_rows, n_latents), and noise of each theta."""
        given = tuple(each[rows] for each in self.given)
        if self.globals_ is None:
            return self.own_scale({}, aligned(z), *given).numpy()
        theta = self.globals_.draws(noise)
        in_dims = (0, 0, *(None for _ in given))
        return torch.func.vmap(self.own_scale, in_dims)(theta, aligned(z), *given).numpy()
