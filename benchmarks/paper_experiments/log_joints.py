"""The published log joints of the small models, constants dropped, for many draws at once.

Each maps rows x (n_rows,) to a function of theta (n_draws, 1) and z (n_draws, n_rows).
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


def nonlinear(x):
    """z_n ~ N(0, 1), x_n ~ N(theta + z_n sin z_n + z_n, exp(cos z_n)^2), without -log sd."""

    def log_joint(theta, z):
        residual = (x - theta - z * torch.sin(z) - z) * torch.exp(-torch.cos(z))
        return -0.5 * (z**2 + residual**2).sum(1)

    return log_joint
