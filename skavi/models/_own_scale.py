"""What a model's latents stand for, such as topics' proportions, and its moments under q."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions.transforms import Transform

from skavi._numerics.aligned import aligned
from skavi._numerics.quadrature import SOBOL_MAX_DIMENSION, hermite_rule, sobol_normal
from skavi.families import NormalFactors
from skavi.models._global_space import N_MOMENT_NODES, GlobalSpace, Theta

#: Quasi-random points: means to 0.003, sds to 0.008 (rms) for wide factors of proportions.
_N_POINTS = 128
_NUMBERS = 500_000  # draws of latents that are held at once


def fixed_noise(n_points: int, n_latents: int) -> Tensor:
    """Return standard normal points (n_points, 1, n_latents): Sobol's, always the same."""
    if n_latents > SOBOL_MAX_DIMENSION:
        own = torch.Generator().manual_seed(0)
        return torch.randn(n_points, 1, n_latents, generator=own, dtype=torch.float64)
    return aligned(sobol_normal(n_points, n_latents, 0)).unsqueeze(1)


def moments_of(
    function: Callable[[Tensor], Tensor], factors: NormalFactors
) -> tuple[Tensor, Tensor]:
    """Return mean and sd of `function` of draws (..., n_rows, n_latents) under every row's factor.

    By 128 quasi-random points, the same for all rows and each time, in bounded memory.
    """
    noise = fixed_noise(_N_POINTS, factors.mean.shape[-1]).to(factors.mean)
    mean = spread = torch.zeros_like(factors.mean)
    for points in noise.split(max(1, _NUMBERS // max(1, factors.mean.numel()))):
        values = function(factors.draw(points))
        mean = mean + values.sum(0) / _N_POINTS
        spread = spread + (values**2).sum(0) / _N_POINTS
    return mean, (spread - mean**2).clamp_min(0).sqrt()


def bijected_moments(bijection: Transform, mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and sd of ``bijection(z)``, number by number, for normal z: by quadrature."""
    nodes, weights = (aligned(each).to(mean) for each in hermite_rule(N_MOMENT_NODES))
    values = bijection(mean + sd * nodes.reshape(-1, *[1] * mean.dim()))
    centre = torch.tensordot(weights, values, 1)
    return centre, torch.tensordot(weights, (values - centre) ** 2, 1).clamp_min(0).sqrt()


class OwnScale:
    """Latents that stand for themselves: a model with another scale overrides this."""

    #: Whether results are on `own_scale` of the latents, not on that of the latents themselves.
    has_own_scale: bool = False
    #: Whether `own_scale` reads theta, so that its spread under q is also that of theta.
    own_scale_reads_theta: bool = False

    def atoms(self, space: GlobalSpace, X: Tensor) -> Tensor | None:
        """Return the values of latents of finite support, (n_states, n_latents); None: real ones.

        `space` is that of the globals for data like X.
        """
        return None

    def in_order(self, globals_: NormalFactors, n_features: int) -> NormalFactors | None:
        """Return q(theta) with interchangeable latents in the model's own order; None: they are.

        What is returned is a start, close to an optimum: its ELBO may differ a little.
        """
        return None

    def first_form(self) -> tuple[bool, ...]:
        """Return the choices between two parametrisations that are open, as they are first tried.

        Each is then tried the other way round, and the form with the highest ELBO is kept. All
        forms have the same `own_scale`, and latents are on it after a shift and a stretch.
        """
        return ()

    def in_form(self, chosen: tuple[bool, ...]) -> Any:
        """Return the model with its open choices made."""
        return self

    def latent_names(self, n_features: int) -> list[str] | None:
        """Return names of what `own_scale` gives, as many as latents; None: the estimator's own."""
        return None

    def own_given(self, X: Tensor) -> tuple[Tensor, ...]:
        """Return what `own_scale` reads of rows X, tensors of one entry a row: nothing."""
        return ()

    def own_scale(self, theta: Theta, z: Tensor, *given: Tensor) -> Tensor:
        """Return what latents (..., n_rows, n_latents) stand for, as many numbers as latents.

        `theta` is one draw, or empty unless `own_scale_reads_theta`. A model that overrides it
        overrides `latents_of`, too, and sets `has_own_scale`.
        """
        return z

    def latents_of(self, theta: Theta, values: Tensor, *given: Tensor) -> Tensor:
        """Return latents that stand for `values` on the model's own scale."""
        return values

    def latent_bijection(self, theta: Theta, X: Tensor) -> Transform | None:
        """Return the bijection from z to the latents that the model's own methods get, or None.

        None where these have no bounds. It works number by number, and does not depend on theta.
        """
        return None

    def bounded(self, theta: Theta, z: Tensor, X: Tensor) -> Tensor:
        """Return the latents that the model's own methods get, for z without bounds."""
        return z

    def own_moments(
        self, factors: NormalFactors, globals_: NormalFactors, *given: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return means and sds of `own_scale` under every row's factor, (n_rows, n_latents) each.

        By fixed quasi-random points; a model with a better way, or whose scale reads theta,
        overrides it.
        """
        if not self.has_own_scale:
            return factors.mean, factors.sd
        return moments_of(lambda z: self.own_scale(Theta(), z), factors)
