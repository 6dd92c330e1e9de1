"""Newton's method where it cannot move: it says how far from the optimum it stands."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch.distributions import Normal

from skavi import FactorizedVI
from skavi.models import HierarchicalModel
from skavi.noise import GaussHermite
from skavi.solvers import Newton

SLOPE, N_ROWS = 1e-3, 5


class Trap(HierarchicalModel):
    """z ~ N(0, 1), x ~ N(slope z, 1), and a wall that no slope tells of round the start's nodes."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta):
        return Normal(SLOPE * z, 1.0)

    def log_local(self, theta, z, X):
        nodes = torch.tensor([-(3**0.5), 0.0, 3**0.5], dtype=z.dtype)
        wall = (z - nodes).abs().amin(-1).detach()
        free = -0.5 * (z**2 + (X - SLOPE * z) ** 2).sum(-1)
        return free - 1e6 * torch.where(wall < 1e-9, torch.zeros_like(wall), wall)


def test_a_fit_that_cannot_move_has_not_converged_far_from_the_optimum():
    """At mean 0 and sd 1 a row's decrement is (slope x)^2 / 2 (1 + slope^2): 500 times tol here.

    The sd's part is smaller by a factor of slope^2.
    """
    X = np.ones((N_ROWS, 1))
    vi = FactorizedVI(Trap(), noise=GaussHermite(3), solver=Newton(), tol=1e-9)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        vi.fit(X)
    assert not vi.converged_
    assert vi.suboptimality_ == pytest.approx(N_ROWS * SLOPE**2 / 2, rel=1e-2)
    with pytest.warns(ConvergenceWarning, match="local problems did not converge"):
        stuck = vi.transform(X)
    assert np.abs(stuck).max() < 1e-9
