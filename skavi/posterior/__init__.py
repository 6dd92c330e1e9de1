"""Posteriors of a fit: of the latents of given rows, and of the globals."""

from skavi.posterior._bijected import BijectedPosterior
from skavi.posterior._global import GlobalPosterior
from skavi.posterior._latent import LatentPosterior
from skavi.posterior._own_scale import OwnScalePosterior
from skavi.posterior._states import StatePosterior

__all__ = [
    "BijectedPosterior",
    "GlobalPosterior",
    "LatentPosterior",
    "OwnScalePosterior",
    "StatePosterior",
]
