"""Shipped models: density against simulation, bounds and optima against the exact answers."""

import numpy as np
import pytest
import sklearn.decomposition
import torch
from scipy import stats
from sklearn.decomposition import PCA

from closed_forms import (
    linear_evidence,
    ppca_log_evidence,
    ppca_posterior,
    random_effects_evidence,
    random_effects_meanfield_noncentred,
)
from skavi import AmortizedVI, FactorizedVI
from skavi.distributions import Flat, defaults_of, innermost, log_prob
from skavi.families import DiagonalNormal, FullNormal
from skavi.inference_functions import Polynomial
from skavi.models import (
    BayesianDecoder,
    FactorAnalysis,
    GaussianProcess,
    LinearModel,
    LocalLevel,
    NonlinearModel,
    RandomEffects,
    SawTimeSeries,
    TopicModel,
)
from skavi.models._likelihoods import LIKELIHOODS
from skavi.objective import bind
from skavi.solvers import LBFGS, CoordinateAscent

EIGHT_SCHOOLS = np.array(
    [[28, 15], [8, 10], [-3, 16], [7, 11], [-1, 9], [1, 11], [18, 10], [12, 18]], dtype=float
)


def factor_analysis(noise, n_components=1, **scales):
    defaults = {"loading_scale": 1.0, "mean_loc": 0.5, "mean_scale": 1.0, "noise_shape": 4.0}
    return FactorAnalysis(n_components, noise, **{**defaults, "noise_scale": 2.0, **scales})


def random_effects(**arguments):
    """The model as a fit holds it: it draws standard errors from those of the data."""
    X = torch.as_tensor(EIGHT_SCHOOLS)
    return RandomEffects(**arguments).adapted(X, torch.ones(len(X)))


# Every shipped model with proper or flat globals: name -> (model, n_features).
MODELS = {
    "linear": (LinearModel(), 1),
    "nonlinear": (NonlinearModel(), 1),
    "random effects": (random_effects(mu_scale=2.0, tau_prior="half_normal"), 2),
    "random effects, centred": (
        random_effects(mu_scale=2.0, centred=True, tau_prior="half_normal"),
        2,
    ),
    "random effects, half-Cauchy": (random_effects(tau_scale=0.5), 2),
    "probabilistic PCA": (factor_analysis("isotropic"), 2),
    "factor analysis": (factor_analysis("diagonal", 2), 2),
}
each_model = pytest.mark.parametrize("name", MODELS)


# Density agrees with simulation


def prior_draw(space, flat_at=0.7):
    """Draw theta from its prior; a flat global, which has none, is put at `flat_at`."""
    return space.constrain(
        space.unconstrain(
            {
                name: torch.full(space.shapes[name], flat_at, dtype=torch.float64)
                if isinstance(innermost(prior), Flat)
                else prior.sample()
                for name, prior in space.prior.items()
            }
        )
    )


@each_model
def test_ranks_of_simulated_latents_are_uniform(name):
    """Simulate theta, z, x; the rank of z_1 under the density p(z_1 | x, theta) is uniform.

    The conditional is integrated on a grid, so nothing but `simulate` and `log_local` is used.
    """
    model, n_features = MODELS[name]
    space = model.global_space(torch.zeros(1, n_features).double())
    n_sets, n_points, ranks = 400, 2001, []
    with torch.random.fork_rng(devices=[]), defaults_of(torch.zeros(1).double()):
        torch.manual_seed(0)
        for _ in range(n_sets):
            theta = prior_draw(space)
            X, z = model.simulate(theta, 1)
            centre, spread = model.initial_locals(theta, X)
            grid = torch.linspace(-8, 8, n_points).double()
            points = z.repeat(n_points, 1)
            points[:, 0] = centre[0, 0] + spread[0, 0] * grid
            density = model.log_local(theta, points, X.repeat(n_points, 1)).softmax(0)
            below = points[:, 0] < z[0, 0]
            ranks.append(float(density[below].sum()))
    # A grid cell holds at most a few hundredths of the mass. p > 1e-3: one false alarm in 1,000.
    assert stats.kstest(ranks, "uniform").pvalue > 1e-3


@each_model
def test_the_score_has_mean_zero_under_the_joint(name):
    """E grad_(u, z) log p(theta(u), z, x) = 0: sees the scale of x given z and of the globals."""
    model, n_features = MODELS[name]
    space = model.global_space(torch.zeros(1, n_features).double())

    def log_joint(u, z, X):
        return model.log_local(space.constrain(u), z, X).sum() + space.log_prior(u)

    scores = []
    with torch.random.fork_rng(devices=[]), defaults_of(torch.zeros(1).double()):
        torch.manual_seed(1)
        for _ in range(400):
            u = space.unconstrain(prior_draw(space))
            X, z = model.simulate(space.constrain(u), 2)
            by_u, by_z = torch.func.grad(log_joint, (0, 1))(u, z, X)
            scores.append(torch.cat([by_u, by_z[0]]).numpy())
    scores = np.array(scores)
    z = scores.mean(0) / stats.sem(scores)
    assert (np.abs(z) < 4.5).all()  # at most 9 numbers a model


@each_model
def test_written_out_densities_are_the_declared_ones(name):
    model, n_features = MODELS[name]
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, model.count_latents(n_features), generator=generator, dtype=torch.float64)
    X = torch.randn(5, n_features, generator=generator, dtype=torch.float64).abs()
    space = model.global_space(X)
    theta = space.constrain(torch.randn(space.size, generator=generator, dtype=torch.float64))
    with defaults_of(X):
        declared = log_prob(model.local_prior(theta), z)
        if isinstance(model, RandomEffects):  # its likelihood reads standard errors from X
            normal = torch.distributions.Normal(model.effect(theta, z), X[:, 1])
            declared = declared + normal.log_prob(X[:, 0])
        else:
            declared = declared + log_prob(model.observation(z, theta), X)
    torch.testing.assert_close(model.log_local(theta, z, X), declared, rtol=1e-12, atol=1e-12)


@each_model
def test_predicted_means_are_those_of_simulations(name):
    model, n_features = MODELS[name]
    space = model.global_space(torch.zeros(1, n_features).double())
    with torch.random.fork_rng(devices=[]), defaults_of(torch.zeros(1).double()):
        torch.manual_seed(2)
        theta = prior_draw(space)
        X, z = model.simulate(theta, 20_000)
    left = (X - model.predicted_mean(theta, z)).numpy()
    columns = slice(0, 1) if isinstance(model, RandomEffects) else slice(None)
    left = left[:, columns]  # standard errors are given, not predicted
    assert (np.abs(left.mean(0)) < 4.5 * stats.sem(left)).all()


# Priors are those that the documentation states

SMALL, WEIGHTS = np.array([[0.0, 1.0], [2.0, 7.0], [4.0, 1.0]]), np.array([1.0, 2.0, 1.0])
FLAT = "flat"


def adapted(model, X=SMALL, weights=WEIGHTS):
    """The model as a fit holds it, its open scales taken from these rows."""
    return model.adapted(torch.as_tensor(X), torch.as_tensor(weights))


def given_scales(**arguments):
    scales = {"loading_scale": [0.5, 2.0], "mean_loc": [1.0, -1.0], "mean_scale": [3.0, 4.0]}
    return FactorAnalysis(2, "diagonal", **scales, **arguments)


LINEAR = {
    "loadings": stats.norm(0, [[0.5], [2.0]]),
    "mean": stats.norm([1.0, -1.0], [3.0, 4.0]),
}
VARIANCES = {"noise_variance": stats.invgamma(1.5, scale=np.array([0.2, 0.3]))}
DEGREES, DISPERSION = stats.gamma(2, scale=1 / 0.1), stats.expon(scale=1)
LAYERS = {f"{part}_{n}": stats.norm(0, 0.7) for n in range(3) for part in ("weight", "bias")}


def decoder(likelihood="normal", **arguments):
    return BayesianDecoder(2, (3, 4), likelihood, 0.7, **arguments)


# name -> (model, its priors). Columns of SMALL have weighted means 2 and 4 and variances 2 and 9;
# steps of the series 0, 1, 3 have the mean square 2.5, of which the prior's scale is a tenth.
STATED = {
    "linear": (LinearModel(), {"theta": FLAT}),
    "nonlinear": (NonlinearModel(), {"theta": FLAT}),
    "saw": (SawTimeSeries(), {"theta": FLAT}),
    "random effects": (
        RandomEffects(2.0, 0.5),
        {"mu": stats.norm(0, 2.0), "tau": stats.halfcauchy(scale=0.5)},
    ),
    "half-normal": (
        RandomEffects(2.0, 0.5, tau_prior="half_normal"),
        {"mu": stats.norm(0, 2.0), "tau": stats.halfnorm(scale=0.5)},
    ),
    "normal": (
        given_scales(noise_shape=1.5, noise_scale=[0.2, 0.3]),
        {**VARIANCES, **LINEAR},
    ),
    "student_t": (
        given_scales(likelihood="student_t", noise_shape=1.5, noise_scale=[0.2, 0.3]),
        {"degrees_of_freedom": DEGREES, **VARIANCES, **LINEAR},
    ),
    "negative_binomial": (
        given_scales(likelihood="negative_binomial"),
        {"dispersion": stats.expon(scale=np.ones(2)), **LINEAR},
    ),
    "isotropic, from data": (
        adapted(FactorAnalysis(1)),
        {
            "noise_variance": stats.invgamma(1, scale=0.055),
            "loadings": stats.norm(0, [[5.5**0.5]] * 2),
            "mean": stats.norm([2, 4], 10 * 5.5**0.5),
        },
    ),
    "diagonal, from data": (
        adapted(FactorAnalysis(1, "diagonal")),
        {
            "noise_variance": stats.invgamma(1, scale=np.array([0.02, 0.09])),
            "loadings": stats.norm(0, [[2**0.5], [3]]),
            "mean": stats.norm([2, 4], [10 * 2**0.5, 30]),
        },
    ),
    "poisson, from data": (
        adapted(FactorAnalysis(1, likelihood="poisson")),
        {"loadings": stats.norm(0, np.ones((2, 1))), "mean": stats.norm(np.log([2, 4]), 3)},
    ),
    "bernoulli, from data": (
        adapted(FactorAnalysis(1, likelihood="bernoulli"), SMALL / 8),
        {
            "loadings": stats.norm(0, np.ones((2, 1))),
            "mean": stats.norm(np.log([1 / 3, 1]), 3),
        },
    ),
    "decoder": (decoder(noise_sd=1.0), LAYERS),
    "decoder, noise": (
        decoder(),
        {"noise_variance": stats.invgamma(1, scale=0.01), **LAYERS},
    ),
    "decoder, student_t": (
        decoder("student_t", noise_sd=1.0),
        {"degrees_of_freedom": DEGREES, **LAYERS},
    ),
    "decoder, counts": (decoder("negative_binomial"), {"dispersion": DISPERSION, **LAYERS}),
    "local level": (
        adapted(LocalLevel(), np.array([[0.0], [1.0], [3.0]])),
        dict.fromkeys(("level_variance", "noise_variance"), stats.invgamma(1, scale=0.25)),
    ),
    "topics": (
        TopicModel(2, topic_loc=[0.5, -1.0], topic_scale=1.5),
        {"topics": stats.norm([[0.5, -1.0]] * 2, 1.5)},
    ),
    "topics, from data": (  # words are said 8 and 16 times, and half a time more
        adapted(TopicModel(2)),
        {"topics": stats.norm([np.log([8.5 / 25, 16.5 / 25])] * 2, 2.0)},
    ),
}


