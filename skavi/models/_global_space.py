"""The globals theta of a model: names, constraints and priors on one unconstrained vector u.

`GlobalSpace` alone converts between theta on the model's scale and the vector u on which q(theta)
is normal (by torch's bijections, with their Jacobian in the density).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor
from torch.distributions import (
    Dirichlet,
    Distribution,
    IndependentTransform,
    Normal,
    StickBreakingTransform,
    Transform,
    constraints,
)
from torch.distributions.transforms import identity_transform
from torch.nn import functional as F

from skavi._numerics.aligned import aligned
from skavi._numerics.quadrature import hermite_nodes, sobol_normal
from skavi._numerics.sums import add_up
from skavi._platform.forks_and_threads import seeded
from skavi.distributions import (
    Flat,
    compact,
    defaults_of,
    is_real,
    known_expectation,
    unvalidated,
)
from skavi.families import DiagonalFactors, NormalFactors
from skavi.models._best_normals import log_left
from skavi.models._bijections_of_globals import bijection_of_global
from skavi.models._centred_coefficients import CentringTransform, centred_moments, free_prior
from skavi.models._correlation import LKJ
from skavi.models._covariance_prior import (
    PriorOfCovariance,
    RegressionTransform,
    covariance_draws,
    covariance_moments,
)
from skavi.models._cut_points import CutPointsTransform, PriorOfCutPoints, cut_points_moments

#: Gauss-Hermite nodes: E log HalfCauchy to 1e-9 nats at an sd of 1 (log scale), 2e-5 at 2.
N_PRIOR_NODES = 40
#: Sobol points for priors of vectors: means and covariances are exact. Not measured: order of
#: magnitude.
N_PRIOR_DRAWS = 256
#: Gauss-Hermite nodes: the mean of a softplus to 1e-11 at an sd of 2.
N_MOMENT_NODES = 64
#: On a log scale: exp of it is near the largest number.
_OVERFLOW = 700.0
#: Sobol points for vectors: 204 of them lie below the 5 % quantile. Not measured: order of
#: magnitude.
N_MOMENT_DRAWS = 4096


def _nodes(like: Tensor) -> tuple[Tensor, Tensor]:
    return hermite_nodes(N_PRIOR_NODES, like)


def expected_log_weights(mean: Tensor, sd: Tensor) -> Tensor:
    """Return E log w of weights w = StickBreakingTransform(u) for normal u, shape (..., n + 1).

    log w_k = log s(y_k) + sum_{j < k} log(1 - s(y_j)), with s the logistic function and y_k equal
    to u_k but for a constant: quadrature in one dimension each.
    """
    nodes, weights = _nodes(mean)
    centre = mean - log_left(mean)
    taken = F.logsigmoid(centre.unsqueeze(-1) + sd.unsqueeze(-1) * nodes) @ weights
    left = taken - centre  # log(1 - s(y)) = log s(y) - y
    return F.pad(taken, (0, 1)) + F.pad(left.cumsum(-1), (1, 0))


def weights_moments(mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and sds of weights w = StickBreakingTransform(u) for independent normal u.

    w_k is a product of independent numbers, s(y_k) and 1 - s(y_j) for j < k; shapes (..., n).
    """
    nodes, weights = _nodes(mean)
    y = (mean - log_left(mean)).unsqueeze(-1) + sd.unsqueeze(-1) * nodes
    powers = []
    for power in (1, 2):
        taken, left = torch.sigmoid(y) ** power @ weights, torch.sigmoid(-y) ** power @ weights
        powers.append(F.pad(taken, (0, 1), value=1.0) * F.pad(left.cumprod(-1), (1, 0), value=1.0))
    first, second = powers
    return first, (second - first**2).clamp_min(0).sqrt()


def _expected_log_dirichlet(concentration, constant, mean, sd):
    """E log density of u = StickBreakingTransform^-1(w): the Jacobian is the product of all w."""
    return constant + (concentration * expected_log_weights(mean, sd)).sum(-1)


def _expectation(prior: Distribution, like: Tensor) -> Callable | None:
    """Return E log prior as a function of means and sds, where it is known; else None."""
    base = free_prior(prior)
    if isinstance(base, Dirichlet):
        counts = base.concentration.to(like)
        constant = torch.lgamma(counts.sum(-1)) - torch.lgamma(counts).sum(-1)
        return partial(_expected_log_dirichlet, counts, constant)
    if isinstance(base, PriorOfCovariance):
        return base.expectation(like)
    if isinstance(base, PriorOfCutPoints):
        return base.expected_log_density
    return base.expected_log_prob if isinstance(base, LKJ) else known_expectation(base, like)


