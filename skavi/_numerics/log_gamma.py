"""The log of the gamma function, with a quick derivative in single precision."""

import torch
from torch import Tensor


def log_gamma(y: Tensor) -> Tensor:
    """Return log Gamma(y), y > 0, for any derivatives.

    Torch's digamma takes six times as long as its lgamma. In single precision, where a fit takes
    thousands of steps, `_digamma` serves in its place.
    """
    return _LogGamma.apply(y)


class _LogGamma(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(y):
        return torch.lgamma(y)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, slope):
        (y,) = ctx.saved_tensors
        once = y.dtype is torch.float32 and not torch.is_grad_enabled()
        return slope * (_digamma(y) if once else torch.digamma(y))


def _digamma(y: Tensor) -> Tensor:
    """Return the derivative of log Gamma to 4e-7, the rounding of single precision.

    psi(y) = psi(y + 3) - 1 / y - 1 / (y + 1) - 1 / (y + 2), and at u = y + 3 the asymptotic series
    log u - 1 / (2 u) - 1 / (12 u^2) + 1 / (120 u^4) - 1 / (252 u^6) is as near. Source: Abramowitz
    & Stegun (1964), equations 6.3.5 and 6.3.18.
    """
    u = y + 3
    r = u.reciprocal()
    squared = r * r
    series = squared.mul(-1 / 252).add_(1 / 120).mul_(squared).sub_(1 / 12).mul_(r).sub_(0.5)
    before = (3 * y).add_(6).mul_(y).add_(2).div_(y * (y + 1) * (y + 2))
    return u.log_().addcmul_(r, series).sub_(before)
