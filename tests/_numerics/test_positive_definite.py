"""Indefinite curvatures become positive definite ones, in whatever units they are given."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, constraints

from skavi import FactorizedVI
from skavi._fit import starts_of_theta
from skavi._numerics.positive_definite import least_solution, positive
from skavi.distributions import Flat
from skavi.models import GroupedModel

POSITIVE = Flat(support=constraints.positive)


class Growth(GroupedModel):
    """A level and a slope for each group, centred, around means of any size."""

    groups = 1
    covariates = 2
    n_latents = 2

    def global_prior(self, n_features):
        means = {"level": Normal(0.0, 100.0), "slope": Normal(0.0, 100.0)}
        return means | {name: POSITIVE for name in ("level_sd", "slope_sd", "noise")}

    def local_prior(self, theta):
        return Normal(
            torch.stack([theta["level"], theta["slope"]]),
            torch.stack([theta["level_sd"], theta["slope_sd"]]),
        )

    def likelihood(self, z, theta, covariates):
        return Normal(z[:, :1] + z[:, 1:] * covariates, theta["noise"])


def test_negative_eigenvalues_become_positive_and_the_rest_stays():
    """Rows add up to 1 already, so that units are 1; [[0, 1], [1, 0]] has eigenvalues 1 and -1."""
    eye = torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(positive(eye.flip(0)), eye)
    stack = torch.stack([3 * eye, eye.flip(0)])
    torch.testing.assert_close(positive(stack), torch.stack([3 * eye, eye]))


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_units_do_not_matter(unit):
    """A floor of 1e-3 in the units of a raw column cut its steps a hundredfold.

    mu and log sigma of N(mu, sigma^2) at (mu - mean) / sigma = 1: minus the Hessian of n rows is
    n [[1 / sigma^2, 2 / sigma], [2 / sigma, 2]].
    """
    A = 30 * torch.tensor([[1.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
    units = torch.tensor([unit, 1.0], dtype=torch.float64)
    found = positive(units[:, None] * A * units) / (units[:, None] * units)
    torch.testing.assert_close(found, positive(A))
    assert (torch.linalg.eigvalsh(found) > 0).all()


def test_every_climb_arrives_from_far_away(monkeypatch):
    """From raw units, four of six climbs crept by a nat in six iterations until they were cut."""
    rng = np.random.default_rng(0)
    group, x = np.repeat(np.arange(12), 5), np.tile([-14.0, -7.0, 0.0, 7.0, 14.0], 12)
    level, slope = 240 + 15 * rng.normal(size=12), 6 + 0.5 * rng.normal(size=12)
    y = level[group] + slope[group] * x + 6 * rng.normal(size=60)
    climbed = []
    record = starts_of_theta._climb
    monkeypatch.setattr(
        starts_of_theta, "_climb", lambda *a: climbed.append(record(*a)) or climbed[-1]
    )
    vi = FactorizedVI(Growth(), random_state=0).fit(np.column_stack([y, group, x]))
    heights = [climb.height for climb in climbed]
    assert vi.converged_ and max(heights) - min(heights) < 0.1


@pytest.mark.parametrize("units", [1.0, 1e-9])
def test_a_system_that_sees_few_directions_has_its_least_solution(units):
    """Against numpy's pseudo-inverse; the third column says what the second one does."""
    table = np.random.default_rng(0).normal(size=(9, 2)) * [1.0, units]
    A = np.column_stack([table, table[:, 1]])
    A, right = A.T @ A, A.T @ np.ones((9, 2))
    found = least_solution(torch.as_tensor(A), torch.as_tensor(right)).numpy()
    scale = np.diag(A) ** -0.5
    expected = scale[:, None] * (
        np.linalg.pinv(A * scale * scale[:, None], 1e-12) @ (scale[:, None] * right)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    np.testing.assert_allclose(found[1], found[2])


def test_a_system_with_an_inverse_is_solved_by_it():
    A = torch.tensor([[2.0, 0.5], [0.5, 1e-6]]).double()
    A[1, 1] += 0.2
    for right in (torch.tensor([1.0, 3.0]).double(), torch.zeros(2).double()):
        assert torch.equal(least_solution(A, right), torch.linalg.solve(A, right))
