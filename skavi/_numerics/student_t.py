"""Multivariate Student t draws and densities, as proposals of importance sampling."""

import math

import numpy as np
from scipy.special import ndtr
from scipy.stats import chi2
from torch import Tensor


def radii(normals: np.ndarray, degrees: float) -> np.ndarray:
    """Return sqrt(nu / chi-square(nu)) by inversion: times N(0, I) it is a standard Student t."""
    uniform = np.clip(ndtr(normals), 1e-12, 1 - 1e-12)
    return np.sqrt(degrees / chi2.ppf(uniform, degrees))


def log_density(squared: Tensor, degrees: float, size: int) -> Tensor:
    """Return the log density of a standard Student t of `size` numbers at a squared length."""
    half = 0.5 * (degrees + size)
    constant = math.lgamma(half) - math.lgamma(0.5 * degrees)
    constant -= 0.5 * size * math.log(degrees * math.pi)
    return constant - half * (squared / degrees).log1p()