@pytest.mark.parametrize("name", STATED)
def test_priors_are_those_stated(name):
    """Every number's log density, by scipy, at two points of every support."""
    model, stated = STATED[name]
    prior = model.global_prior(2)
    assert list(prior) == list(stated)
    for global_, distribution in prior.items():
        shape = distribution.batch_shape + distribution.event_shape
        for at in (0.3, 2.0):
            ours = distribution.log_prob(torch.full(shape, at)).expand(shape)
            truth = 0.0 if stated[global_] is FLAT else stated[global_].logpdf(at)
            # Priors are built in single precision outside a fit.
            np.testing.assert_allclose(ours, np.broadcast_to(truth, shape), rtol=1e-5, atol=1e-6)


# Replicated rows are those of the likelihood


def of_cells(likelihood):
    """Two columns, their globals but the noise's own."""
    arguments = {"exposure": "unit"} if likelihood in ("poisson", "negative_binomial") else {}
    scales = {"loading_scale": 1.0, "mean_loc": 0.0, "mean_scale": 1.0, "noise_scale": None}
    if likelihood in ("normal", "student_t"):
        scales["noise_scale"] = 1.0
    return FactorAnalysis(1, likelihood=likelihood, **scales, **arguments), {
        "loadings": [[0.7], [-0.4]],
        "mean": [0.3, 0.1],
        "noise_variance": 0.3,
        "degrees_of_freedom": 5.0,
        "dispersion": 0.4,
    }


REPLICATED = {
    "linear": (LinearModel(), {"theta": 0.7}),
    "nonlinear": (NonlinearModel(), {"theta": 0.7}),
    "saw": (SawTimeSeries(), {"theta": 0.7}),
    "local level": (LocalLevel(0.5, 0.7), {}),
    "local level, latent variances": (LocalLevel(), {"noise_variance": 0.3}),
    "random effects": (RandomEffects(), {"mu": 0.5, "tau": 2.0}),
    "random effects, centred": (RandomEffects(centred=True), {"mu": 0.5, "tau": 2.0}),
    "Gaussian process": (GaussianProcess(noise_sd=0.3), {}),
    "Gaussian process, bernoulli": (GaussianProcess(likelihood="bernoulli"), {}),
    "Gaussian process, poisson": (GaussianProcess(likelihood="poisson"), {}),
    "decoder": (
        BayesianDecoder(1, (2,), noise_sd=0.3),
        {
            "weight_0": [[0.7, -0.4]],
            "bias_0": [0.2, 0.1],
            "weight_1": [[1.0, -0.5], [0.5, 2.0]],
            "bias_1": [0.0, 0.3],
        },
    ),
    "topics": (TopicModel(2), {"topics": [[0.3, -0.5, 1.0], [0.0, 1.0, -1.0]]}),
    **{name: of_cells(name) for name in LIKELIHOODS},
}


@pytest.mark.parametrize("name", REPLICATED)
def test_replicated_rows_have_the_density_that_is_said(name):
    """Bartlett's identities: s = d log p(x | z) / dz has mean 0 and E[s^2 + ds/dz] = 0.

    The second sees the spread of x, which the first does not.
    """
    model, theta = REPLICATED[name]
    theta = {n: torch.as_tensor(value, dtype=torch.float64) for n, value in theta.items()}
    columns = 1 if name in ("linear", "nonlinear", "saw") or "level" in name else 2
    X = torch.tensor([[3.0, 1.7], [2.0, 0.6], [1.0, 3.0]]).double()[:, :columns]
    X = torch.tensor([[5.0, 2.0, 4.0]]).double() if name == "topics" else X
    n, k = 8000, model.count_latents(columns)
    z = torch.tensor([[0.4, -0.7], [1.3, 0.2], [-0.8, 0.5]]).double()[: len(X), :k].repeat(n, 1)
    with torch.random.fork_rng(devices=[]), defaults_of(X):
        torch.manual_seed(0)
        drawn = model.replicate(theta, z, X.repeat(n, 1))
    z.requires_grad_(True)
    (score,) = torch.autograd.grad(
        model.log_likelihood(theta, z, drawn).sum(), z, create_graph=True
    )
    curvature = [torch.autograd.grad(part.sum(), z, retain_graph=True)[0] for part in score.mT]
    second = torch.stack([c[:, i] for i, c in enumerate(curvature)], 1) + score**2
    for values in (score, second):
        values = values.detach().numpy().reshape(n, -1)
        sem = np.maximum(stats.sem(values), 1e-12)
        assert np.abs(values.mean(0) / sem).max() < 4.5  # of at most 6 numbers


