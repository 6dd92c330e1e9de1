"""Student t against scipy's."""

import numpy as np
import pytest
import torch
from scipy import stats

from skavi._numerics.student_t import log_density, radii


@pytest.mark.parametrize("size", [1, 3])
def test_the_density_is_scipys(size):
    x = np.random.default_rng(0).normal(size=(5, size))
    ours = log_density(torch.as_tensor((x**2).sum(1)), 4.0, size)
    theirs = stats.multivariate_t(np.zeros(size), np.eye(size), df=4.0).logpdf(x)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_radii_turn_normals_into_student_t():
    """Kolmogorov-Smirnov of 4,000 draws: a wrong degree or a missing root gives p below 1e-10."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=4000) * radii(rng.normal(size=4000), 3.0)
    assert stats.kstest(draws, stats.t(3).cdf).pvalue > 0.01
