"""Local priors as rows need them: of no latents, of one number; factors that start there."""

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal


def no_latents() -> Distribution:
    """Return the prior of no latents at all."""
    return Normal(torch.zeros(0), torch.ones(0), validate_args=False)


def for_latents(prior: Distribution, n_latents: int) -> Distribution:
    """Return a prior of a row's latents: that of one number serves a single latent."""
    is_distribution = isinstance(prior, Distribution)  # what else it is, a fit's checks say
    one_number = is_distribution and not prior.batch_shape + prior.event_shape
    return prior.expand(torch.Size([1])) if one_number and n_latents == 1 else prior


def start_at(prior: Distribution, shape: tuple[int, int], X: Tensor) -> tuple[Tensor, Tensor]:
    """Return a prior's mean and sd for all rows of X, in its dtype; 0 and 1 where it has none."""
    try:
        moments = prior.mean, prior.stddev
    except NotImplementedError:
        moments = torch.zeros(()), torch.ones(())
    mean, sd = (moment.to(X.device, X.dtype).expand(shape).clone() for moment in moments)
    return torch.nan_to_num(mean), torch.nan_to_num(sd, nan=1.0, posinf=1.0)