# Fits


@pytest.fixture(scope="module")
def column():
    return 1 + 2.7 * np.random.default_rng(0).normal(size=(40, 1))


@pytest.fixture(scope="module")
def matrix():
    rng = np.random.default_rng(1)
    Z = rng.normal(size=(60, 2))
    return Z @ rng.normal(size=(2, 4)) + 0.3 * rng.normal(size=(60, 4)) + [0, 1, 2, 3]


def forms():
    return [
        RandomEffects(centred=centred, tau_prior=tau_prior)
        for centred in (False, True)
        for tau_prior in ("half_cauchy", "half_normal")
    ]


@pytest.fixture(scope="module", params=range(8), ids=lambda i: f"case{i}")
def fits(request, column, matrix):
    """(data, F-VI, A-VI) of every shipped model: fitted once, read by several tests."""
    cases = [
        (LinearModel(), column),
        (NonlinearModel(), column[:20]),
        *((model, EIGHT_SCHOOLS) for model in forms()),
        (FactorAnalysis(2, "isotropic"), matrix),
        (FactorAnalysis(2, "diagonal"), matrix),
    ]
    model, X = cases[request.param]
    nonlinear = isinstance(model, NonlinearModel)
    amortized = AmortizedVI(model, Polynomial(3) if nonlinear else None, random_state=0)
    return X, FactorizedVI(model, random_state=0).fit(X), amortized.fit(X)


def slack(fit):
    """What two converged fits may differ by: tol nats a row, a few times over."""
    return 10 * fit.tol_ * 100 + 1e-9 * abs(fit.elbo_)


def test_factorized_is_never_below_amortized(fits):
    _, factorized, amortized = fits
    assert factorized.converged_ and amortized.converged_
    assert factorized.elbo_ >= amortized.elbo_ - slack(factorized)


def nonlinear_evidence(X):
    """Integrate theta (flat) and every z_n by the trapezoid rule."""
    z, theta = torch.linspace(-9, 9, 2001).double(), torch.linspace(-15, 15, 601).double()
    model, points, total = NonlinearModel(), z.unsqueeze(-1), torch.zeros(len(theta)).double()
    for x in torch.as_tensor(X):
        for i, at in enumerate(theta):
            density = model.log_local({"theta": at}, points, x.expand(len(z), 1))
            total[i] += density.logsumexp(0) + torch.log(z[1] - z[0])
    return float(total.logsumexp(0) + torch.log(theta[1] - theta[0]))


def evidence_or_more(model, X):
    """The log evidence; for factor analysis the largest likelihood, which is never below it."""
    if isinstance(model, LinearModel):
        return linear_evidence(X, model.tau, model.sigma)
    if isinstance(model, RandomEffects):
        return random_effects_evidence(*X.T, tau_prior=model.tau_prior)
    if isinstance(model, NonlinearModel):
        return nonlinear_evidence(X)
    rival = PCA if model.noise == "isotropic" else sklearn.decomposition.FactorAnalysis
    return rival(n_components=2).fit(X).score(X) * len(X)


