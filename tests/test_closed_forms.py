"""Each closed form against an independent route: optimised quadrature, integrals, densities."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.optimize import minimize

import closed_forms as cf
from seeds import seeds

X = np.array([0.3, -1.2, 2.5])
W = np.array([1.0, 2.5, 0.4])
TAU, SIGMA = 1.155, 0.8
A, INITIAL = 0.75, 0.6
LOCAL_LEVEL = {"m0": 0.5, "s0": 1.5, "q": 0.7, "r": 0.9}
SCHOOLS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SCHOOLS_SE = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])

# Densities of u = (theta, z) or z, one point a row: no algebra shared with closed_forms.


def linear_log_joint(w):
    def log_joint(u):
        theta, z = u[:, :1], u[:, 1:]
        return (stats.norm.logpdf(z) + stats.norm.logpdf(X, theta + TAU * z, SIGMA)) @ w

    return log_joint


def saw_log_joint(u):
    theta, z, previous = u[:, :1], u[:, 1:], [INITIAL, X[0], X[1]]
    return np.sum(stats.norm.logpdf(z, previous) + stats.norm.logpdf(X, A * (theta + z)), axis=1)


def local_level_log_joint(z):
    start = stats.norm.logpdf(z[:, 0], LOCAL_LEVEL["m0"], LOCAL_LEVEL["s0"])
    steps = stats.norm.logpdf(z[:, 1:], z[:, :-1], LOCAL_LEVEL["q"])
    return start + steps.sum(axis=1) + stats.norm.logpdf(X, z, LOCAL_LEVEL["r"]).sum(axis=1)


def quadrature_elbo(log_joint, mean, sd, entropy_weights, n_nodes=3):
    """Return the ELBO by a tensor Gauss-Hermite rule: 3 nodes integrate a quadratic exactly."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n_nodes)
    grid = np.stack(np.meshgrid(*[nodes] * len(mean), indexing="ij"), axis=-1)
    grid_weights = np.stack(np.meshgrid(*[weights] * len(mean), indexing="ij"), axis=-1)
    probabilities = np.prod(grid_weights / weights.sum(), axis=-1).ravel()
    expected = probabilities @ log_joint(mean + sd * grid.reshape(-1, len(mean)))
    return expected + entropy_weights @ stats.norm.entropy(scale=sd)


def restricted(design, n_globals, shared_sd):
    """Return the map from free parameters to u's means and log sds, and their number.

    z's means are design @ coefficients, or free where design is None.
    """
    design = np.eye(3) if design is None else np.asarray(design)
    n_sds = 1 if shared_sd else 3

    def factors(parameters):
        globals_, coefficients, sds = np.split(
            parameters, [2 * n_globals, 2 * n_globals + design.shape[1]]
        )
        mean = np.concatenate([globals_[:n_globals], design @ coefficients])
        return mean, np.concatenate([globals_[n_globals:], sds * np.ones(3)])

    return factors, 2 * n_globals + design.shape[1] + n_sds


