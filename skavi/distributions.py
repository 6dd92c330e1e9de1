"""Additions to torch.distributions: a flat prior, closed-form expectations, the fit's dtype."""

import math
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    Normal,
    TransformedDistribution,
    constraints,
)
from torch.overrides import TorchFunctionMode

_FACTORIES = frozenset(
    {torch.zeros, torch.ones, torch.empty, torch.full, torch.eye, torch.linspace, torch.tensor}
    | {torch.arange, torch.as_tensor}
)


def refuses_parameters(error: ValueError) -> bool:
    """Say whether an error is torch's about a distribution's parameters, as its message shows."""
    return "Expected parameter" in str(error)


class Flat(Distribution):
    """The improper flat prior: density 1 on the real line, or on another support.

    Parameters
    ----------
    shape : tuple of int, default=()
        Shape of the variable; its entries are independent.
    support : Constraint, default=torch.distributions.constraints.real
        Where the density is 1, such as ``constraints.positive`` for a standard deviation.

    Examples
    --------
    >>> import torch
    >>> from skavi.distributions import Flat
    >>> Flat().log_prob(torch.tensor(3.0)).item()
    0.0
    >>> Flat(support=torch.distributions.constraints.positive).support
    GreaterThan(lower_bound=0.0)
    """

    arg_constraints: dict = {}
    support: constraints.Constraint = constraints.real
    has_rsample = False

    def __init__(self, shape=(), support=constraints.real):
        self.support = support
        super().__init__(batch_shape=torch.Size(shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value)

    def sample(self, sample_shape=()):
        raise NotImplementedError("Flat is improper: it cannot be sampled.")


class _Defaults(TorchFunctionMode):
    """Give tensors made from Python numbers the fit's dtype and device.

    ``Normal(0.0, 0.1)`` inside a user's model would otherwise hold a float32 scale, off by 1e-8.
    The mode is local to the thread; torch's global default dtype is never touched.
    """

    def __init__(self, dtype, device):
        super().__init__()
        self.dtype, self.device = dtype, device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _FACTORIES:
            kwargs = self._with_defaults(func, args, kwargs)
        return func(*args, **kwargs)

    def _with_defaults(self, func, args, kwargs):
        kwargs = dict(kwargs)
        if kwargs.get("device") is None:
            kwargs["device"] = self.device
        floating = kwargs.get("dtype") == torch.get_default_dtype()
        if kwargs.get("dtype") is None:
            if func in (torch.tensor, torch.as_tensor):
                made = func(*args, **kwargs)
                return kwargs | {"dtype": self.dtype if made.is_floating_point() else made.dtype}
            integral = func is torch.arange and all(isinstance(a, int) for a in args)
            integral |= func is torch.full and isinstance(args[-1], int)
            floating = not integral
        return kwargs | {"dtype": self.dtype} if floating else kwargs


@contextmanager
def defaults_of(tensor: Tensor):
    """Within the body, give tensors made from Python numbers `tensor`'s dtype and device."""
    with _Defaults(tensor.dtype, tensor.device):
        yield


def log_prob(distribution: Distribution, value: Tensor) -> Tensor:
    """Log density of `value`, summed over a univariate distribution's last dimension.

    Values are validated elsewhere, once: under vmap torch's validation is misleading.
    """
    density = unvalidated(distribution).log_prob(value)
    return density if distribution.event_shape else density.sum(-1)


def expected_log_prob(distribution: Distribution, mean: Tensor, sd: Tensor) -> Tensor | None:
    """E log density under a normal of this mean and sd, elementwise; None without closed form."""
    base = innermost(distribution)
    if isinstance(base, Flat):
        return torch.zeros_like(mean)
    if not isinstance(base, Normal):
        return None
    spread = torch.addcmul((mean - base.loc).square(), sd, sd)
    at_loc = -(base.scale.log() + 0.5 * math.log(2 * math.pi))
    return torch.addcmul(at_loc, spread, -0.5 / base.scale**2)


def compact(distribution: Distribution, like: Tensor) -> Distribution:
    """Return a normal whose entries all have one mean and one sd as a scalar of like's dtype.

    Other distributions are returned unchanged.
    """
    base = innermost(distribution)
    if not isinstance(base, Normal) or not base.loc.numel():
        return distribution
    loc, scale = base.loc.flatten(), base.scale.flatten()
    if not bool((loc == loc[0]).all() & (scale == scale[0]).all()):
        return distribution
    return Normal(loc[0].to(like), scale[0].to(like), validate_args=False)


def unvalidated(distribution: Distribution) -> Distribution:
    """Disable the validation of values in a distribution and in those that it wraps."""
    inner = distribution
    inner._validate_args = False
    while isinstance(inner, Independent | TransformedDistribution):
        inner = inner.base_dist
        inner._validate_args = False
    return distribution


def innermost(distribution: Distribution) -> Distribution:
    """Strip `Independent` wrappers."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution
