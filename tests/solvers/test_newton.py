"""Where solvers cannot move they say how far from the optimum they stand: Newton's, and L-BFGS."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch.distributions import Normal

from skavi import AmortizedVI, FactorizedVI
from skavi.inference_functions import MLP, Constant
from skavi.models import HierarchicalModel
from skavi.noise import GaussHermite
from skavi.solvers import LBFGS, Newton

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


@pytest.mark.parametrize("solver", [Newton(), LBFGS()], ids=repr)
@pytest.mark.parametrize("function", [None, Constant(), MLP((4,))], ids=repr)
def test_a_fit_that_cannot_move_has_not_converged_far_from_the_optimum(function, solver):
    """At mean 0 and sd 1 a row's decrement is (slope x)^2 / 2 (1 + slope^2): 500 times tol here.

    The sd's part is smaller by a factor of slope^2. L-BFGS may state a few times that for a network
    whose Hessian has nearly flat directions.
    """
    vi = FactorizedVI(Trap()) if function is None else AmortizedVI(Trap(), function)
    vi.set_params(noise=GaussHermite(3), solver=solver, tol=1e-9, random_state=0)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        vi.fit(np.ones((N_ROWS, 1)))
    decrement = N_ROWS * SLOPE**2 / 2
    assert not vi.converged_
    assert 0.99 * decrement < vi.suboptimality_ < 10 * decrement


def test_rows_that_cannot_move_are_called_approximate():
    """Beyond 1e-9 nats a row, which is 1/500 of what is left here."""
    X = np.ones((N_ROWS, 1))
    vi = FactorizedVI(Trap(), noise=GaussHermite(3), solver=Newton(), tol=1e-6).fit(X)
    with pytest.warns(ConvergenceWarning, match="local problems did not converge"):
        stuck = vi.transform(X)
    assert np.abs(stuck).max() < 1e-9