def test_no_fit_is_above_the_evidence(fits):
    X, *both = fits
    bound = evidence_or_more(both[0].model_, X)
    for fit in both:
        assert fit.elbo_ <= bound + 1e-9 * abs(bound)  # rounding


def test_scores_of_training_rows_and_the_globals_make_up_the_elbo(fits):
    X, factorized, _ = fits
    objective = factorized._fitted_model.objective
    globals_ = float(objective.global_term(torch.as_tensor(factorized._raw_globals)))
    total = factorized.score_samples(X).sum() + globals_
    assert total == pytest.approx(factorized.elbo_, rel=1e-7)  # tol nats a row


# Random effects: the reference values of the issue tracker's mean-field optimum


@pytest.mark.parametrize(
    ("centred", "elbo", "location", "scale"),
    [(False, -31.59730, 0.810, 0.729), (True, -33.40405, 1.773, 0.241)],
)
def test_eight_schools_reaches_the_reference_optimum(centred, elbo, location, scale):
    vi = FactorizedVI(RandomEffects(centred=centred)).fit(EIGHT_SCHOOLS)
    q = vi.global_posterior_
    assert vi.elbo_ == pytest.approx(elbo, abs=1e-5)  # as many digits as are given
    assert q.unconstrained_mean["tau"] == pytest.approx(location, abs=0.01 * scale)
    assert q.unconstrained_sd["tau"] == pytest.approx(scale, rel=0.01)


@pytest.mark.parametrize("tau_prior", ["half_cauchy", "half_normal"])
def test_non_centred_random_effects_reach_the_independent_optimum(tau_prior):
    vi = FactorizedVI(RandomEffects(tau_prior=tau_prior)).fit(EIGHT_SCHOOLS)
    best = random_effects_meanfield_noncentred(*EIGHT_SCHOOLS.T, tau_prior=tau_prior)
    assert not vi.model_.centred  # the form with the higher ELBO
    latents, q = vi.posterior(EIGHT_SCHOOLS).latents, vi.global_posterior_
    assert vi.elbo_ == pytest.approx(best.elbo, abs=1e-6)  # tol is 1e-8 nats a row
    # A gap of 1e-7 nats moves a mean by sqrt(2e-7) = 4e-4 of its sd at most.
    np.testing.assert_allclose(latents.mean[:, 0], best.z_mean, atol=1e-3)
    np.testing.assert_allclose(latents.sd[:, 0], best.z_sd, atol=1e-3)
    ours = np.r_[q.unconstrained_mean["mu"], q.unconstrained_mean["tau"]]
    np.testing.assert_allclose(ours, best.theta_mean, atol=2e-3)


# Factor analysis: exact posteriors where the globals are known


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_latents_with_known_globals_are_the_exact_posterior(noise):
    """q(theta) a point: `local_optimum` is the exact posterior, and the bound is the evidence."""
    rng = np.random.default_rng(0)
    W, mean, X = rng.normal(size=(4, 2)), rng.normal(size=4), rng.normal(size=(5, 4))
    variance = np.array([0.7]) if noise == "isotropic" else np.array([0.3, 0.5, 0.7, 0.9])
    model, X_ = factor_analysis(noise, 2), torch.as_tensor(X)
    objective = bind(model, FullNormal(), DiagonalNormal(), X_)
    v = variance.squeeze() if noise == "isotropic" else variance
    theta = {"loadings": W, "mean": mean, "noise_variance": v}
    u = objective.space.unconstrain({n: torch.as_tensor(value) for n, value in theta.items()})
    raw_globals = torch.cat([u, torch.full_like(u, -20)])  # sd = exp(-20) = 2e-9
    q = model.local_optimum(objective.global_factor(raw_globals), X_, FullNormal())
    psi = variance * np.ones(4)
    exact = ppca_posterior(X, W, mean, psi)
    np.testing.assert_allclose(q.mean, exact.mean, rtol=1e-9)
    np.testing.assert_allclose(q.covariance()[0], exact.cov, rtol=1e-9)
    rows = objective.row_terms(FullNormal().raw(q), raw_globals, X_, None)
    np.testing.assert_allclose(rows, ppca_log_evidence(X, W, mean, psi), rtol=1e-9)
    narrow = model.local_optimum(objective.global_factor(raw_globals), X_, DiagonalNormal())
    np.testing.assert_allclose(narrow.mean, exact.mean, rtol=1e-9)
    np.testing.assert_allclose(narrow.sd[0] ** -2, np.diag(np.linalg.inv(exact.cov)), rtol=1e-9)


