"""Additions to torch.distributions: a flat prior, closed-form expectations, the fit's dtype."""

import inspect
import math
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from traceback import walk_stack, walk_tb

import torch
from torch import Tensor
from torch.distributions import (
    Chi2,
    Distribution,
    Exponential,
    Gamma,
    HalfNormal,
    Independent,
    InverseGamma,
    LogNormal,
    Normal,
    PowerTransform,
    TransformedDistribution,
    Weibull,
    constraints,
)
from torch.overrides import TorchFunctionMode

_FACTORIES = frozenset(
    {torch.zeros, torch.ones, torch.empty, torch.full, torch.eye, torch.linspace, torch.tensor}
    | {torch.arange, torch.as_tensor}
)
#: Functions that write into their first argument, beside those whose names end in "_".
_WRITING = frozenset(
    {"__setitem__", "__set__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"}
)
#: Functions that give a tensor's values to Python or numpy.
_LEAVING = frozenset(
    {Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.__array__}
    | {Tensor.item, Tensor.numpy, Tensor.tolist}
)
#: torch's modules between a call of such a function and `_Surroundings`.
_DISPATCH = ("torch.overrides", "torch._tensor")
#: What the thread is inside of, so that bodies in each other are not entered twice.
_THREAD = threading.local()


class LeavesTorchError(TypeError, RuntimeError):
    """A model's method needs the values of a tensor that torch differentiates or batches.

    It is of both kinds, since torch raises one or the other.

    Examples
    --------
    >>> import numpy as np
    >>> from torch.distributions import Normal
    >>> from skavi import FactorizedVI
    >>> from skavi.models import HierarchicalModel
    >>> class Rate(HierarchicalModel):
    ...     n_latents = 0
    ...
    ...     def global_prior(self, n_features):
    ...         return {"log_rate": Normal(0.0, 1.0)}
    ...
    ...     def likelihood(self, z, theta):
    ...         return Normal(np.exp(theta["log_rate"]), 1.0)
    >>> FactorizedVI(Rate()).fit([[1.0], [2.0]])
    Traceback (most recent call last):
    skavi.distributions.LeavesTorchError: Rate.likelihood (line 8) needs the values of a tensor, ...
    """


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


class _Surroundings(TorchFunctionMode):
    """What a model's methods are run in: the fit's dtype and device, and words for torch's errors.

    ``Normal(0.0, 0.1)`` inside a user's model would otherwise hold a float32 scale, off by 1e-8,
    and a float32 tensor made outside of it would meet float64 ones, which matrix products refuse.
    The mode is local to the thread; torch's global default dtype is never touched.
    """

    def __init__(self, dtype, device):
        super().__init__()
        self.dtype, self.device = dtype, device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _FACTORIES:
            kwargs = self._with_defaults(func, args, kwargs)
        elif kwargs or _may_differ(args, self.dtype):
            args, kwargs = self._in_one_dtype(func, args, kwargs)
        try:
            return func(*args, **kwargs)
        except (RuntimeError, TypeError) as error:
            if not isinstance(error, LeavesTorchError):
                _explain(func, error)
            raise

    def _in_one_dtype(self, func, args, kwargs):
        """Cast all arguments, but none that may be written into: a cast would be a copy."""
        first, dtype = (), self.dtype
        if _writes(func):
            if not args or not isinstance(args[0], Tensor):
                return args, kwargs
            first, dtype = args[:1], args[0].dtype
        rest = (_cast(value, dtype) for value in args[len(first) :])
        return [*first, *rest], {name: _cast(value, dtype) for name, value in kwargs.items()}

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


def _may_differ(args, dtype):
    """Say whether an argument may hold a tensor of another dtype: quick, as most do not."""
    for value in args:
        if isinstance(value, Tensor):
            if value.dtype is not dtype:
                return True
        elif isinstance(value, list | tuple):
            return True
    return False


def _cast(value, dtype):
    """Return floating tensors in another dtype, also those in a list or tuple; all else as is."""
    if isinstance(value, Tensor):
        other = value.dtype is not dtype and dtype.is_floating_point and value.is_floating_point()
        return value.to(dtype) if other else value
    if type(value) in (list, tuple):
        return type(value)(_cast(each, dtype) for each in value)
    return value


def _writes(func):
    """Say whether a function writes into its first argument."""
    name = func.__name__
    return name[-1] == "_" and (name[-2:] != "__" or name in _WRITING)


def _explain(func, error):
    """Raise a LeavesTorchError if a model, not torch itself, asked for the values of a tensor."""
    frames = [frame for frame, _ in walk_stack(inspect.currentframe())][2:]
    frames = [frame for frame in frames if _module(frame) not in _DISPATCH]
    asking = _module(frames[0])
    if asking.startswith("numpy.") or (func in _LEAVING and not asking.startswith("torch.")):
        raise _leaves_torch(frames, error) from error


def _explain_numpy(error):
    """Raise a LeavesTorchError if numpy called a tensor's method in a way that torch refuses."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)][::-1]
    if _module(frames[0]).startswith("numpy."):
        raise _leaves_torch(frames, error) from error


def _leaves_torch(frames, error):
    """Return the error for the innermost of these frames, innermost first, that is a model's."""
    libraries = ("numpy.", "torch.")
    frame = next(frame for frame in frames if not _module(frame).startswith(libraries))
    owner, name = frame.f_locals.get("self"), frame.f_code.co_name
    where = name if owner is None else f"{type(owner).__name__}.{name}"
    return LeavesTorchError(
        f"{where} (line {frame.f_lineno}) needs the values of a tensor, in a numpy function, an "
        "`if` or a Python number. The methods of a model are run under torch's vmap and autograd, "
        "where tensors have no values yet: use torch's functions (torch.exp for np.exp, torch.sum "
        "for np.sum), and torch.where in place of an `if` on values. "
        f"torch says: {error}"
    )


