"""L-BFGS: it goes on until the Hessian says that the optimum is near."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from skavi import FactorizedVI
from skavi.models import GaussianProcess
from skavi.solvers import LBFGS


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("tol", [1e-1, 3e-2, 1e-4])
def test_lbfgs_ends_no_further_than_tol_from_the_optimum(tol, seed):
    """On a Gaussian process (condition number 1e6) gains are small long before.

    Its posterior is normal, of a precision P: the best factorized ELBO is the log evidence less
    KL = (sum log P_ii - log det P) / 2.
    """
    t = np.linspace(0, 3, 20)
    y = np.sin(t) + 0.2 * np.random.default_rng(seed).normal(size=20)
    covariance = np.exp(-0.5 * (t[:, None] - t) ** 2) + 1e-8 * np.eye(20)
    precision = np.linalg.inv(covariance) + np.eye(20) / 0.25
    evidence = multivariate_normal(np.zeros(20), covariance + 0.25 * np.eye(20)).logpdf(y)
    divergence = np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1]
    vi = FactorizedVI(GaussianProcess(noise_sd=0.5), solver=LBFGS(), tol=tol)
    vi.fit(np.column_stack([t, y]))
    assert vi.converged_
    assert vi.suboptimality_ <= tol * 20
    # log det P to the rounding of a condition number of 1e9.
    assert -1e-5 <= evidence - divergence / 2 - vi.elbo_ <= tol * 20
