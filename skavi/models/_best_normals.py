"""Best normal factors of numbers that meet the data through a few sums: of weights, rates, logits.

A factor N(m, s^2) of a number u with a concave E f(u) + log s is at its optimum where
E f'(u) = 0 and -E f''(u) = 1 / s^2 (Challis & Barber 2013, "Gaussian Kullback-Leibler approximate
inference", section 3). Every function works on tensors of such numbers at once.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from skavi._numerics.quadrature import hermite_nodes

#: Gauss-Hermite nodes: E log(1 + e^u) to 1e-9 up to an sd of 1.
_N_NODES = 40
#: Steps: each leaves a small share of the error, and sweeps of coordinate ascent go on. With 2, 3
#: or 6, mixtures of iris and breast cancer take as many sweeps; with 1, weights of a component that
#: empties need 77 for 9.
_STEPS = 2
#: On the scale of logs and logits: longer steps land where exp overflows. Not measured.
_LONGEST = 3.0
#: Of an sd: shorter steps change the value by less than rounding.
_SMALL = 1e-9
#: Relative: a value that falls by less may do so by rounding. Steps that are taken or not by chance
#: would keep sweeps from coming to rest.
_ROUNDING = 1e-13
#: Times that a step which lowers the value is halved.
_HALVINGS = 4
#: Keeps logs and roots finite where a number has neither data nor a prior.
_LEAST_PRECISION = 1e-12

#: Value, slope and curvature of E f(u) for u ~ N(mean, sd^2), elementwise.
Expectation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def best_normals(
    expectation: Expectation, mean: Tensor, sd: Tensor, steps: int = _STEPS
) -> tuple[Tensor, Tensor]:
    """Return the means and sds that maximise E f(u) + log sd, each number on its own.

    Parameters
    ----------
    expectation : callable
        For a concave f.
    mean, sd : Tensor
        Where to start: no number ends lower.
    steps : int
    """
    value, slope, curvature = expectation(mean, sd)
    value = value + sd.log()
    for _ in range(steps):
        precision = (-curvature).clamp_min(_LEAST_PRECISION)
        step = (slope / precision).clamp(-_LONGEST, _LONGEST)
        log_ratio = (-0.5 * precision.log() - sd.log()).clamp(-_LONGEST, _LONGEST)
        if bool((step.abs() <= _SMALL * sd).all() & (log_ratio.abs() <= _SMALL).all()):
            break
        share = torch.ones_like(mean)
        for _ in range(_HALVINGS):
            there = mean + share * step, sd * (share * log_ratio).exp()
            new, new_slope, new_curvature = expectation(*there)
            new = new + there[1].log()
            better = new >= value - _ROUNDING * (1 + value.abs())  # not where it is NaN
            if taken := bool(better.all()):
                break
            share = torch.where(better, share, 0.5 * share)
        if taken:
            (mean, sd), value, slope, curvature = there, new, new_slope, new_curvature
            continue
        mean, sd = torch.where(better, there[0], mean), torch.where(better, there[1], sd)
        value, slope = torch.where(better, new, value), torch.where(better, new_slope, slope)
        curvature = torch.where(better, new_curvature, curvature)
    return mean, sd


def logistic(
    successes: Tensor, failures: Tensor, offset: Tensor | float = 0.0, n_nodes: int = _N_NODES
) -> Expectation:
    """Return the expectation of ``successes * log s(u) + failures * log(1 - s(u))``.

    s is the logistic function, here of ``u - offset``. Curvatures are those of the rule in the sd,
    E[e f'(m + s e)] / s for the nodes e, so that the optimum is that of the rule to rounding.
    """
    nodes, weights = hermite_nodes(n_nodes, successes)

    def expectation(mean, sd):
        u = (mean - offset).unsqueeze(-1) + sd.unsqueeze(-1) * nodes
        share, trials = torch.sigmoid(u), successes + failures
        value = successes * (mean - offset) - trials * (F.softplus(u) @ weights)
        slope = successes - trials * (share @ weights)
        return value, slope, -trials * (share @ (weights * nodes)) / sd

    return expectation


def exponential(count: Tensor, exposure: Tensor) -> Expectation:
    """Return the expectation of ``count * u - exposure * exp(u)``."""

    def expectation(mean, sd):
        rate = exposure * (mean + 0.5 * sd**2).exp()
        return count * mean - rate, count - rate, -rate

    return expectation


def with_normal_prior(expectation: Expectation, loc: Tensor, scale: Tensor) -> Expectation:
    """Return the expectation with that of a normal log prior added, but for its constant."""

    def both(mean, sd):
        value, slope, curvature = expectation(mean, sd)
        away = (mean - loc) / scale**2
        fit = -0.5 * ((mean - loc) ** 2 + sd**2) / scale**2
        return value + fit, slope - away, curvature - scale**-2

    return both


def best_weights(total: Tensor, mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best factor of u, where weights w = StickBreakingTransform(u).

    Parameters
    ----------
    total : Tensor of shape (..., n)
        Counts plus the concentrations of the Dirichlet prior: what is maximised is
        ``total @ E log w`` plus the entropy (the Jacobian being the product of all w).
    mean, sd : Tensor of shape (..., n - 1)
        Where to start.
    """
    n = total.shape[-1]
    if n < 2:
        return mean, sd
    later = total.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return best_normals(logistic(total[..., :-1], later, log_left(mean)), mean, sd)


def log_left(u: Tensor) -> Tensor:
    """Return log n, ..., log 1 for numbers u, (..., n): by it StickBreakingTransform moves them.

    It takes the share logistic(u_k - log(n + 1 - k)) of what is left. Nobody may write into it.
    """
    return _log_left(u.shape[-1], u.dtype, u.device)


@lru_cache(maxsize=64)
def _log_left(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.arange(n, 0, -1).to(device, dtype).log()
