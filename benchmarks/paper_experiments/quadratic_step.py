"""Steps of the published loop where the log joint is quadratic, for many seeds in one program.

A quadratic's mean over draws depends on the draws through their means, variances and covariances
alone: at theta_d = m + t eta_d and z_nd = m_n + s_n e_nd,

    mean_d f(theta_d, z_d) = f(mean theta, mean z) + t^2 f_theta,theta var(eta) / 2
        + sum_n (s_n^2 f_nn var(e_n) / 2 + t s_n f_theta,n cov(eta, e_n)).

Of normal draws these sums have a known joint law (Cochran's theorem), from which three numbers a
row are drawn instead of a hundred: the same loop in law, some thirty times faster.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Chi2

from .published_loop import Step

SUMS = (
    "The log joint is quadratic, so the draws enter a step through their means, variances and "
    "covariances with theta's alone: these are drawn, from their exact law."
)


@dataclass(frozen=True)
class Sums:
    """What of the draws of theta (..., 1) and of every row (..., n_rows) enters a quadratic."""

    theta_mean: Tensor
    theta_variance: Tensor
    mean: Tensor
    variance: Tensor
    covariance: Tensor

    def mean_square(self) -> Tensor:
        """Return the mean over draws of all squares, summed over theta and rows."""
        theta = self.theta_variance + self.theta_mean**2
        return theta[..., 0] + (self.variance + self.mean**2).sum(-1)


def drawn_sums(shape: torch.Size, n_draws: int) -> Sums:
    """Draw the sums of n_draws standard normals for theta and for each of shape (..., n_rows).

    Means are independent of the rest. Of the rest, a row's component along theta's deviations is
    normal and makes the covariance; what is orthogonal to it has n_draws - 2 degrees of freedom.
    """
    few = (*shape[:-1], 1)
    theta_variance = Chi2(torch.tensor(n_draws - 1.0)).sample(few) / n_draws
    along = torch.randn(shape)
    across = Chi2(torch.tensor(n_draws - 2.0)).sample(shape)
    return Sums(
        torch.randn(few) / n_draws**0.5,
        theta_variance,
        torch.randn(shape) / n_draws**0.5,
        (along**2 + across) / n_draws,
        along * (theta_variance / n_draws).sqrt(),
    )


@dataclass(frozen=True)
class QuadraticStep(Step):
    """A step for a quadratic log joint whose rows meet only in theta; needs three draws or more."""

    n_rows: int = 0
    batched = True

    def __post_init__(self):
        object.__setattr__(self, "curvature", self._curvature())

    def _curvature(self):
        """Second derivatives in theta, in each z_n, and mixed; the same everywhere."""
        theta, z = torch.zeros(1, 1), torch.zeros(1, self.n_rows)

        def slopes(theta, z):
            return torch.func.grad(lambda *at: self.log_joint(*at).sum(), argnums=(0, 1))(theta, z)

        along_theta = torch.func.jvp(slopes, (theta, z), (torch.ones(1, 1), torch.zeros_like(z)))[1]
        along_rows = torch.func.jvp(slopes, (theta, z), (torch.zeros(1, 1), torch.ones_like(z)))[1]
        return along_theta[0], along_rows[1], along_theta[1]

    def loss(self, theta_mean, theta_log_sd, mean, log_sd):
        sums = drawn_sums(mean.shape, self.n_draws)
        return self.loss_at(sums, theta_mean, theta_log_sd, mean, log_sd)

    def loss_at(self, sums, theta_mean, theta_log_sd, mean, log_sd):
        """Return the loss at draws of which these are the sums."""
        theta_sd, sd = theta_log_sd.exp(), log_sd.exp()
        centre = self.log_joint(theta_mean + theta_sd * sums.theta_mean, mean + sd * sums.mean)
        in_theta, in_rows, mixed = self.curvature
        spread = (in_theta * theta_sd**2 * sums.theta_variance)[..., 0]
        rows = in_rows * sums.variance * sd + 2 * mixed * theta_sd * sums.covariance
        log_joint = centre + 0.5 * (spread + (rows * sd).sum(-1))
        return self.log_q(theta_log_sd, log_sd, sums.mean_square()) - log_joint


class Stacked(nn.Module):
    """Factors of several runs as one module: every parameter has a leading axis of runs."""

    def __init__(self, modules):
        super().__init__()
        named, _ = torch.func.stack_module_state(modules)
        self.names = list(named)
        self.values = nn.ParameterList(nn.Parameter(value.detach()) for value in named.values())
        self.one = [modules[0]]  # in a list: its own parameters are none of this module's

    def forward(self):
        def one(values):
            named = dict(zip(self.names, values, strict=True))
            return torch.func.functional_call(self.one[0], named, ())

        return torch.func.vmap(one)(list(self.values))
