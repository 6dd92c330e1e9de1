"""Latents with a bounded support: q is normal where they have no bounds, the model sees them with.

Inside the library z has no bounds; the methods that a user writes get the bijection of z, which is
that of the local prior's support, as it is for globals.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, GeneralizedPareto, VonMises, biject_to, constraints
from torch.distributions.transforms import Transform

from skavi.distributions import defaults_of, innermost, is_real
from skavi.models._own_scale import OwnScale
from skavi.models._priors_of_rows import for_latents, start_at

#: Of the scale without bounds: a row's factor starts no wider and no narrower. Not measured.
_WIDEST, _NARROWEST = 2.0, 1e-3
#: On the same scale: a start beyond is that of a prior without a mean, or at the bound.
_FARTHEST = 30.0


def bijection_of(prior: Distribution) -> Transform | None:
    """Return the elementwise bijection onto a prior's support; None: there is nothing to bound.

    Raises
    ------
    NotImplementedError
        If there is no such bijection; the message says what the latents are.
    """
    support = prior.support
    if isinstance(innermost(prior), VonMises):
        raise NotImplementedError("angles, which start again after a turn")
    if isinstance(innermost(prior), GeneralizedPareto):
        raise NotImplementedError("numbers whose largest one may be infinite")
    if support is None or is_real(support):
        return None
    while (inner := getattr(support, "base_constraint", None)) is not None:
        support = inner
    if support.is_discrete:
        raise NotImplementedError("whole numbers without a largest one, or several together")
    if support.event_dim or isinstance(support, constraints.cat | constraints.stack):
        raise NotImplementedError("numbers that are bounded together")
    return biject_to(support)


def unbounded(prior: Distribution, latents: Tensor) -> Tensor:
    """Return z for latents within the bounds of their prior."""
    try:
        bijection = bijection_of(prior)
    except NotImplementedError:
        return latents
    return latents if bijection is None else bijection.inv(latents)


class BijectedLatents(OwnScale):
    """What a model with rows of independent latents does with a bounded local prior."""

    writes_prior_out: Any
    observation_of_rows: Callable[..., Distribution]
    prior_of_rows: Callable[..., Distribution]
    count_latents: Callable[[int], int]
    n_explained: Callable[[Tensor], int]
    local_prior: Callable[..., Distribution]
    latent_prior: Callable[..., Distribution]
    observation: Callable[..., Distribution]
    with_given: Callable[[Tensor, Tensor], Tensor]

    #: Whether a bounded local prior is taken: its bijection is known from theta and X alone.
    bijects_latents = True

    def bijection_onto(self, prior: Distribution) -> Transform | None:
        """Return the bijection from z to latents with this prior, where they are bounded."""
        if not self.bijects_latents or not isinstance(prior, Distribution):
            return None
        try:
            return bijection_of(prior)
        except NotImplementedError:  # finite latents stand for themselves; a fit refuses others
            return None

    def within(self, prior: Distribution, z: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return latents within the bounds of their prior, and the log Jacobian of each row's."""
        bijection = self.bijection_onto(prior)
        if bijection is None:
            return z, 0.0
        latents = bijection(z)
        return latents, bijection.log_abs_det_jacobian(z, latents).sum(-1)

    def latent_bijection(self, theta, X):
        if self.writes_prior_out or not self.count_latents(self.n_explained(X)):
            return None
        with defaults_of(X):
            return self.bijection_onto(self.prior_of_rows(theta, X))

    def bounded(self, theta, z, X):
        bijection = self.latent_bijection(theta, X)
        return z if bijection is None else bijection(z)

    def own_scale(self, theta, z, *given):
        """Return the latents as the model's own methods get them, for one draw of theta."""
        if self.writes_prior_out or not self.bijects_latents or not z.shape[-1]:
            return z
        with defaults_of(z):
            prior = for_latents(self.local_prior(theta, *given), z.shape[-1])
        return self.within(prior, z)[0]

    def simulate(self, theta, n_samples, n_features=1):
        prior = self.latent_prior(n_features, theta)
        latents = prior.expand((n_samples, *prior.batch_shape)).sample()
        return self.observation(latents, theta).sample(), unbounded(prior, latents)

    def replicate(self, theta, z, X):
        with defaults_of(z):
            cells = self.observation_of_rows(self.bounded(theta, z, X), theta, X)
            return self.with_given(cells.sample(), X)

    def cell_moments(self, theta, z, X):
        with defaults_of(z):
            cells = self.observation_of_rows(self.bounded(theta, z, X), theta, X)
        return cells.mean, cells.variance

    def initial_locals(self, theta, X):
        """Return the prior's mean and sd, by the delta method where it is bounded."""
        bijection = self.latent_bijection(theta, X)
        with defaults_of(X):
            prior = self.prior_of_rows(theta, X)
            mean, sd = start_at(prior, (len(X), self.count_latents(self.n_explained(X))), X)
        if bijection is None:
            return mean, sd
        z = bijection.inv(mean)
        slope = bijection.log_abs_det_jacobian(z, mean).exp()
        known = (z.abs() < _FARTHEST) & torch.isfinite(slope) & (slope > 0)
        sd = torch.where(known, sd / slope, 1.0).clamp(_NARROWEST, _WIDEST)
        return torch.where(known, z, 0.0), sd