def _is_scalar(prior) -> bool:
    return isinstance(prior, Normal) and not prior.batch_shape


def _are_same_scalar_normal(one, other) -> bool:
    if not (_is_scalar(one) and _is_scalar(other)):
        return False
    return bool((one.loc == other.loc) & (one.scale == other.scale))


@dataclass(frozen=True)
class _Run:
    """A global, or several in a row with one scalar normal prior.

    Attributes
    ----------
    name : str
        The last one's.
    prior : Distribution
    size : int
        Count of numbers.
    expectation : callable or None
        E log prior given means and sds, where it has a closed form.
    """

    name: str
    prior: Distribution
    size: int
    expectation: Callable[[Tensor, Tensor], Tensor] | None


class Theta(dict):
    """The globals of one draw by name; an unknown name raises a ValueError that lists the names."""

    def __missing__(self, name):
        known = ", ".join(repr(key) for key in self) or "none"
        raise ValueError(f"theta has no global {name!r}; global_prior names: {known}.")


def _raw_shape(bijection: Transform, shape: torch.Size) -> torch.Size:
    """Return the unconstrained shape: number by number it is the same.

    torch's own answer asks `broadcast_shapes`, whose first call imports sympy: half a second.
    """
    if bijection.domain.event_dim == bijection.codomain.event_dim == 0:
        return shape
    return bijection.inverse_shape(shape)