ONES = np.ones((3, 1))
PLAIN = np.ones(3)
CASES = {
    "linear": (cf.linear_factorized(X, TAU, SIGMA), linear_log_joint(PLAIN), PLAIN, None, False),
    "linear weighted": (
        cf.linear_factorized(X[:, None], TAU, SIGMA, W), linear_log_joint(W), W, None, False,
    ),
    "linear constant": (
        cf.linear_constant(X, TAU, SIGMA), linear_log_joint(PLAIN), PLAIN, ONES, True,
    ),
    "linear constant weighted": (
        cf.linear_constant(X, TAU, SIGMA, W), linear_log_joint(W), W, ONES, True,
    ),
    "saw": (cf.saw_factorized(X, A, INITIAL), saw_log_joint, PLAIN, None, False),
    "saw f(x_n)": (
        cf.saw_linear(X, A, INITIAL, (0, 0)), saw_log_joint, PLAIN,
        [[1, 0.3], [1, -1.2], [1, 2.5]], False,  # sds left free: the optimum shares them
    ),
    "saw f(x_{n-1}, x_n)": (
        cf.saw_linear(X, A, INITIAL, (1, 0)), saw_log_joint, PLAIN,
        [[1, INITIAL, 0.3], [1, 0.3, -1.2], [1, -1.2, 2.5]], True,
    ),
    "saw constant": (cf.saw_constant(X, A, INITIAL), saw_log_joint, PLAIN, ONES, True),
    "local level": (
        cf.local_level_factorized(X, **LOCAL_LEVEL), local_level_log_joint, PLAIN, None, False,
    ),
    "local level f(x_n)": (
        cf.local_level_windowed_linear(X, **LOCAL_LEVEL), local_level_log_joint, PLAIN,
        [[1, 0.3], [1, -1.2], [1, 2.5]], True,
    ),
    "local level f(x_n, x_{n+1})": (
        cf.local_level_windowed_linear(X, **LOCAL_LEVEL, context=(0, 1)),
        local_level_log_joint, PLAIN,
        [[1, 0.3, -1.2], [1, -1.2, 2.5], [1, 2.5, 0]], True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_optimum_is_where_a_numerical_optimiser_ends(name):
    optimum, log_joint, w, design, shared_sd = CASES[name]
    n_globals = 0 if optimum.theta_mean is None else 1
    factors, n_parameters = restricted(design, n_globals, shared_sd)
    entropy_weights = np.concatenate([np.ones(n_globals), w])

    def loss(parameters):
        mean, log_sd = factors(parameters)
        return -quadrature_elbo(log_joint, mean, np.exp(log_sd), entropy_weights)

    fit = minimize(loss, np.full(n_parameters, 0.1), options={"gtol": 1e-6})
    mean, log_sd = factors(fit.x)
    # BFGS stops at parameters some 1e-6 off (differenced gradients), the ELBO at their square
    assert optimum.elbo == pytest.approx(-fit.fun, abs=1e-9)
    np.testing.assert_allclose(mean[n_globals:], optimum.z_mean, atol=2e-5)
    np.testing.assert_allclose(np.exp(log_sd[n_globals:]), optimum.z_sd, atol=2e-5)
    if n_globals:
        assert mean[0] == pytest.approx(optimum.theta_mean, abs=2e-5)
        assert np.exp(log_sd[0]) == pytest.approx(optimum.theta_sd, abs=2e-5)


def test_windows_read_absent_rows_as_told():
    # three-row designs with three columns fit anything, so what they read is checked here
    expected = [[1, 9, 9, 0.3, -1.2], [1, 9, 0.3, -1.2, 2.5], [1, 0.3, -1.2, 2.5, 9]]
    np.testing.assert_array_equal(cf._windows(X, (2, 1), 9.0), expected)
    x = np.random.default_rng(5).normal(size=30)
    gap = cf.saw_factorized(x, A, INITIAL).elbo - cf.saw_linear(x, A, INITIAL).elbo
    assert gap == pytest.approx(0, abs=1e-11)  # rounding; reading 0 for x_0 = 0.6 would cost 0.11


def test_linear_rows_of_weight_two_are_rows_twice_and_of_weight_zero_absent():
    weighted = cf.linear_factorized(X, TAU, SIGMA, [2, 1, 0])
    repeated = cf.linear_factorized([X[0], X[0], X[1]], TAU, SIGMA)
    assert weighted.elbo == pytest.approx(repeated.elbo, rel=1e-13)  # rounding
    evidence = cf.linear_evidence([X[0], X[0], X[1]], TAU, SIGMA)
    assert cf.linear_evidence(X, TAU, SIGMA, [2, 1, 0]) == pytest.approx(evidence, rel=1e-13)


@pytest.mark.parametrize("w", seeds(W, PLAIN))
def test_linear_evidence_is_the_double_integral(w):
    def density(theta):
        def row_densities(z):
            return stats.norm.pdf(z) * stats.norm.pdf(X, theta + TAU * z, SIGMA)

        # 9 sds of z: what is left is below 1e-18
        return np.prod(integrate.quad_vec(row_densities, -9, 9, epsrel=1e-10)[0] ** w)

    value = np.log(integrate.quad(density, -12, 12, points=[0.0])[0])
    # quad asks for 1.5e-8; it gives about 1e-12 on integrands as smooth as these
    assert cf.linear_evidence(X, TAU, SIGMA, w) == pytest.approx(value, abs=1e-9)


def test_saw_evidence_is_the_integral_over_theta():
    def density(theta):
        mean = A * (theta + np.array([INITIAL, X[0], X[1]]))
        return np.prod(stats.norm.pdf(X, mean, np.hypot(1, A)))

    value = np.log(integrate.quad(density, -30, 30, points=[0.0])[0])
    assert cf.saw_evidence(X, A, INITIAL) == pytest.approx(value, abs=1e-9)  # as above


def test_every_bound_is_ordered():
    evidence = cf.saw_evidence(X, A, INITIAL)
    elbos = [cf.saw_linear(X, A, INITIAL, context).elbo for context in [(1, 0), (0, 0)]]
    elbos = [cf.saw_factorized(X, A, INITIAL).elbo, *elbos, cf.saw_constant(X, A, INITIAL).elbo]
    assert evidence > elbos[0] == pytest.approx(elbos[1], rel=1e-13)  # no gap but rounding
    assert elbos[1] > elbos[2] > elbos[3]
    assert cf.linear_evidence(X, TAU, SIGMA, W) > cf.linear_factorized(X, TAU, SIGMA, W).elbo
    smoothed = cf.kalman_smoother(X, **LOCAL_LEVEL)
    assert smoothed.log_evidence > cf.local_level_factorized(X, **LOCAL_LEVEL).elbo


def test_saw_reproduces_the_published_losses():
    x = cf.paper_saw_data()
    assert x.shape == (1000,)
    losses = [
        cf.published(optimum.elbo, 1000)
        for optimum in (
            cf.saw_factorized(x),
            cf.saw_linear(x),
            cf.saw_linear(x, context=(0, 0)),
            cf.saw_constant(x),
        )
    ]
    # known to the digits printed in the project's issue
    assert losses == pytest.approx([553.0139, 553.0139, 892.634, 2933.567], abs=5e-4)


def test_linear_conversion_ties_the_published_losses_together():
    # The data enter by their sum of squares: fit it to one published loss, predict the other.
    n, tau, sigma = 10_000, 1.155, 2.43
    signs = np.tile([-1.0, 1.0], n // 2)

    def losses(scale):
        optima = (f(scale * signs, tau, sigma) for f in (cf.linear_factorized, cf.linear_constant))
        return [cf.published(optimum.elbo, n, likelihood_sd=sigma) for optimum in optima]

    scale = np.sqrt((6088.0 - losses(0.0)[0]) / (losses(1.0)[0] - losses(0.0)[0]))
    # printed to 0.1 nat, from noisy runs; any constant forgotten is 9,000 nats or more
    assert losses(scale)[1] == pytest.approx(7232.2, abs=0.5)
    # the sum of squares so found is what the model draws: n -+ 4 sqrt(2 n)
    assert scale**2 / (tau**2 + sigma**2) == pytest.approx(1.0, abs=4 * np.sqrt(2 / n))


def test_nonlinear_data_follow_the_recipe():
    x, z, theta = cf.paper_nonlinear_data()
    noise = (x - theta - z * np.sin(z) - z) / np.exp(np.cos(z))
    assert x.shape == z.shape == (10_000,)
    # 10,000 draws: 4 standard errors of a mean, of an sd
    assert noise.mean() == pytest.approx(0, abs=0.04)
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert z.std() / 5 == pytest.approx(1, abs=0.03)


@pytest.fixture
def factor_model():
    rng = np.random.default_rng(0)
    loadings, mu, psi = rng.normal(size=(4, 2)), rng.normal(size=4), rng.uniform(0.3, 2, size=4)
    return rng.normal(size=(3, 4)) * 2, loadings, mu, psi


def test_ppca_agrees_with_conditioning_the_joint_normal(factor_model):
    X, loadings, mu, psi = factor_model
    X_missing = X.copy()
    X_missing[0, 1] = X_missing[1, [0, 3]] = X_missing[2] = np.nan
    marginal = loadings @ loadings.T + np.diag(psi)
    posterior, missing = (
        cf.ppca_posterior(X, loadings, mu, psi),
        cf.ppca_posterior_missing(X_missing, loadings, mu, psi),
    )
    evidence, evidence_missing = (
        cf.ppca_log_evidence(data, loadings, mu, psi) for data in (X, X_missing)
    )
    for n in range(3):
        for data, mean, cov, log_evidence in [
            (X, posterior.mean, posterior.cov, evidence),
            (X_missing, missing.mean, missing.cov[n], evidence_missing),
        ]:
            seen = ~np.isnan(data[n])
            gain = loadings[seen].T @ np.linalg.inv(marginal[np.ix_(seen, seen)])
            residual = data[n, seen] - mu[seen]
            # all of these are linear algebra on 4 x 4 matrices: rounding only
            np.testing.assert_allclose(mean[n], gain @ residual, rtol=1e-11, atol=1e-13)
            np.testing.assert_allclose(
                cov, np.eye(2) - gain @ loadings[seen], rtol=1e-11, atol=1e-13
            )
            density = 0.0
            if seen.any():
                density = stats.multivariate_normal.logpdf(
                    residual, cov=marginal[np.ix_(seen, seen)]
                )
            assert log_evidence[n] == pytest.approx(density, abs=1e-11)
    with pytest.raises(ValueError, match="ppca_posterior_missing"):
        cf.ppca_posterior(X_missing, loadings, mu, psi)


def test_ppca_factorized_is_where_a_numerical_optimiser_ends(factor_model):
    X, loadings, mu, psi = factor_model
    X[1, 2] = np.nan
    optimum = cf.ppca_factorized(X, loadings, mu, psi)
    assert optimum.elbo == pytest.approx(optimum.elbo_rows.sum())
    for n in range(3):

        def log_joint(z, n=n):
            cells = stats.norm.logpdf(X[n], z @ loadings.T + mu, np.sqrt(psi))
            return np.nansum(cells, axis=1) + stats.norm.logpdf(z).sum(axis=1)

        def loss(at, log_joint=log_joint):
            return -quadrature_elbo(log_joint, at[:2], np.exp(at[2:]), np.ones(2))

        fit = minimize(loss, np.zeros(4), options={"gtol": 1e-6})
        # as for the other optima: differenced gradients
        assert optimum.elbo_rows[n] == pytest.approx(-fit.fun, abs=1e-9)
        np.testing.assert_allclose(optimum.z_mean[n], fit.x[:2], atol=2e-5)
        np.testing.assert_allclose(optimum.z_sd[n], np.exp(fit.x[2:]), atol=2e-5)


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_factor_analysis_elbo_rows_agree_with_simulation(factor_model, isotropic, full):
    X, W_mean, mu_mean, _ = factor_model
    X[1, 2] = np.nan
    rng = np.random.default_rng(1)
    W_sd, mu_sd = rng.uniform(0.1, 0.5, size=(4, 2)), rng.uniform(0.1, 0.5, size=4)
    n_sigmas = 1 if isotropic else 4
    m, s = rng.normal(size=n_sigmas) * 0.3, rng.uniform(0.1, 0.4, size=n_sigmas)
    z_mean = rng.normal(size=(3, 2))
    root = rng.normal(size=(3, 2, 2)) * 0.4 + np.eye(2)
    z_cov = root @ root.swapaxes(1, 2) if full else root[0] @ root[0].T
    rows = cf.factor_analysis_elbo_rows(X, W_mean, W_sd, mu_mean, mu_sd, m, s, z_mean, z_cov)
    z_cov = np.broadcast_to(z_cov, (3, 2, 2))

    n_draws = 200_000
    loadings = W_mean + W_sd * rng.normal(size=(n_draws, 4, 2))
    mu = mu_mean + mu_sd * rng.normal(size=(n_draws, 4))
    sigma = np.exp(m + s * rng.normal(size=(n_draws, n_sigmas)))
    for n in range(3):
        factor = stats.multivariate_normal(z_mean[n], z_cov[n])
        z = factor.rvs(n_draws, random_state=rng)
        cells = stats.norm.logpdf(X[n], np.einsum("sdk,sk->sd", loadings, z) + mu, sigma)
        draws = np.nansum(cells, axis=1) + stats.norm.logpdf(z).sum(axis=1) - factor.logpdf(z)
        z_score = (draws.mean() - rows[n]) / (draws.std() / np.sqrt(n_draws))
        assert abs(z_score) < 4  # 12 of them, fixed seeds


TAU_PRIORS = {"half_cauchy": stats.halfcauchy, "half_normal": stats.halfnorm}


@pytest.mark.parametrize("tau_prior", TAU_PRIORS)
def test_random_effects_evidence_is_the_integral_over_tau(tau_prior):
    def density(tau):
        cov = np.diag(SCHOOLS_SE**2 + tau**2) + 25.0
        likelihood = stats.multivariate_normal.pdf(SCHOOLS, cov=cov)
        return likelihood * TAU_PRIORS[tau_prior].pdf(tau, scale=5) * 1e14

    pieces = [0, 2, 8, 30, 200, 2000, 20_000]  # the likelihood falls as tau^-8
    options = {"epsabs": 0, "epsrel": 1e-11}
    total = sum(integrate.quad(density, low, high, **options)[0] for low, high in pairwise(pieces))
    value = cf.random_effects_evidence(SCHOOLS, SCHOOLS_SE, tau_prior=tau_prior)
    assert value == pytest.approx(np.log(total) - 14 * np.log(10), abs=1e-9)  # quad's tolerance


def test_random_effects_reproduce_the_eight_schools_reference():
    # shared/references, kept to 8 digits: 1-D quadrature; 80-node Gauss-Hermite and Newton
    evidence = cf.random_effects_evidence(SCHOOLS, SCHOOLS_SE, 5, 5)
    # the reference leaves out log tau < -14, 1.7e-7 of the whole; the quad test above decides
    assert evidence == pytest.approx(-31.31134752, abs=3e-7)
    optimum = cf.random_effects_meanfield_noncentred(SCHOOLS, SCHOOLS_SE, 5, 5)
    assert optimum.elbo == pytest.approx(-31.597301080091782, abs=1e-11)
    np.testing.assert_allclose(optimum.theta_mean, [4.5271114, 0.80958021], atol=1e-7)
    np.testing.assert_allclose(optimum.theta_sd, [3.1573604, 0.72904897], atol=1e-7)
    assert optimum.z_mean[:2] == pytest.approx([0.28711877, 0.088808489], abs=1e-7)
    assert optimum.z_sd[:2] == pytest.approx([0.96901934, 0.93406152], abs=1e-7)


@pytest.mark.parametrize("tau_prior", TAU_PRIORS)
def test_random_effects_meanfield_is_where_a_numerical_optimiser_ends(tau_prior):
    estimate, se = np.array([2.0, -1.0]), np.array([0.8, 1.3])
    prior = TAU_PRIORS[tau_prior]

    def log_joint(u):
        mu, log_tau, z = u[:, 0], u[:, 1], u[:, 2:]
        effect = mu[:, None] + np.exp(log_tau)[:, None] * z
        globals_ = stats.norm.logpdf(mu, 0, 3) + prior.logpdf(np.exp(log_tau), scale=2) + log_tau
        locals_ = stats.norm.logpdf(estimate, effect, se) + stats.norm.logpdf(z)
        return globals_ + locals_.sum(axis=1)

    def loss(at):
        return -quadrature_elbo(log_joint, at[:4], np.exp(at[4:]), np.ones(4), n_nodes=16)

    fit = minimize(loss, np.zeros(8), options={"gtol": 1e-5})
    optimum = cf.random_effects_meanfield_noncentred(estimate, se, 3, 2, tau_prior=tau_prior)
    # 16 nodes leave about 1e-6 in E log p(log tau); the optimiser much less
    assert optimum.elbo == pytest.approx(-fit.fun, abs=1e-5)
    np.testing.assert_allclose(np.r_[optimum.theta_mean, optimum.z_mean], fit.x[:4], atol=1e-4)
    np.testing.assert_allclose(np.r_[optimum.theta_sd, optimum.z_sd], np.exp(fit.x[4:]), atol=1e-4)
    assert optimum.elbo < cf.random_effects_evidence(estimate, se, 3, 2, tau_prior)


def test_kalman_smoother_agrees_with_the_joint_normal():
    x = np.random.default_rng(2).normal(size=12).cumsum()
    m0, s0, q, r = LOCAL_LEVEL.values()
    steps = np.arange(12)
    prior = s0**2 + q**2 * np.minimum.outer(steps, steps)
    marginal = prior + r**2 * np.eye(12)
    gain = prior @ np.linalg.inv(marginal)
    smoothed = cf.kalman_smoother(x, m0, s0, q, r)
    # linear algebra on 12 x 12 matrices of condition below 100: rounding only
    np.testing.assert_allclose(smoothed.means, m0 + gain @ (x - m0), atol=1e-11)
    np.testing.assert_allclose(smoothed.variances, np.diag(prior - gain @ prior), atol=1e-11)
    density = stats.multivariate_normal.logpdf(x, np.full(12, m0), marginal)
    assert smoothed.log_evidence == pytest.approx(density, abs=1e-10)


def test_wider_windows_shrink_the_local_level_gap_and_never_close_it():
    x = np.random.default_rng(3).normal(size=40).cumsum()
    elbos = [
        cf.local_level_windowed_linear(x, **LOCAL_LEVEL, context=(width, width)).elbo
        for width in range(4)
    ]
    assert np.all(np.diff(elbos) > 0)
    assert cf.local_level_factorized(x, **LOCAL_LEVEL).elbo > elbos[-1] + 1e-3  # the ends' share


def test_importance_weighted_log_evidence_of_a_conjugate_normal():
    # z ~ N(0, 1), x = 0.7 ~ N(z, 0.5^2): the posterior is N(0.56, 0.2)
    rng = np.random.default_rng(4)
    evidence = stats.norm.logpdf(0.7, 0, np.sqrt(1.25))

    def log_joint(z):
        return stats.norm.logpdf(z) + stats.norm.logpdf(0.7, z, 0.5)

    posterior = stats.norm(0.56, np.sqrt(0.2))
    draws = posterior.rvs(5, random_state=rng)
    exact = cf.importance_weighted_log_evidence(log_joint, posterior.logpdf, draws)
    assert exact == pytest.approx(evidence, abs=1e-13)  # every weight is the evidence: rounding
    wide = stats.norm(0.3, 0.8)
    draws = wide.rvs(100_000, random_state=rng)
    estimate = cf.importance_weighted_log_evidence(log_joint, wide.logpdf, draws)
    weights = np.exp(log_joint(draws) - wide.logpdf(draws) - evidence)
    assert abs(estimate - evidence) < 4 * weights.std() / np.sqrt(len(draws))  # standard errors
