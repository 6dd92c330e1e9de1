"""Models whose rows are a series: exact answers, simulation, edges and lengths."""

import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import InverseGamma, Normal

from closed_forms import (
    kalman_smoother,
    local_level_factorized,
    local_level_windowed_linear,
    saw_factorized,
    saw_linear,
)
from skavi import AmortizedVI, FactorizedVI
from skavi.distributions import Flat, defaults_of, innermost
from skavi.families import Chain, DiagonalNormal
from skavi.inference_functions import MLP, Constant, Polynomial
from skavi.models import (
    BayesianDecoder,
    CouplingBiasWarning,
    GaussianProcess,
    LocalLevel,
    MarkovModel,
    PriorConflictWarning,
    SawTimeSeries,
)
from skavi.solvers import LBFGS, CoordinateAscent, Newton

pytestmark = pytest.mark.filterwarnings("ignore::skavi.closability.AmortizationWarning")
#: The paper's F-VI, beside the default family of chains.
INDEPENDENT = DiagonalNormal()
M0, S0, Q, R = 0.5, 2.0, 0.7, 1.2


def level():
    return LocalLevel(level_sd=Q, noise_sd=R, initial_mean=M0, initial_sd=S0)


class Walk(MarkovModel):
    """The local level model as a user writes it: nothing but distributions."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {}

    def initial_prior(self, theta):
        return Normal(torch.full((1,), M0), S0)

    def transition(self, z_previous, theta):
        return Normal(z_previous, Q)

    def likelihood(self, z, theta):
        return Normal(z, R)


def random_walk(n, seed=0):
    rng = np.random.default_rng(seed)
    return (Q * rng.normal(size=n).cumsum() + R * rng.normal(size=n))[:, np.newaxis]


@pytest.fixture(scope="module")
def series():
    return random_walk(60)


# The Kalman smoother


@pytest.mark.parametrize(
    ("model", "solver", "tolerance"),
    [
        (level(), None, 1e-8),
        (level(), CoordinateAscent(), 1e-8),
        (level(), LBFGS(), 1e-8),
        (Walk(), None, 1e-6),
        (Walk(), LBFGS(), 1e-6),
        (Walk(), Newton(), 1e-6),
    ],
)
def test_factorized_vi_finds_the_smoothers_means(model, solver, tolerance, series):
    """Means 1e-8 off are 1e-16 nats off: tol as small as rounding lets a solver go."""
    tol = 1e-8 if solver is None else 1e-17
    vi = FactorizedVI(model, family=INDEPENDENT, solver=solver, tol=tol).fit(series)
    exact = kalman_smoother(series, M0, S0, Q, R)
    best = local_level_factorized(series, M0, S0, Q, R)
    latents = vi.posterior(series)
    assert vi.elbo_ == pytest.approx(best.elbo, rel=1e-10)
    assert vi.elbo_ <= exact.log_evidence
    np.testing.assert_allclose(latents.mean[:, 0], exact.means, atol=tolerance)
    np.testing.assert_allclose(latents.sd[:, 0] ** 2, best.z_sd**2, atol=tolerance)
    assert (latents.sd[:, 0] ** 2 < exact.variances).all()  # mean-field is too narrow


def filtered(x, m0, s0, q, r):
    """The Kalman filter and smoother with holes: log evidence, means and sds."""
    x, mean, variance, log_evidence = x[:, 0], m0, s0**2, 0.0
    passed = []
    for value in x:
        ahead = mean, variance
        if np.isfinite(value):
            spread = variance + r**2
            log_evidence += stats.norm.logpdf(value, mean, spread**0.5)
            mean = mean + variance / spread * (value - mean)
            variance = variance * r**2 / spread
        passed.append((*ahead, mean, variance))
        variance = variance + q**2
    means, variances = [passed[-1][2]], [passed[-1][3]]
    for (_, _, m, v), (m1, v1, _, _) in zip(passed[-2::-1], passed[:0:-1], strict=True):
        gain = v / v1
        means.append(m + gain * (means[-1] - m1))
        variances.append(v + gain**2 * (variances[-1] - v1))
    return log_evidence, np.array(means)[::-1], np.sqrt(variances)[::-1]


@pytest.fixture(scope="module")
def holes(series):
    X = series.copy()
    X[[0, 7, 58, 59]] = X[20:30] = np.nan
    return X


@pytest.mark.parametrize(
    ("model", "family"), [(level(), None), (level(), Chain()), (Walk(), None)], ids=repr
)
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "holes"])
def test_a_chain_of_factors_is_the_kalman_smoother(model, family, missing, series, holes):
    X = holes if missing else series
    log_evidence, means, sds = filtered(X, M0, S0, Q, R)
    vi = FactorizedVI(model, family=family).fit(X)
    latents = vi.posterior(X)
    assert isinstance(vi.family_, Chain)
    assert vi.elbo_ == pytest.approx(log_evidence, abs=1e-8)
    np.testing.assert_allclose(latents.mean[:, 0], means, atol=1e-6)
    np.testing.assert_allclose(latents.sd[:, 0], sds, atol=1e-6)


def test_holes_in_a_series_are_filled_with_the_smoothers_mean(holes):
    vi = FactorizedVI(level()).fit(holes)
    _, means, sds = filtered(holes, M0, S0, Q, R)
    filled, sd = vi.impute(holes, return_sd=True)
    empty = np.isnan(holes[:, 0])
    np.testing.assert_array_equal(filled[~empty], holes[~empty])
    np.testing.assert_allclose(filled[empty, 0], means[empty], atol=1e-3)  # quasi-random draws
    np.testing.assert_allclose(sd[empty, 0], np.hypot(sds, R)[empty], rtol=1e-2)
    with pytest.raises(ValueError, match="X has no observed cell"):
        FactorizedVI(level()).fit(np.full((5, 1), np.nan))


def test_posterior_draws_are_of_all_rows_together(series):
    """The sd of steps, from 20,000 draws: within four standard errors, 2 %."""
    vi = FactorizedVI(level()).fit(series)
    draws = vi.posterior(series).sample(20_000, random_state=0)[..., 0]
    n, steps = len(series), np.diff(draws, axis=1)
    precision = np.diag(np.full(n, R**-2.0)) + np.diag([S0**-2.0] + [0.0] * (n - 1))
    difference = np.diff(np.eye(n), axis=0)
    covariance = np.linalg.inv(precision + difference.T @ difference / Q**2)
    exact = np.sqrt(np.diag(difference @ covariance @ difference.T))
    np.testing.assert_allclose(steps.std(0), exact, rtol=0.02)
    np.testing.assert_allclose(draws.std(0), np.sqrt(np.diag(covariance)), rtol=0.02)


NILE = """
1120 1160 963 1210 1160 1160 813 1230 1370 1140 995 935 1110 994 1020 960 1180 799 958 1140 1100
1210 1150 1250 1260 1220 1030 1100 774 840 874 694 940 833 701 916 692 1020 1050 969 831 726 456
824 702 1120 1100 832 764 821 768 845 864 862 698 845 744 796 1040 759 781 865 845 944 984 897
822 1010 771 676 649 846 812 742 801 1040 860 874 848 890 744 749 838 1050 918 986 797 923 975
815 1020 906 901 1170 912 746 919 718 714 740
"""


def test_unknown_variances_of_the_nile_are_found():
    """Flow at Aswan, 1871-1970. Exact: sums of the Kalman filter's evidence over a grid."""
    X = np.array(NILE.split(), dtype=float)[:, np.newaxis]
    model = LocalLevel(initial_mean=1120.0, initial_sd=1000.0)
    log_sds, prior_scale = np.linspace(2.5, 5.5, 40), 0.1 * float((np.diff(X[:, 0]) ** 2).mean())
    v = np.exp(2 * log_sds)
    log_prior = -(v**-1.0) * prior_scale - np.log(v)  # of log v: inverse gamma of shape 1
    log_p, mean, variance = 0.0, 1120.0, 1000.0**2
    for x in X[:, 0]:  # the Kalman filter, over the grid
        spread = variance + v[20:]
        log_p = log_p + stats.norm.logpdf(x, mean, spread**0.5)
        mean, variance = mean + variance / spread * (x - mean), variance * v[20:] / spread
        variance = variance + v[:, np.newaxis]
    log_p += log_prior[:, np.newaxis] + log_prior[20:]
    weight = np.exp(log_p - log_p.max())
    weight /= weight.sum()
    exact = {"level_variance": (weight.sum(1), v), "noise_variance": (weight.sum(0), v[20:])}
    chained = FactorizedVI(model).fit(X)
    with pytest.warns(CouplingBiasWarning):
        independent = FactorizedVI(model, family=INDEPENDENT).fit(X)
    for name, (w, values) in exact.items():
        mean = w @ values
        sd = np.sqrt(w @ (values - mean) ** 2)
        away = abs(chained.global_posterior_.mean[name] - mean)
        assert away < 0.5 * sd
        assert away < 0.2 * abs(independent.global_posterior_.mean[name] - mean)
    # Left open, the first level's prior hardly counts.
    open_ = FactorizedVI(LocalLevel()).fit(X).global_posterior_
    for name, mean in open_.mean.items():
        assert mean == pytest.approx(chained.global_posterior_.mean[name], rel=0.01)