class GlobalSpace:
    """The unconstrained space R^size of a model's globals.

    Parameters
    ----------
    prior : dict of str to torch.distributions.Distribution
        As returned by ``model.global_prior(n_features)``.
    """

    def __init__(self, prior: dict[str, Distribution]):
        if not isinstance(prior, dict):
            raise TypeError(
                "global_prior must return a dict from names to torch.distributions, "
                f"got {type(prior).__name__}."
            )
        for name, distribution in prior.items():
            if not isinstance(distribution, Distribution):
                raise TypeError(
                    "global_prior must return a dict from names to torch.distributions, but "
                    f"{name!r} is a {type(distribution).__name__}."
                )
        self.prior = prior
        self._known_runs: dict[tuple, list[_Run]] = {}
        self.bijections = {name: bijection_of_global(name, d) for name, d in prior.items()}
        self.shapes = {name: d.batch_shape + d.event_shape for name, d in prior.items()}
        self.raw_shapes = {
            name: _raw_shape(self.bijections[name], shape) for name, shape in self.shapes.items()
        }
        self.slices = {}
        self.size = 0
        for name, shape in self.raw_shapes.items():
            self.slices[name] = slice(self.size, self.size + math.prod(shape))
            self.size += math.prod(shape)

    def is_real(self, name: str) -> bool:
        """Say whether a global's unconstrained scale is the model's own."""
        return is_real(self.prior[name].support)

    def is_positive(self, name: str) -> bool:
        """Say whether a global has a lower bound alone, so that its log is unconstrained."""
        support = self.prior[name].support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        return hasattr(support, "lower_bound") and not hasattr(support, "upper_bound")

    def is_flat(self, like: Tensor) -> Tensor:
        """Return a mask of the numbers whose prior is flat, shape (size,)."""
        mask = torch.zeros(self.size, dtype=torch.bool, device=like.device)
        for name, where in self.slices.items():
            mask[where] = isinstance(free_prior(self.prior[name]), Flat)
        return mask

    def constrain(self, u: Tensor) -> Theta:
        """Map one unconstrained vector, shape (size,), to named globals on the model's scale."""
        return Theta((name, self.bijections[name](part)) for name, part in self._parts(u))

    def draws(self, u: Tensor) -> dict[str, Tensor]:
        """Map many unconstrained vectors, (n_draws, size), to globals by name, (n_draws, ...)."""
        with defaults_of(u):
            return {
                name: self.bijections[name](u[:, where].reshape(len(u), *self.raw_shapes[name]))
                for name, where in self.slices.items()
            }

    def unconstrain(self, theta: dict[str, Tensor]) -> Tensor:
        """Map named globals to one unconstrained vector, shape (size,)."""
        parts = [self.bijections[name].inv(theta[name]).reshape(-1) for name in self.prior]
        return torch.cat(parts) if parts else torch.zeros(0)

    def log_prior(self, u: Tensor) -> Tensor:
        """Log prior density of one unconstrained vector, Jacobian of the bijections included."""
        return sum((self._log_prior(name, part) for name, part in self._parts(u)), u.new_zeros(()))

    def _parts(self, u):
        pieces = u.split([math.prod(shape) for shape in self.raw_shapes.values()])
        named = zip(self.raw_shapes.items(), pieces, strict=True)
        return ((name, piece.reshape(shape)) for (name, shape), piece in named)

    def _log_prior(self, name, part):
        bijection, prior = self.bijections[name], unvalidated(self.prior[name])
        value = bijection(part)
        jacobian = bijection.log_abs_det_jacobian(part, value)
        with defaults_of(part):
            density = prior.log_prob(value)
        return density.sum() + jacobian.sum()

    def _runs(self, like):
        """Return the globals as `_Run`s, in their order."""
        key = like.dtype, like.device
        if key in self._known_runs:
            return self._known_runs[key]
        runs: list[_Run] = []
        for name, where in self.slices.items():
            prior, size = compact(self.prior[name], like), where.stop - where.start
            if runs and _are_same_scalar_normal(prior, runs[-1].prior):
                size += runs.pop().size
            runs.append(_Run(name, prior, size, _expectation(prior, like)))
        self._known_runs[key] = runs
        return runs

    def expected_log_prior(self, factor: NormalFactors) -> Tensor:
        """E_q log prior on the unconstrained scale, Jacobians included, in nats.

        In closed form for flat and normal priors, and for the usual ones of a positive number
        (`known_expectation`); for a Dirichlet one and other univariate priors by Gauss-Hermite
        quadrature, by a fixed quasi-Monte Carlo rule for other multivariate ones (Cholesky).
        """
        total, runs = factor.mean.new_zeros(()), self._runs(factor.mean)
        sizes = [run.size for run in runs]
        for run, mean, sd in zip(
            runs, factor.mean.split(sizes), factor.sd.split(sizes), strict=True
        ):
            name = run.name
            if not _is_scalar(run.prior):
                shape = self.raw_shapes[name]
                mean, sd = mean.reshape(shape), sd.reshape(shape)
            if run.expectation is not None:
                total = total + add_up(run.expectation(mean, sd).reshape(-1))
            elif not self.prior[name].event_shape:
                nodes, weights = _nodes(mean)
                values = mean + sd * nodes.reshape(-1, *[1] * mean.dim())
                density = torch.func.vmap(partial(self._log_prior, name))(values)
                total = total + weights @ density.to(weights)
            else:
                noise = aligned(sobol_normal(N_PRIOR_DRAWS, self.size, 0)).to(mean)
                draws = factor.draw(noise)[:, self.slices[name]].reshape(-1, *mean.shape)
                total = total + torch.func.vmap(partial(self._log_prior, name))(draws).mean()
        return total

    def start(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Centre and spread of the prior on the unconstrained scale, shapes (size,).

        They are medians and scaled interquartile ranges of prior draws. A flat prior has centre 0
        and spread 1; so has a prior of a constrained global whose draws overflow or underflow.
        """
        centre, spread = torch.zeros(self.size), torch.ones(self.size)
        seed = int(torch.randint(2**62, (), generator=generator))
        with seeded(seed):
            for name, prior in self.prior.items():
                base, where = free_prior(prior), self.slices[name]
                if isinstance(base, Flat) or where.start == where.stop:  # the weight of one state
                    continue
                if isinstance(base, Normal):  # no draws: a large prior takes seconds to sample
                    shape = self.raw_shapes[name]
                    centre[where] = base.mean.expand(shape).reshape(-1).to(centre)
                    spread[where] = base.stddev.expand(shape).reshape(-1).to(spread)
                    continue
                if isinstance(base, PriorOfCovariance):  # no draws, which are taken apart slowly
                    copies = math.prod(base.batch_shape)
                    low, middle, high = torch.stack(base.free_quartiles()).repeat(1, copies)
                else:
                    raw = self.bijections[name].inv(prior.sample((101,))).reshape(101, -1)
                    raw = torch.nan_to_num(raw, nan=0.0, posinf=_OVERFLOW, neginf=-_OVERFLOW)
                    low, middle, high = raw.sort(0).values[[25, 50, 75]]
                width = (high - low) / 1.35
                if not is_real(prior.support):
                    vast = torch.maximum(middle.abs(), width) >= _OVERFLOW / 2
                    middle, width = torch.where(vast, 0.0, middle), torch.where(vast, 1.0, width)
                centre[where], spread[where] = middle.to(centre), width.to(spread)
        return centre, torch.where(spread > 0, spread, 1.0)

    def moments(self, name, factor):
        """Return mean and sd, differentiable in the factor: quadrature, or Sobol draws for vectors.

        Parameters
        ----------
        name : str
        factor : NormalFactors
            q(u) of all unconstrained globals.

        Returns
        -------
        mean, sd : Tensor of the global's shape
        """
        where, shape, bijection = self.slices[name], self.raw_shapes[name], self.bijections[name]
        mean, sd = factor.mean[where].reshape(shape), factor.sd[where].reshape(shape)
        if bijection is identity_transform:
            return mean, sd
        if isinstance(bijection, CentringTransform):
            places = torch.arange(where.start, where.stop, device=mean.device).reshape(shape)
            return centred_moments(mean, factor.block_covariance(places.mT))
        if self._has_own_moments(name, factor, StickBreakingTransform):
            return weights_moments(mean, sd)
        if self._has_own_moments(name, factor, RegressionTransform):
            return covariance_moments(mean, sd)
        if self._has_own_moments(name, factor, CutPointsTransform):
            return cut_points_moments(cast(CutPointsTransform, bijection).places, mean, sd)
        if not self.prior[name].event_shape:
            nodes, weights = hermite_nodes(N_MOMENT_NODES, mean)
            draws = mean.reshape(-1) + sd.reshape(-1) * nodes.unsqueeze(-1)
        else:
            noise = aligned(sobol_normal(N_MOMENT_DRAWS, self.size, 0))
            draws = factor.draw(noise)[:, where]
            weights = torch.full((len(draws),), 1 / len(draws), dtype=draws.dtype)
        values = bijection(draws.reshape(-1, *shape))
        centre = torch.tensordot(weights, values, 1)
        return centre, torch.tensordot(weights, (values - centre) ** 2, 1).clamp_min(0).sqrt()

    def _has_own_moments(self, name, factor, bijection):
        """Say whether a global's bijection is of that kind, and its numbers are independent."""
        return isinstance(factor, DiagonalFactors) and isinstance(self.bijections[name], bijection)

    def quantiles(self, name, factor, q):
        """Quantiles, exact through the bijection where it is elementwise, or of Sobol draws.

        Returns
        -------
        ndarray of shape (*q.shape, *the global's shape)
        """
        where, shape = self.slices[name], self.raw_shapes[name]
        bijection = _unwrap_elementwise(self.bijections[name])
        if isinstance(self.bijections[name], CentringTransform):
            mean, sd = (moment.numpy() for moment in self.moments(name, factor))
            return mean + sd * ndtri(q)[..., None, None]
        if bijection is not None:
            mean, sd = factor.mean[where].numpy(), factor.sd[where].numpy()
            # A decreasing bijection (onto x < bound) exchanges the tails.
            rising = q if bijection.sign > 0 else 1 - q
            u = mean + sd * ndtri(rising)[..., None]
            return bijection(torch.as_tensor(u.reshape((*q.shape, *shape)))).numpy()
        if self._has_own_moments(name, factor, RegressionTransform):
            mean, sd = factor.mean[where].reshape(shape), factor.sd[where].reshape(shape)
            return np.quantile(covariance_draws(mean, sd).numpy(), q, axis=0)
        noise = aligned(sobol_normal(N_MOMENT_DRAWS, self.size, 0))
        draws = self.bijections[name](factor.draw(noise)[:, where].reshape(-1, *shape))
        return np.quantile(draws.numpy(), q, axis=0)


def _unwrap_elementwise(bijection):
    """Return a bijection that works elementwise, without its wrappers; None for any other."""
    while isinstance(bijection, IndependentTransform):
        bijection = bijection.base_transform
    return None if bijection.domain.event_dim or bijection.codomain.event_dim else bijection
