"""Jacobians of gradients whose numbers meet in pairs: those found, and those that are not pairs."""

import torch

from skavi._numerics.pairs import jacobian_by_pairs


def gradient(function, at):
    at = at.clone().requires_grad_(True)
    return torch.autograd.grad(function(at), at, create_graph=True)[0], at


def test_pairs_have_the_jacobian_of_automatic_differentiation():
    at = torch.linspace(-1, 2, 10, dtype=torch.float64)

    def function(u):
        mean, log_sd = u.split(5)
        return (mean**2 * log_sd.exp() + mean.sin() + log_sd**3).sum()

    wanted = torch.autograd.functional.hessian(function, at)
    torch.testing.assert_close(jacobian_by_pairs(*gradient(function, at)), wanted)


def test_numbers_that_meet_others_are_not_taken_for_pairs():
    """Bends of neighbours, which vanish along lines, are seen as well."""
    at = torch.linspace(-1, 2, 10, dtype=torch.float64)
    assert jacobian_by_pairs(*gradient(lambda u: (u**2).sum() + 1e-6 * u[0] * u[3], at)) is None
    assert jacobian_by_pairs(*gradient(lambda u: (u[:5].diff().diff() ** 2).sum(), at)) is None
    assert jacobian_by_pairs(*gradient(lambda u: (u**3).sum(), at[:9])) is None
