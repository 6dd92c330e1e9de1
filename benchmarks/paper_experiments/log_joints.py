"""The published log joints of the small models, constants dropped, for many draws at once.

Each maps rows x (n_rows,) to a function of theta (n_draws, 1) and z (n_draws, n_rows). Two are
quadratic; the third also gives its own slopes.
"""

import torch

TAU, SIGMA = 1.155, 2.43
A = 0.75


def linear(x):
    """z_n ~ N(0, 1), x_n ~ N(theta + tau z_n, sigma^2)."""

    def log_joint(theta, z):
        return -0.5 * (z**2 + ((x - theta - TAU * z) / SIGMA) ** 2).sum(1)

    return log_joint


def saw(x):
    """z_n ~ N(x_{n-1}, 1), x_n ~ N(a (theta + z_n), 1), x_0 = 0."""
    previous = torch.cat([x.new_zeros(1), x[:-1]])

    def log_joint(theta, z):
        return -0.5 * ((z - previous) ** 2 + (x - A * (theta + z)) ** 2).sum(1)

    return log_joint


class Nonlinear:
    """z_n ~ N(0, 1), x_n ~ N(theta + z_n sin z_n + z_n, exp(cos z_n)^2), without -log sd."""

    def __init__(self, x):
        self.x = x

    def __call__(self, theta, z):
        residual = (self.x - theta - z * torch.sin(z) - z) * torch.exp(-torch.cos(z))
        return -0.5 * (z**2 + residual**2).sum(1)

    def with_slopes(self, theta, z, rows):
        """Return the sum over draws and a slice of rows, and its slopes in theta and in z.

        With g(z) = z sin z + z and w = exp(-2 cos z), a term is -(z^2 + (x - theta - g)^2 w) / 2,
        and g' = sin z + 1 + z cos z, w' = 2 w sin z.
        """
        sine, cosine = torch.sin(z), torch.cos(z)
        weight, factor = torch.exp(-2 * cosine), sine + 1
        residual = torch.addcmul(self.x[rows] - theta, z, factor, value=-1)
        weighted = residual * weight
        squared = residual.mul_(weighted)
        value = -0.5 * (torch.linalg.vector_norm(z) ** 2 + squared.sum())
        in_z = factor.addcmul_(z, cosine).mul_(weighted).sub_(z).sub_(squared.mul_(sine))
        return value, weighted.sum(1, keepdim=True), in_z


def nonlinear(x):
    """Return `Nonlinear` of the rows."""
    return Nonlinear(x)
