"""Bijections from the real line to the support of a global's prior."""

from torch.distributions import Distribution, Transform, biject_to

from skavi._platform.shown_values import support_in_words


def bijection_of_global(name: str, prior: Distribution) -> Transform:
    """Return the bijection to a prior's support; refuse a prior of whole numbers by its name."""
    try:
        return biject_to(prior.support)
    except NotImplementedError:
        raise ValueError(
            f"global_prior: {name!r} is {type(prior).__name__} with support "
            f"{support_in_words(prior.support)}, but q(theta) is for real numbers: give it a "
            "continuous prior, or sum it out in log_likelihood."
        ) from None