def test_latent_variances_are_found():
    """Variances of 0.49 and 1.44: q of 1,000 rows holds them within four corrected sds."""
    vi = FactorizedVI(LocalLevel()).fit(random_walk(1000))
    q = vi.global_posterior_
    assert vi.converged_
    assert abs(q.mean["level_variance"] - Q**2) < 4 * q.corrected_sd["level_variance"]
    assert abs(q.mean["noise_variance"] - R**2) < 4 * q.corrected_sd["noise_variance"]
    general = FactorizedVI(LocalLevel(), solver=LBFGS()).fit(random_walk(1000))
    assert general.elbo_ == pytest.approx(vi.elbo_, abs=1e-4)  # tol: 1e-8 nats a row


def test_priors_of_variances_can_be_given(series):
    """A number s is an inverse gamma distribution of shape 1 and scale s^2 / 10."""
    by_number = FactorizedVI(LocalLevel(level_scale=2.0, noise_scale=3.0)).fit(series)
    priors = {
        "level_scale": InverseGamma(torch.tensor(1.0).double(), torch.tensor(0.4).double()),
        "noise_scale": InverseGamma(torch.tensor(1.0).double(), torch.tensor(0.9).double()),
    }
    by_name = FactorizedVI(LocalLevel(**priors)).fit(series)
    assert by_name.elbo_ == pytest.approx(by_number.elbo_, abs=1e-6)
    assert by_name.elbo_ != pytest.approx(FactorizedVI(LocalLevel()).fit(series).elbo_, abs=1e-2)
    with pytest.raises(ValueError, match="level_scale"):
        FactorizedVI(LocalLevel(level_scale=-1.0)).fit(series)