def _module(frame):
    return str(frame.f_globals.get("__name__", ""))


@contextmanager
def defaults_of(tensor: Tensor):
    """Within the body, bring floating tensors, made there or before, to `tensor`'s dtype.

    Tensors made from Python numbers in the body have its device as well.
    """
    before, wanted = getattr(_THREAD, "inside", None), (tensor.dtype, tensor.device)
    if not tensor.dtype.is_floating_point:  # states: they say nothing of the numbers' dtype
        wanted = (torch.float64, tensor.device) if before is None else before
    if before == wanted:
        yield
        return
    _THREAD.inside = wanted
    try:
        with _Surroundings(*wanted):
            yield
    except TypeError as error:
        _explain_numpy(error)
        raise
    finally:
        _THREAD.inside = before


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
    return _expected_quadratic(*_quadratic(base.loc, base.scale), mean, sd)


def known_expectation(
    distribution: Distribution, like: Tensor
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return E log density of u as a function of the mean and sd of a normal u, elementwise.

    A number on the whole real line is u itself, a positive one e^u; the Jacobian is included. None
    without closed form. All that depends on the distribution alone is computed here, once.
    """
    base = innermost(distribution)
    if isinstance(base, Flat) and is_real(base.support):
        return _expected_flat
    if isinstance(base, Normal) or type(base) is LogNormal:  # log p(e^u) + u = log N(u)
        centre, factor, constant = _quadratic(base.loc.to(like), base.scale.to(like))
        return partial(_expected_quadratic, centre, factor, constant)
    if type(base) in _OF_LOG:
        constant, slope, rate, power = _OF_LOG[type(base)](base)
        terms = constant.to(like), slope.to(like), -rate.to(like), power.to(like)
        return partial(_expected_exponential, *terms)
    return None


def _quadratic(loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Write a normal log density as c + b (u - a)^2; return a, b, c."""
    return loc, -0.5 / scale**2, -(scale.log() + 0.5 * math.log(2 * math.pi))


def _expected_flat(mean, sd):
    return torch.zeros_like(mean)


def _expected_quadratic(centre, factor, constant, mean, sd):
    spread = torch.addcmul((mean - centre).square(), sd, sd)
    return torch.addcmul(constant, spread, factor)


def _expected_exponential(constant, slope, factor, power, mean, sd):
    """E (constant + slope u + factor e^(power u)) for u ~ N(mean, sd^2)."""
    mean_power = torch.exp(torch.addcmul(power * mean, power * sd, power * sd, value=0.5))
    return torch.addcmul(torch.addcmul(constant, slope, mean), factor, mean_power)


class _Reciprocal(PowerTransform):
    """1 / y, of y's shape: torch's own asks `broadcast_shapes`, whose first call imports sympy."""

    def forward_shape(self, shape):
        return shape

    inverse_shape = forward_shape


class PriorOfVariance(InverseGamma):
    """Inverse gamma distribution without an import of sympy, which takes as long as a small fit.

    Examples
    --------
    >>> PriorOfVariance(torch.tensor(3.0), torch.tensor(4.0)).mean
    tensor(2.)
    """

    def __init__(self, concentration, rate):
        base = Gamma(concentration, rate)
        TransformedDistribution.__init__(self, base, _Reciprocal(-base.rate.new_ones(())))

    def expand(self, batch_shape, _instance=None):
        return super().expand(batch_shape, _instance or type(self).__new__(type(self)))


def _gamma(shape, rate, sign):
    """Return c, s, r, p of log p(e^u) + u = c + s u - r e^(p u) if e^(sign u) is gamma."""
    constant = shape * rate.log() - torch.lgamma(shape)
    return constant, sign * shape, rate, torch.full_like(rate, sign)


def _half_normal(scale):
    constant, one = 0.5 * math.log(2 / math.pi) - scale.log(), torch.ones_like(scale)
    return constant, one, 0.5 / scale**2, 2 * one


def _weibull(scale, power):
    log_scale = scale.log()
    return power.log() - power * log_scale, power, torch.exp(-power * log_scale), power


#: c, s, r and p by distribution; of exactly these types, as a subclass may have another density.
_OF_LOG: dict[type, Callable] = {
    Gamma: lambda base: _gamma(base.concentration, base.rate, 1),
    Chi2: lambda base: _gamma(base.concentration, base.rate, 1),
    Exponential: lambda base: _gamma(torch.ones_like(base.rate), base.rate, 1),
    InverseGamma: lambda base: _gamma(base.concentration, base.rate, -1),
    PriorOfVariance: lambda base: _gamma(base.concentration, base.rate, -1),
    HalfNormal: lambda base: _half_normal(base.scale),
    Weibull: lambda base: _weibull(base.scale, base.concentration),
}


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


def is_real(support: constraints.Constraint | None) -> bool:
    """Say whether a support is all of the real line, in every coordinate."""
    while (inner := getattr(support, "base_constraint", None)) is not None:  # of a mixture, or such
        support = inner
    if isinstance(support, constraints.cat | constraints.stack):
        return all(map(is_real, support.cseq))
    return support is constraints.real


def innermost(distribution: Distribution) -> Distribution:
    """Strip `Independent` wrappers."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution
