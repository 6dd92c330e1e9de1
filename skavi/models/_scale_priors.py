"""Priors in the one vocabulary of all models: a scale, a distribution, or None: from the data."""

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from skavi.distributions import Flat

#: Of a column's sd over a covariate's: prior sd of a coefficient (Gelman et al. 2008, "A weakly
#: informative default prior distribution for logistic and other regression models").
WEAK = 2.5


def check_scale(model, name: str) -> None:
    """Raise unless an argument is None, positive numbers, or a distribution over numbers."""
    value = getattr(model, name)
    if value is None:
        return
    if isinstance(value, Distribution):
        model._require(name, not value.event_shape, "a distribution of single numbers")
        return
    need = "positive numbers, a distribution, or None"
    try:
        numbers = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        numbers = np.array(np.nan)
    model._require(name, bool((np.isfinite(numbers) & (numbers > 0)).all()), need)


def scale_prior(value, shape: tuple[int, ...]) -> Distribution:
    """Return the prior of numbers about 0 that an argument stands for, of a shape."""
    if isinstance(value, Flat):
        return Flat(shape, value.support)
    if isinstance(value, Distribution):
        return value.expand(torch.Size(shape))
    return Normal(0.0, torch.as_tensor(value).expand(shape))


def is_centred_normal(value) -> bool:
    """Say whether an argument stands for a normal prior about 0, or a flat one."""
    if isinstance(value, Flat):
        return True
    if isinstance(value, Distribution):
        return isinstance(value, Normal) and bool((value.loc == 0).all())
    return True


def normal_precision(value, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return the precisions of a normal prior about 0, or of a flat one."""
    prior = scale_prior(value, shape)
    if isinstance(prior, Normal):
        return prior.scale.to(like) ** -2
    return like.new_zeros(shape)