@pytest.mark.parametrize("way", ["factorized", "amortized"])
def test_unknown_variances_of_a_chain_are_told_to_be_biased(way):
    """Level steps of sd 40, noise of 120: the posterior holds 26 to 60 and 101 to 135 (5 to 95 %).

    By a grid over both sds, with the Kalman filter's likelihood and the same priors.
    """
    rng = np.random.default_rng(3)
    y = (1000 + np.cumsum(40 * rng.normal(size=100)) + 120 * rng.normal(size=100))[:, None]
    start = {"initial_mean": 1000.0, "initial_sd": 1000.0}
    wide = Polynomial(1, context=(3, 3))
    estimator = {
        "factorized": lambda model: FactorizedVI(model, family=INDEPENDENT),
        "amortized": lambda model: AmortizedVI(model, wide),
    }[way]
    with pytest.warns(CouplingBiasWarning, match=r"^LocalLevel \(level_variance, noise_variance\)"):
        vi = estimator(LocalLevel(**start)).fit(y)
    assert "bias" in vi.bias_note_ and vi.bias_note_ in repr(vi) and "bias" in vi._repr_html_()
    if way == "factorized":
        sds = {n: float(v) ** 0.5 for n, v in vi.global_posterior_.mean.items()}
        assert sds["level_variance"] > 60 and sds["noise_variance"] < 101  # biased indeed
    with warnings.catch_warnings():
        warnings.simplefilter("error", CouplingBiasWarning)
        known = estimator(LocalLevel(level_sd=40.0, noise_sd=120.0, **start)).fit(y)
        chained = FactorizedVI(LocalLevel(**start)).fit(y)
    sds = {n: float(v) ** 0.5 for n, v in chained.global_posterior_.mean.items()}
    assert 26 < sds["level_variance"] < 60 and 101 < sds["noise_variance"] < 135
    assert chained.bias_note_ == "" and "bias" not in repr(chained)
    assert known.bias_note_ == "" and "bias" not in repr(known)
    assert FactorizedVI(SawTimeSeries()).fit(y).bias_note_ == ""


