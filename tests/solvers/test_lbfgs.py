"""L-BFGS: it goes on until the Hessian says that the optimum is near."""

import numpy as np
import pytest

from skavi import FactorizedVI
from skavi.models import GaussianProcess
from skavi.solvers import LBFGS, Newton


@pytest.fixture(scope="module")
def smooth():
    """A Gaussian process of condition number 1e6, and the ELBO of its dense Newton optimum."""
    t = np.linspace(0, 3, 15)[:, None]
    X = np.c_[t, np.sin(t) + 0.2 * np.random.default_rng(0).normal(size=t.shape)]
    return X, FactorizedVI(GaussianProcess(), solver=Newton()).fit(X).elbo_


@pytest.mark.parametrize("tol", [1e-1, 3e-2, 1e-2, 3e-3, 1e-4])
def test_lbfgs_ends_no_further_than_tol_from_the_optimum(smooth, tol):
    """Gains are small long before: steps along the Hessian's own go on from there."""
    X, best = smooth
    vi = FactorizedVI(GaussianProcess(), solver=LBFGS(), tol=tol).fit(X)
    assert vi.converged_
    assert vi.suboptimality_ <= tol * len(X)
    assert best - vi.elbo_ <= tol * len(X)
