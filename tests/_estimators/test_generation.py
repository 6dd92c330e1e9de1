"""What a fit says of x: under q(theta), not at its centre."""

import numpy as np

from skavi import FactorizedVI
from skavi.models import FactorAnalysis, LinearModel


def test_samples_share_one_draw_of_theta_and_calls_do_not():
    """Means of 500 rows spread by sd(theta)^2 + (tau^2 + sigma^2) / 500 over calls: 2.97 here.

    At theta's centre they would spread by 0.014.
    """
    vi = FactorizedVI(LinearModel(tau=1.155, sigma=2.43)).fit([[0.0], [3.0]])
    means = np.array([vi.sample(500, random_state=i)[0].mean() for i in range(200)])
    variance = float(vi.global_posterior_.sd["theta"]) ** 2 + (1.155**2 + 2.43**2) / 500
    # Standard errors of a mean and of a variance of 200 normal numbers, 4.5 times.
    assert abs(means.mean() - 1.5) < 4.5 * (variance / 200) ** 0.5
    assert abs(means.var(ddof=1) / variance - 1) < 4.5 * (2 / 199) ** 0.5


def test_expected_rows_are_expected_over_the_globals():
    """E exp(W z + m) = exp(E[W] z + E[m] + (sd(W)^2 z^2 + sd(m)^2) / 2), one number a column.

    32 draws, in pairs, err by some 9% a column of these sds, and by 1.5% over 40 columns; at the
    centre of q(theta) expectations would be too small by a quarter.
    """
    X = np.random.default_rng(0).poisson(0.6, size=(3, 40)).astype(float)
    scales = {"loading_scale": 1.0, "mean_loc": np.log(0.6), "mean_scale": 1.0}
    model = FactorAnalysis(1, likelihood="poisson", exposure="unit", **scales)
    vi = FactorizedVI(model, tol=1e-3, max_iter=500, random_state=0).fit(X)
    q, z = vi.global_posterior_, 0.5
    mean = q.mean["loadings"][:, 0] * z + q.mean["mean"]
    variance = (q.sd["loadings"][:, 0] * z) ** 2 + q.sd["mean"] ** 2
    ratio = vi.inverse_transform([[z]])[0] / np.exp(mean + variance / 2)
    assert abs(ratio.mean() - 1) < 0.07
    assert np.exp(-variance / 2).mean() < 0.8