# The paper's counter-example


def repeated(series):
    """Put the same three observations at two places."""
    X = series.copy()
    X[10:13] = X[40:43] = [[1.0], [-0.5], [0.3]]
    return X


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_equal_windows_have_unequal_factors_but_one_amortized_factor(series):
    X = repeated(series)
    free = FactorizedVI(level(), family=INDEPENDENT).fit(X).transform(X)
    assert abs(free[11] - free[41]) > 0.05
    for function in (Constant(), Polynomial(2, context=(1, 1)), MLP((8,), context=(1, 1))):
        vi = AmortizedVI(level(), function, random_state=0, max_iter=300, tol=1e-4).fit(X)
        latents = vi.posterior(X)
        assert latents.mean[11] == latents.mean[41]
        assert latents.sd[11] == latents.sd[41]


@pytest.fixture(scope="module")
def windowed():
    """(width, fit) of linear functions of growing windows, on a series of 100."""
    X = random_walk(100)
    return X, [
        (width, AmortizedVI(level(), Polynomial(1, context=(width, width)), tol=1e-12).fit(X))
        for width in range(11)
    ]


def test_a_wider_window_narrows_the_gap_and_never_closes_it(windowed):
    X, fits = windowed
    best = FactorizedVI(level(), family=INDEPENDENT).fit(X).elbo_
    gaps = [best - vi.elbo_ for _, vi in fits]
    assert (np.diff(gaps) < 1e-8).all()  # rounding
    assert gaps[5] < 0.5 * gaps[0]
    assert gaps[-1] > 1e-3


def test_linear_functions_are_the_least_squares_ones(windowed):
    """Means and sds separate. The sds may follow the window here, so they gain a little."""
    X, fits = windowed
    free_sd = local_level_factorized(X, M0, S0, Q, R).z_sd
    for width, vi in fits:
        best = local_level_windowed_linear(X, M0, S0, Q, R, context=(width, width))
        np.testing.assert_allclose(vi.transform(X)[:, 0], best.z_mean, atol=1e-5)
        most = np.log(free_sd).sum() - np.log(best.z_sd).sum()
        assert best.elbo - 1e-9 <= vi.elbo_ <= best.elbo + most


# Density agrees with simulation


PROPER = {
    "saw": (SawTimeSeries(initial=2.0), 1),
    "local level": (level(), 1),
    "local level, latent variances": (LocalLevel(), 1),
    "user's walk": (Walk(), 1),
    "Gaussian process": (GaussianProcess(lengthscale=0.7), 2),
    "Gaussian process, counts": (GaussianProcess(amplitude=0.5, likelihood="poisson"), 2),
    "decoder": (BayesianDecoder(2, (3,)), 2),
}


def draws(model, n_features, n_sets, n_rows=4):
    """Simulate theta (a flat one is put at 0.7), z and x, again and again."""
    space, us, zs, Xs = model.global_space(torch.zeros(1, n_features).double()), [], [], []
    with torch.random.fork_rng(devices=[]), defaults_of(torch.zeros(1).double()):
        torch.manual_seed(3)
        for _ in range(n_sets):
            theta = {
                name: torch.tensor(0.7) if isinstance(innermost(prior), Flat) else prior.sample()
                for name, prior in space.prior.items()
            }
            us.append(space.unconstrain(theta).double())
            X, z = model.simulate(space.constrain(us[-1]), n_rows, n_features)
            zs.append(z.double())
            Xs.append(X.double())
    return space, torch.stack(us), torch.stack(zs), torch.stack(Xs)


@pytest.mark.parametrize("name", PROPER)
def test_density_agrees_with_simulation(name):
    """E s = 0 and E (s^2 + s') = 0 for the score s of log p(theta, z, x) in theta and z."""
    model, n_features = PROPER[name]
    space, us, zs, Xs = draws(model, n_features, 1500)
    n_globals = space.size

    def log_joint(v, X):
        u, z = v[:n_globals], v[n_globals:].reshape(zs.shape[1:])
        return model.log_terms(space.constrain(u), z, X).sum() + space.log_prior(u)

    v = torch.cat([us, zs.flatten(1)], 1)
    score = torch.func.vmap(torch.func.grad(log_joint))(v, Xs)
    hessian = torch.func.vmap(torch.func.hessian(log_joint))(v, Xs)
    information = score**2 + hessian.diagonal(dim1=-2, dim2=-1)
    if isinstance(model, BayesianDecoder):  # the ReLU's kinks hide from the second derivative
        last = space.slices["weight_1"].start
        information = information[:, last:n_globals]
    for statistic in (score.numpy(), information.numpy()):
        far = np.abs(statistic.mean(0) / stats.sem(statistic))
        assert far.max() < 4.5  # some 30 numbers a model: one false alarm in 5,000


def test_written_out_densities_are_the_declared_ones():
    z, X = torch.randn(2, 5, 1, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(
        level().log_joint({}, z, X), Walk().log_joint({}, z, X), rtol=1e-12, atol=0
    )
    saw, theta = SawTimeSeries(initial=2.0), {"theta": torch.tensor(0.7).double()}
    declared = saw.log_prior(theta, z, X) + saw.log_likelihood(theta, z, X)
    torch.testing.assert_close(saw.log_local(theta, z, X), declared, rtol=1e-12, atol=0)


def test_closed_form_expectations_are_those_of_quadrature(series):
    """The local level's ELBO in closed form against the user's walk, which is integrated."""
    vi = AmortizedVI(level(), Polynomial(1)).fit(series)
    walk = AmortizedVI(Walk(), Polynomial(1)).fit(series)
    assert vi.elbo_ == pytest.approx(walk.elbo_, rel=1e-8)


# Edges


@pytest.mark.parametrize("initial", [0.0, 2.0])
def test_the_row_before_the_first_reads_as_initial(initial, series):
    """Closed forms that hold the first row's window to `initial`, far from what it would be."""
    model = SawTimeSeries(initial=initial)
    free = FactorizedVI(model).fit_transform(series)[:, 0]
    np.testing.assert_allclose(free, saw_factorized(series, initial=initial).z_mean, atol=1e-5)
    for context in ((1, 0), (1, 2)):
        vi = AmortizedVI(model, Polynomial(1, context=context)).fit(series)
        best = saw_linear(series, initial=initial, context=context)
        assert vi.elbo_ == pytest.approx(best.elbo, rel=1e-8)
        np.testing.assert_allclose(vi.transform(series)[:, 0], best.z_mean, atol=1e-4)


def test_rows_beyond_the_ends_of_other_models_read_as_zero(series):
    vi = AmortizedVI(level(), Polynomial(1, context=(2, 1))).fit(series)
    padded = np.vstack([[[0.0], [0.0]], series, [[0.0]]])
    np.testing.assert_allclose(vi.transform(padded)[2:-1], vi.transform(series), rtol=1e-12)


@pytest.mark.filterwarnings("ignore::skavi.models.CouplingBiasWarning")
@pytest.mark.filterwarnings("ignore::skavi.closability.AmortizationWarning")
def test_a_network_reads_a_series_far_from_zero():
    """The zeros beyond its ends are a billion sds away, and would be all that it reads."""
    X = random_walk(40)
    near, far = (AmortizedVI(LocalLevel(), random_state=0).fit(rows) for rows in (X, X + 1e9))
    assert near.converged_ and far.converged_ and far.n_iter_ < 200
    assert far.elbo_ == pytest.approx(near.elbo_, abs=0.05)
    np.testing.assert_allclose(far.transform(X + 1e9) - 1e9, near.transform(X), atol=0.3)


# Series of any length


@pytest.mark.filterwarnings("ignore::skavi.models.CouplingBiasWarning")
@pytest.mark.parametrize("n", [1, 2, 1000])
@pytest.mark.parametrize(
    "model",
    [SawTimeSeries(), level(), LocalLevel(), Walk()],
    ids=["saw", "fixed", "latent", "walk"],
)
def test_series_of_any_length(model, n):
    X = random_walk(n)
    high = FactorizedVI(model).fit(X)
    for context in (None, (3, 3)):  # wider than the short series
        low = AmortizedVI(model, Polynomial(1, context=context)).fit(X)
        assert high.converged_ and low.converged_
        assert high.elbo_ >= low.elbo_ - 1e-7 * n - 1e-9 * abs(high.elbo_)
        for vi in (high, low):
            assert vi.transform(X).shape == (n, 1)
            assert vi.score(X) == pytest.approx(vi.score_samples(X).mean())
            other = random_walk(7, seed=1)  # fitted on one length, used on another
            assert np.isfinite(vi.transform(other)).all()
            assert np.isfinite(vi.score(other))
            for n_samples in (1, 2, 50):
                rows, latents = vi.sample(n_samples, random_state=0)
                assert rows.shape == latents.shape == (n_samples, 1)
                assert np.isfinite(rows).all()


@pytest.mark.parametrize(
    ("likelihood", "y", "needs"),
    [("bernoulli", 2.0, "values from 0 to 1"), ("poisson", -1.0, "counts >= 0")],
)
def test_gaussian_processes_refuse_what_their_likelihood_cannot_give(likelihood, y, needs):
    message = rf"row 1, column 1\), but GaussianProcess\(likelihood='{likelihood}'\) needs {needs}"
    with pytest.raises(ValueError, match=message):
        FactorizedVI(GaussianProcess(likelihood=likelihood)).fit([[-3.0, 1.0], [0.5, y]])


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli", "poisson"])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_gaussian_processes_of_any_length(likelihood, n):
    rng = np.random.default_rng(0)
    X = np.column_stack([np.arange(n) / 2, rng.integers(0, 2, n)])
    high = FactorizedVI(GaussianProcess(likelihood=likelihood)).fit(X)
    low = AmortizedVI(GaussianProcess(likelihood=likelihood), Polynomial(1, (1, 1))).fit(X)
    assert high.elbo_ >= low.elbo_ - 1e-7 * n
    for vi in (high, low):
        assert vi.transform(X).shape == (n, 1)
        assert vi.sample(3, random_state=0)[0].shape == (3, 2)


def test_the_normal_gaussian_process_is_exact():
    """Means of the exact posterior; variances 1 / diag(precision), as for any normal posterior."""
    rng = np.random.default_rng(0)
    t, y = np.sort(rng.uniform(0, 10, 25)), rng.normal(size=25)
    vi = FactorizedVI(GaussianProcess(noise_sd=0.5), tol=1e-12).fit(np.column_stack([t, y]))
    covariance = np.exp(-0.5 * (t[:, None] - t) ** 2) + 1e-8 * np.eye(25)
    precision = np.linalg.inv(covariance) + np.eye(25) / 0.25
    latents = vi.posterior(np.column_stack([t, y]))
    exact = covariance @ np.linalg.solve(covariance + 0.25 * np.eye(25), y)
    np.testing.assert_allclose(latents.mean[:, 0], exact, atol=1e-4)
    np.testing.assert_allclose(latents.sd[:, 0], np.diag(precision) ** -0.5, rtol=1e-3)


@pytest.mark.parametrize("amplitude", [0.6, 2.0])
@pytest.mark.parametrize("lengthscale", [0.5, 1.5])
def test_gaussian_processes_are_of_their_amplitude_and_lengthscale(amplitude, lengthscale):
    """log p(z, y) by scipy, with k(t, t') = a^2 exp(-(t - t')^2 / 2 l^2), and simulated moments."""
    t, y, z = np.array([0.0, 0.4, 1.5]), np.array([0.3, -1.0, 0.7]), np.array([0.2, 0.1, -0.5])
    model = GaussianProcess(lengthscale, amplitude, noise_sd=0.4)

    def covariance(t):
        return amplitude**2 * np.exp(-((t[:, None] - t) ** 2) / (2 * lengthscale**2))

    truth = stats.multivariate_normal(np.zeros(3), covariance(t)).logpdf(z)
    truth += stats.norm(z, 0.4).logpdf(y).sum()
    X, Z = torch.as_tensor(np.column_stack([t, y])), torch.as_tensor(z)[:, None]
    assert float(model.log_joint({}, Z, X)) == pytest.approx(truth, abs=1e-5)  # the jitter
    with torch.random.fork_rng(devices=[]), defaults_of(X):
        torch.manual_seed(0)
        drawn = [model.simulate({}, 3) for _ in range(2000)]
    times = drawn[0][0][:, 0].numpy()
    np.testing.assert_allclose(times, 0.5 * lengthscale * np.arange(3))
    z = np.stack([z.numpy()[:, 0] for _, z in drawn])
    products = z[:, :, None] * z[:, None, :]
    error = np.abs(products.mean(0) - covariance(times)) / stats.sem(products)
    assert error.max() < 4.5  # of 6 numbers
    noise = np.stack([X.numpy()[:, 1] for X, _ in drawn]) - z
    assert noise.std() == pytest.approx(0.4, rel=4.5 / (2 * 6000) ** 0.5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (SawTimeSeries(), "X has 2 features, but SawTimeSeries is of 1 column"),
        (LocalLevel(), "X has 2 features, but LocalLevel is of 1 column"),
    ],
)
def test_series_of_one_column(model, message):
    with pytest.raises(ValueError, match=message):
        FactorizedVI(model).fit(np.ones((5, 2)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LocalLevel(level_sd=0.0), "level_sd must be positive"),
        (LocalLevel(noise_sd=-1.0), "noise_sd must be positive"),
        (LocalLevel(initial_sd=0.0), "initial_sd must be positive"),
        (GaussianProcess(lengthscale=0.0), "lengthscale must be positive"),
        (GaussianProcess(likelihood="gamma"), "likelihood must be one of"),
        (BayesianDecoder(0), "n_components must be >= 1"),
        (BayesianDecoder(2, (0,)), "hidden_layer_sizes must be integers >= 1"),
        (BayesianDecoder(2, likelihood="gamma"), "likelihood must be one of"),
        (BayesianDecoder(2, weight_scale=0.0), "weight_scale must be positive"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        FactorizedVI(model).fit(np.ones((5, 2)))


def test_a_series_that_begins_far_from_its_prior_is_told():
    X = np.random.default_rng(0).normal(size=(20, 1)) + 1e9
    with pytest.warns(PriorConflictWarning, match=r"initial_sd=10\): the series begins at 1e\+09"):
        FactorizedVI(LocalLevel(1.0, 1.0, initial_mean=0.0, initial_sd=10.0)).fit(X)
    FactorizedVI(LocalLevel(1.0, 1.0, initial_mean=1e9)).fit(X)  # without a word
    FactorizedVI(LocalLevel(1.0, 1.0)).fit(X)  # its prior is the data's


@pytest.mark.filterwarnings("ignore::skavi.models.CouplingBiasWarning")
def test_a_series_that_counts_twice_gives_its_variances_twice_the_data():
    """Both solvers climb one weighted ELBO; coordinate ascent's step in theta has the weights."""
    X, twice = np.cumsum(np.random.default_rng(0).normal(size=(40, 1)), 0), np.full(40, 2.0)
    model = LocalLevel(initial_mean=0.0, initial_sd=5.0)
    swept = FactorizedVI(model, solver=CoordinateAscent()).fit(X, sample_weight=twice)
    climbed = FactorizedVI(model, family=INDEPENDENT, solver=LBFGS()).fit(X, sample_weight=twice)
    alone = FactorizedVI(model, family=INDEPENDENT, solver=CoordinateAscent())
    assert alone.fit(X, sample_weight=twice).elbo_ == pytest.approx(climbed.elbo_, abs=1e-3)
    once = FactorizedVI(model, solver=CoordinateAscent()).fit(X)
    sds = [vi.global_posterior_.unconstrained_sd["noise_variance"] for vi in (swept, once)]
    assert sds[0] < 0.8 * sds[1]