def test_latents_of_a_fit_on_much_data_are_the_exact_posterior_at_its_globals():
    """With 100,000 rows q(theta) is all but a point: means to 1e-4 of the posterior's sd."""
    rng = np.random.default_rng(0)
    W = rng.normal(size=(6, 2))
    X = rng.normal(size=(100_000, 2)) @ W.T + 0.5 * rng.normal(size=(100_000, 6))
    vi = FactorizedVI(FactorAnalysis(2), family=FullNormal()).fit(X)
    q = vi.global_posterior_.mean
    exact = ppca_posterior(X[:50], q["loadings"], q["mean"], float(q["noise_variance"].squeeze()))
    latents = vi.posterior(X[:50])
    np.testing.assert_allclose(latents.mean, exact.mean, atol=1e-4)
    covariance = latents.scale[0] @ latents.scale[0].T
    np.testing.assert_allclose(covariance, exact.cov, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_a_richer_local_family_is_never_below(noise, matrix):
    model = FactorAnalysis(2, noise)
    diagonal = FactorizedVI(model, tol=1e-11).fit(matrix).elbo_
    full = FactorizedVI(model, family=FullNormal(), tol=1e-11).fit(matrix).elbo_
    assert full >= diagonal - 1e-8


def test_a_richer_global_family_is_never_below():
    """Few globals, all coupled by the data: mu and log tau."""
    model = RandomEffects()
    diagonal = FactorizedVI(model).fit(EIGHT_SCHOOLS).elbo_
    full = FactorizedVI(model, global_family=FullNormal()).fit(EIGHT_SCHOOLS).elbo_
    assert diagonal + 1e-4 < full <= random_effects_evidence(*EIGHT_SCHOOLS.T)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
@pytest.mark.parametrize("memory", [0, 8])
def test_coordinate_ascent_never_lowers_the_elbo(noise, memory, matrix):
    vi = FactorizedVI(FactorAnalysis(2, noise), solver=CoordinateAscent(memory), tol=1e-6)
    curve = vi.fit(matrix).elbo_curve_
    assert len(curve) > 3
    assert (np.diff(curve) >= -1e-10 * np.abs(curve[1:])).all()  # rounding


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_coordinate_ascent_and_lbfgs_find_one_optimum(noise, matrix):
    fits = [
        FactorizedVI(FactorAnalysis(2, noise), solver=solver, tol=1e-12).fit(matrix)
        for solver in (CoordinateAscent(), LBFGS(), CoordinateAscent(memory=0))
    ]
    assert fits[1].elbo_ == pytest.approx(fits[0].elbo_, rel=1e-8)
    assert fits[2].elbo_ == pytest.approx(fits[0].elbo_, rel=1e-8)


def test_row_weights_count_rows(matrix):
    """Weight 2 is the row twice, weight 0 no row; prior scales are given, so all else is equal."""
    model = factor_analysis("isotropic", 2)
    weights = np.arange(60) % 3
    weighted = FactorizedVI(model, tol=1e-11).fit(matrix, sample_weight=weights)
    repeated = FactorizedVI(model, tol=1e-11).fit(np.repeat(matrix, weights, axis=0))
    assert weighted.elbo_ == pytest.approx(repeated.elbo_, rel=1e-10)
