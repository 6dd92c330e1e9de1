"""Normal factors of a Gaussian process's latents: their ELBO, and Newton's method to its optimum.

With root L of the prior's covariance K and precision P = K^-1, independent factors N(m_i, s_i^2)
have the ELBO (Opper & Archambeau 2009, "The variational Gaussian approximation revisited")

    -(m' P m + sum_i P_ii s_i^2) / 2 - sum_i log L_ii - n log(2 pi) / 2 + sum_i f_i(m_i, s_i) + H,

f_i being the expected log density of cell i, and H the entropy. It is concave in (m, s) where the
cells' log densities are concave.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from skavi.families import LOG_2PI, DiagonalFactors

#: Newton steps: some ten are usual.
_MAX_STEPS = 200
#: Halvings of a step before it counts as none.
_MAX_HALVINGS = 30
#: Of the way to a sd of zero: how far a step may go.
_NEAR_ZERO = 0.9
#: Relative to the ELBO: what is left at the end, its rounding.
_REST = 1e-15

#: Expected log density of every cell, for means and sds of its latent.
ExpectedFit = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Prior:
    """A joint normal prior N(0, K), with what Newton's method reads of K."""

    root: Tensor
    covariance: Tensor
    precisions: Tensor

    @staticmethod
    def of(root: Tensor) -> "Prior":
        """Return the prior whose covariance has this Cholesky factor."""
        identity = torch.eye(len(root)).to(root)
        inverse = torch.linalg.solve_triangular(root, identity, upper=False)
        return Prior(root, root @ root.mT, inverse.square().sum(0))

    def expected_log_density(self, mean: Tensor, sd: Tensor) -> Tensor:
        """E log N(z; 0, K) for independent z_i ~ N(mean_i, sd_i^2), a scalar."""
        whitened = torch.linalg.solve_triangular(self.root, mean.unsqueeze(-1), upper=False)
        return self._density(whitened.square().sum(), sd)

    def _density(self, square, sd):
        log_det = self.root.diagonal().log().sum()
        constant = log_det + 0.5 * len(sd) * LOG_2PI
        return -0.5 * (square + (self.precisions * sd**2).sum()) - constant


@dataclass(frozen=True)
class _Point:
    """Factors with means K @ alpha, which keeps P out of the steps: K may be nearly singular."""

    alpha: Tensor
    mean: Tensor
    sd: Tensor
    elbo: float


def best_factors(prior: Prior, fit: ExpectedFit, guess: Tensor, start=None) -> DiagonalFactors:
    """Return the independent normal factors of the highest ELBO.

    Parameters
    ----------
    prior : Prior
    fit : callable
        Gives the expected log density of every cell, for means and sds of its latent.
    guess : Tensor of shape (n_rows,)
        What each latent would be by its own cell alone.
    start : NormalFactors, default=None
        Factors that the result is not below.
    """
    point = _first(prior, fit, guess)
    if start is not None:
        mean, sd = start.mean[:, 0], start.sd[:, 0]
        alpha = torch.cholesky_solve(mean.unsqueeze(-1), prior.root)[:, 0]
        other = _at(prior, fit, alpha, sd)
        point = other if other.elbo > point.elbo else point
    for _ in range(_MAX_STEPS):
        following = _step(prior, fit, point)
        if following is None:
            break
        point = following
    return DiagonalFactors(point.mean.unsqueeze(-1), point.sd.unsqueeze(-1))


def _at(prior, fit, alpha, sd):
    mean = prior.covariance @ alpha
    density = prior._density(alpha @ mean, sd)
    elbo = density + fit(mean, sd).sum() + sd.log().sum() + 0.5 * len(sd) * (1 + LOG_2PI)
    return _Point(alpha, mean, sd, float(elbo))


def _first(prior, fit, guess):
    """Solve for the means with every cell's log density taken as quadratic at its guess."""
    by_mean, _, curvature, _, _ = _derivatives(fit, guess, torch.zeros_like(guess) + 1e-6)
    weight = curvature.neg().clamp_min(0)
    alpha = _solve(prior, weight, weight * guess + by_mean)
    return _at(prior, fit, alpha, (prior.precisions + weight).rsqrt())


def _step(prior, fit, point):
    """Take a Newton step in all means and sds, halved until the ELBO rises; None at rest.

    A row's sd is eliminated from its two equations, so that the means' system is P + diag(weight).
    """
    by_mean, by_sd, mm, ms, ss = _derivatives(fit, point.mean, point.sd)
    by_sd = by_sd - prior.precisions * point.sd + 1 / point.sd
    ss = ss - prior.precisions - point.sd**-2
    weight = (ms**2 / ss - mm).clamp_min(0)
    # Solved for the change, not for the end: rounding is then relative to what is left.
    along = _solve(prior, weight, by_mean - ms * by_sd / ss - point.alpha)
    move = prior.covariance @ along
    stretch = -(by_sd + ms * move) / ss
    decrement = 0.5 * float((by_mean - point.alpha) @ move + by_sd @ stretch)
    shrinking = float((-stretch / point.sd).max())
    length = min(1.0, _NEAR_ZERO / shrinking) if shrinking > 0 else 1.0
    if not decrement > _REST * max(1.0, abs(point.elbo)):
        return None
    for _ in range(_MAX_HALVINGS):
        following = _at(prior, fit, point.alpha + length * along, point.sd + length * stretch)
        if following.elbo > point.elbo:
            return following
        length /= 2
    return None


def _solve(prior, weight, target):
    """Return alpha for which m = K @ alpha solves (P + diag(weight)) m = target.

    Rasmussen & Williams (2006), algorithm 3.1: the matrix that is factored has no eigenvalue below
    one.
    """
    root = weight.sqrt()
    system = torch.eye(len(root)).to(root) + root.unsqueeze(-1) * prior.covariance * root
    inner = (root * (prior.covariance @ target)).unsqueeze(-1)
    solved = torch.cholesky_solve(inner, torch.linalg.cholesky(system))[:, 0]
    return target - root * solved


def _derivatives(fit, mean, sd):
    """Return first and second derivatives of every cell's term in its mean and sd."""
    with torch.enable_grad():
        pair = mean.detach().requires_grad_(), sd.detach().requires_grad_()
        by_mean, by_sd = torch.autograd.grad(
            fit(*pair).sum(), pair, create_graph=True, materialize_grads=True
        )
        mm, ms = _gradient(by_mean, pair)
        _, ss = _gradient(by_sd, pair)
    return by_mean.detach(), by_sd.detach(), mm, ms, ss


def _gradient(of, pair):
    if not of.requires_grad:
        return tuple(torch.zeros_like(each) for each in pair)
    return torch.autograd.grad(of.sum(), pair, retain_graph=True, materialize_grads=True)
