"""Likelihoods: densities that are densities, of the moments they say, and posteriors that recover.

Truth: sums and quadrature of the density, its declared distribution, simulation, and nested
Gauss-Hermite rules for expectations under a normal predictor.
"""

import warnings

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_sample_weight_equivalence_on_dense_data
from torch.distributions import Normal, Poisson

from closed_forms import ppca_log_evidence
from seeds import seeds
from skavi import AmortizedVI, FactorizedVI
from skavi._data.missing_cells import Cells
from skavi._numerics.quadrature import product_rule
from skavi.distributions import defaults_of
from skavi.families import DiagonalNormal, FullFactors, FullNormal
from skavi.inference_functions import MLP, Polynomial
from skavi.models import (
    BayesianDecoder,
    FactorAnalysis,
    GaussianProcess,
    HierarchicalModel,
    LocalLevel,
    UnusedLatentsWarning,
)
from skavi.models._likelihoods import LIKELIHOODS
from skavi.models._noise_factors import NoiseFactors
from skavi.noise import GaussHermite, MonteCarlo, QuasiMonteCarlo
from skavi.objective import Objective
from skavi.solvers import Adam

NAMES = list(LIKELIHOODS)
DISCRETE = {"bernoulli": 2, "poisson": 400, "negative_binomial": 4000}  # values that matter
THETA = {
    "noise_variance": torch.tensor(0.5).double(),
    "degrees_of_freedom": torch.tensor(4.5).double(),
    "dispersion": torch.tensor(0.7).double(),
}
each_likelihood = pytest.mark.parametrize("name", NAMES)


def log_density(name, x, eta):
    """Log density of each x for one eta, by `log_rows` of one cell a row."""
    x = torch.as_tensor(x, dtype=torch.float64).reshape(-1, 1)
    cells = Cells.of(x)
    eta = torch.full_like(x, eta)
    return LIKELIHOODS[name].log_rows(cells, eta, THETA)


@each_likelihood
@pytest.mark.parametrize("eta", [-1.0, 0.3, 2.0])
def test_densities_sum_to_one_and_have_their_moments(name, eta):
    """Sums over all values that matter, adaptive quadrature over the whole line."""
    cell = LIKELIHOODS[name]
    one = torch.tensor([[eta]]).double()
    mean, variance = float(cell.mean(one, THETA)), float(cell.variance(one, THETA))
    if name in DISCRETE:
        x = np.arange(DISCRETE[name])
        p = log_density(name, x, eta).exp().numpy()
        moments = [(p * x**j).sum() for j in range(3)]
    else:
        halves = (-np.inf, eta), (eta, np.inf)
        moments = [
            sum(integrate.quad(_weighted_density, *half, (name, eta, j))[0] for half in halves)
            for j in range(3)
        ]
    assert moments[0] == pytest.approx(1, abs=1e-8)
    assert moments[1] == pytest.approx(mean, abs=1e-7)
    assert moments[2] - moments[1] ** 2 == pytest.approx(variance, rel=1e-6)


@each_likelihood
def test_written_out_densities_are_the_declared_ones(name):
    generator = torch.Generator().manual_seed(0)
    eta = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    cell = LIKELIHOODS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        x = cell.distribution(eta, THETA).sample()
    declared = cell.distribution(eta, THETA).log_prob(x)
    torch.testing.assert_close(
        cell.log_rows(Cells.of(x), eta, THETA), declared.sum(-1), rtol=1e-11, atol=1e-11
    )


@each_likelihood
def test_missing_cells_leave_the_others_as_they_were(name):
    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]]).double()
    eta = torch.tensor([[0.3, -1.0, 0.5]]).double().expand(3, 3)
    holes = x.clone()
    holes[0, 1] = holes[2, :] = torch.nan
    seen = LIKELIHOODS[name].log_rows(Cells.of(holes), eta, THETA)
    each = torch.stack([log_density(name, x[:, d], float(eta[0, d])) for d in range(3)], 1)
    torch.testing.assert_close(seen, torch.where(holes.isnan(), 0.0, each).sum(1))


@each_likelihood
def test_expectations_under_a_normal_predictor(name):
    """Against a rule of 200 nodes; the 9 in use lose 1e-5 at an sd of 0.6, exact ones nothing."""
    cell, x = LIKELIHOODS[name], torch.tensor([[0.0, 1.0, 1.0]]).double()
    mean = torch.tensor([[0.2, -1.0, 2.0]]).double()
    sd = torch.tensor([[0.6, 0.3, 0.1]]).double()
    value = cell.expected_log_rows(Cells.of(x), mean, sd**2, THETA)
    nodes, weights = np.polynomial.hermite_e.hermegauss(100)
    fine = sum(
        w * cell.log_rows(Cells.of(x), mean + sd * node, THETA)
        for node, w in zip(nodes, weights / weights.sum(), strict=True)
    )
    torch.testing.assert_close(value, fine, rtol=0, atol=2e-5 if name == "student_t" else 1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if LIKELIHOODS[name].bends])
def test_expectations_under_a_normal_predictor_and_normal_logs_of_the_noise(name):
    """Against finer rules; 7 for the noise lose 4e-8 at sds of 0.5, 9 for eta more."""
    cell, x = LIKELIHOODS[name], torch.tensor([[0.0, 1.0, 1.0]]).double()
    mean, sd = torch.tensor([[[0.2, -1.0, 2.0]], [[0.6, 0.3, 0.1]]]).double()
    own = cell.own_globals
    centres = torch.tensor([float(THETA[name].log()) for name in own]).double().expand(3, -1)
    sds = torch.tensor([0.5, 0.3]).double()[: len(own)].expand(3, -1)
    noise = NoiseFactors(centres, sds)
    value = cell.expected_rows_over_noise(Cells.of(x), mean, sd**2, noise)
    nodes, weights = map(torch.as_tensor, product_rule((40,) + (20,) * len(own)))
    moved = centres + noise.sd * nodes[:, None, 1:]
    theta = dict(zip(own, moved.exp().unbind(-1), strict=True))
    eta = mean + sd * nodes[:, :1]
    fine = (weights @ cell.log_rows(Cells.of(x.expand_as(eta)), eta, theta))[None]
    torch.testing.assert_close(value, fine, rtol=0, atol=2e-5 if name == "student_t" else 1e-6)


def _weighted_density(x, name, eta, power):
    return x**power * float(log_density(name, [x], eta).exp())


# Factor analysis

PRIOR = {"loading_scale": 1.0, "mean_loc": 0.0, "mean_scale": 2.0}


def factor_analysis(name, **arguments):
    has_variance = LIKELIHOODS[name].has_variance
    noise = {"noise_scale": 1.0} if has_variance else {}
    exposure = {"exposure": "unit"} if LIKELIHOODS[name].counts else {}
    return FactorAnalysis(1, likelihood=name, **{**PRIOR, **noise, **exposure, **arguments})


@each_likelihood
@pytest.mark.parametrize("family", [DiagonalNormal(), FullNormal()], ids=repr)
def test_integrating_the_linear_globals_out_changes_no_expectation(name, family):
    """Nodes over z and the noise with W and m integrated, against draws of everything.

    With a full q(theta) the noise is correlated with W and m, so `given_first` has to be right.
    """
    model, generator = factor_analysis(name), torch.Generator().manual_seed(3)
    X = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]).double()
    space = model.global_space(X)
    objective = Objective(model, space, DiagonalNormal(), family, 1)
    scale = 0.15 * torch.randn(space.size, space.size, generator=generator, dtype=torch.float64)
    scale = scale.tril(-1) + 0.3 * torch.eye(space.size)
    raw_globals = family.raw(FullFactors(0.5 * scale.sum(0), scale))
    raw = torch.tensor([[0.3, -0.5], [1.0, 0.0], [-0.4, -1.0]]).double()
    q, factors = objective.global_factor(raw_globals), objective.local_factors(raw)
    n_draws = 200_000
    u = q.draw(torch.randn(n_draws, space.size, generator=generator, dtype=torch.float64))
    z = factors.draw(torch.randn(n_draws, 3, 1, generator=generator, dtype=torch.float64))
    with defaults_of(X):
        draws = torch.func.vmap(lambda u, z: model.log_local(space.constrain(u), z, X))(u, z)
    nodes = _product_nodes(objective)
    expected = objective.expected_log_terms(factors, q, X, nodes)
    error = draws.std(0) / n_draws**0.5
    assert ((expected - draws.mean(0)).abs() < 4.5 * error).all()


def _product_nodes(objective):
    return GaussHermite(12).nodes(objective.n_drawn_globals, 1, 1, None)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("normal", "poisson")])
def test_other_likelihoods_claim_no_closed_form(name):
    families = DiagonalNormal(), DiagonalNormal()
    assert not factor_analysis(name).has_closed_form(*families)
    assert not factor_analysis(name).has_coordinate_updates(*families)
    assert factor_analysis("normal").has_coordinate_updates(*families)


def simulated(name, n_rows=300, n_features=6, seed=0):
    """Rows of known loadings, means and noise; loadings that identify the latent's sign."""
    rng = np.random.default_rng(seed)
    loadings, mean = rng.uniform(0.4, 1.0, n_features), rng.normal(size=n_features) * 0.5 + 0.5
    theta = {k: v for k, v in THETA.items()} | {
        "loadings": torch.as_tensor(loadings)[:, None],
        "mean": torch.as_tensor(mean),
    }
    with torch.random.fork_rng(devices=[]), defaults_of(theta["mean"]):
        torch.manual_seed(seed)
        X, _ = factor_analysis(name).simulate(theta, n_rows, n_features)
    return X.numpy(), {n: v.numpy() for n, v in theta.items()}


RECOVERED = [pytest.param(n, marks=pytest.mark.slow) if n == "student_t" else n for n in NAMES]


@pytest.mark.parametrize("name", RECOVERED)
def test_parameters_are_recovered_within_posterior_error(name):
    """Mean-field sds are too narrow for parameters that z couples: five of them, for 14 numbers.

    A wrong link, scale or dispersion would be tens of sds away with 300 rows.
    """
    X, truth = simulated(name)
    vi = FactorizedVI(factor_analysis(name), tol=1e-6, random_state=0).fit(X)
    q = vi.global_posterior_
    sign = np.sign(q.mean["loadings"].sum())
    for global_, sd in q.sd.items():
        mean = q.mean[global_] * (sign if global_ == "loadings" else 1)
        error = np.abs(mean - truth[global_]) / sd
        assert error.max() < 5, (global_, error)


@pytest.mark.changes_globals
@pytest.mark.parametrize("estimator", [FactorizedVI, AmortizedVI])
@pytest.mark.parametrize("name", ["bernoulli", "poisson"])
def test_weights_are_repeated_rows(name, estimator):
    """scikit-learn's check, at its own tolerance of 1e-9.

    Its data has no factor, so that the latents' exact means are 0: they are as far from it as the
    fit is from its optimum. The default tol leaves 4e-8, this one 3e-10; networks that read a
    summary of rows end 3e-9 off, so that a linear function stands for them.
    """
    vi = estimator(FactorAnalysis(1, likelihood=name), tol=1e-10)
    if estimator is AmortizedVI:
        vi.set_params(inference_function=Polynomial(degree=1))
    check_sample_weight_equivalence_on_dense_data(estimator.__name__, vi)


@pytest.mark.parametrize("name", ["bernoulli", "negative_binomial"])
def test_functions_read_nearly_the_factor_and_keep_the_factorized_globals(name):
    """The network starts within its tolerance, and q(theta) is where factorized VI has it.

    Functions of the cells themselves did not end in minutes (counts).
    """
    X = simulated(name)[0][:120]
    model = FactorAnalysis(1, likelihood=name)
    factorized, amortized = (vi(model, random_state=0).fit(X) for vi in (FactorizedVI, AmortizedVI))
    assert amortized.converged_
    assert factorized.elbo_ - amortized.elbo_ < 2e-3 * len(X)
    assert amortized.n_iter_ <= 30
    pair = factorized.global_posterior_, amortized.global_posterior_
    for each in pair[0].mean:
        np.testing.assert_allclose(pair[1].mean[each], pair[0].mean[each], atol=1e-4)
    read = amortized.model_.summary(torch.as_tensor(X, dtype=torch.float64))[:, :1].numpy()
    own = factorized.posterior(X)
    assert np.abs((read - own.mean) / own.sd).max() < 0.5  # a mode, not a mean


@pytest.mark.parametrize("name", ["poisson", "negative_binomial"])
def test_exposure_is_read_from_the_row_alone(name):
    """Rows times 10 have other totals but the same composition: nearly the same latents."""
    model = FactorAnalysis(1, likelihood=name, **PRIOR)
    X = torch.tensor([[20.0, 40.0, 20.0], [2.0, 4.0, 2.0], [0.0, 0.0, 0.0]]).double()
    # mean_loc = 0: a row of exposure one has an expected total of 3.
    expected = (torch.tensor([[80.0], [8.0], [0.5]]).double() / 3).log()
    torch.testing.assert_close(model.log_exposure(X), expected)
    X[0, 1] = torch.nan
    assert float(model.log_exposure(X)[0]) == pytest.approx(np.log(40 / 2))
    X[0] = torch.nan
    assert float(model.log_exposure(X)[0]) == 0
    unit = FactorAnalysis(1, likelihood=name, exposure="unit", **PRIOR)
    assert unit.log_exposure(X) == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "poisson",
            -1.0,
            "X has 3 negative entries .first at row 17, column 2., but .* >= 0",
        ),
        ("negative_binomial", -0.5, "negative entries"),
        ("bernoulli", 2.0, "X has 3 entries outside 0 to 1 .first at row 17, column 2."),
    ],
)
def test_cells_outside_the_support_are_named(name, value, message):
    X = np.ones((30, 4))
    X[17, 2] = X[18, 0] = X[25, 3] = value
    with pytest.raises(ValueError, match=message):
        FactorizedVI(FactorAnalysis(1, likelihood=name)).fit(X)
    fit = FactorizedVI(FactorAnalysis(1, likelihood=name), max_iter=3, tol=10).fit(np.abs(X) % 2)
    with pytest.raises(ValueError, match=message):
        fit.transform(X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"likelihood": "gamma"}, "likelihood must be one of"),
        ({"exposure": "rows"}, "exposure must be"),
        ({"exposure": "total"}, "only counts have totals"),
        ({"likelihood": "poisson", "noise": "diagonal"}, "no such parameter"),
        ({"likelihood": "bernoulli", "noise_scale": 1.0}, "no such parameter"),
    ],
)
def test_arguments_that_do_not_apply_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FactorizedVI(FactorAnalysis(1, **arguments)).fit(np.ones((5, 2)))


# Decoders


def decoder(name, **arguments):
    exposure = {"exposure": "unit"} if LIKELIHOODS[name].counts else {}
    return BayesianDecoder(1, (3,), name, output_loc=0.0, **{**exposure, **arguments})


@each_likelihood
@pytest.mark.parametrize("weights", seeds("posterior", "point"))
def test_decoders_fit_sample_and_predict(name, weights):
    X = np.random.default_rng(0).poisson(0.6, size=(40, 4)).clip(0, 1).astype(float)
    rules = {"noise": MonteCarlo(4), "solver": Adam(learning_rate=0.05)}
    model = BayesianDecoder(1, (3,), name, weights=weights)
    vi = AmortizedVI(model, MLP((4,)), max_iter=300, random_state=0, **rules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UnusedLatentsWarning)  # columns have nothing in common
        vi.fit(X)
    sds = np.concatenate([sd.ravel() for sd in vi.global_posterior_.sd.values()])
    # Of a constrained global the sd is that of nodes which all are the same number, to rounding.
    assert (sds < 1e-12).all() if weights == "point" else (sds > 1e-3).all()
    drawn, Z = vi.sample(500, random_state=0)
    assert drawn.shape == (500, 4) and Z.shape == (500, 1)
    if name in DISCRETE:
        assert (drawn == np.round(drawn)).all() and (drawn >= 0).all()
    means = vi.inverse_transform(vi.transform(X))
    # Means of the rows' own latents are, on average, those of the data: biases are free.
    np.testing.assert_allclose(means.mean(0), X.mean(0), atol=0.3)


def test_a_point_estimate_is_the_limit_of_a_narrow_posterior():
    """The bound of a narrow q(theta) less its entropy is the point's objective."""
    X = torch.as_tensor(np.random.default_rng(0).normal(size=(5, 2)))
    narrow, point = decoder("normal"), decoder("normal", weights="point")
    space = narrow.global_space(X)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(space.size, generator=generator, dtype=torch.float64)
    raw = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    wide = torch.cat([u, torch.full_like(u, -15.0)])
    family = DiagonalNormal()
    one = Objective(narrow, space, family, family, 1)
    other = Objective(point, space, family, point.global_family(None), 1)
    assert (one.n_drawn_globals, other.n_drawn_globals) == (space.size, 0)
    ones, nodes = torch.ones(5).double(), QuasiMonteCarlo(512)
    drawn, held = nodes.nodes(space.size, 1, 1, None), nodes.nodes(0, 1, 1, None)
    left = one.summed(one.row_terms(raw, wide, X, drawn), wide, ones)
    right = other.summed(other.row_terms(raw, u, X, held), u, ones)
    entropy = one.global_factor(wide).entropy()
    # Other points for z: 512 of them on a function with a kink.
    torch.testing.assert_close(left - entropy, right, rtol=0, atol=0.05)


def test_point_weights_take_no_family():
    model = BayesianDecoder(1, (2,), weights="point")
    with pytest.raises(ValueError, match=r"no q\(theta\) of the family FullNormal"):
        FactorizedVI(model, global_family=FullNormal()).fit(np.ones((4, 2)))
    with pytest.raises(ValueError, match='weights must be "posterior" or "point"'):
        FactorizedVI(BayesianDecoder(1, (2,), weights="none")).fit(np.ones((4, 2)))
    with pytest.raises(ValueError, match="no such parameter"):
        FactorizedVI(BayesianDecoder(1, (2,), "poisson", noise_sd=2.0)).fit(np.ones((4, 2)))


def test_decoders_learn_their_noise_if_asked():
    model = decoder("normal", noise_sd=None)
    assert next(iter(model.global_prior(2))) == "noise_variance"
    X = torch.zeros(3, 2).double()
    theta = model.global_space(X).constrain(torch.zeros(model.global_space(X).size).double())
    fixed = decoder("normal", noise_sd=2.0)
    theta["noise_variance"] = torch.tensor(4.0).double()
    z = torch.ones(3, 1).double()
    same = model.log_likelihood(theta, z, X), fixed.log_likelihood(theta, z, X)
    torch.testing.assert_close(*same, rtol=1e-12, atol=0)


# The predictive density


def known_ppca(**arguments):
    """Rows, and a fit whose q(theta) has been put on the truth: sds of exp(-20)."""
    rng = np.random.default_rng(0)
    loadings, mean = rng.normal(size=(4, 2)), rng.normal(size=4)
    X = rng.normal(size=(30, 2)) @ loadings.T + mean + 0.7 * rng.normal(size=(30, 4))
    vi = FactorizedVI(FactorAnalysis(2), **arguments).fit(X)
    theta = {"loadings": loadings, "mean": mean, "noise_variance": np.float64(0.49)}
    space = vi.model_.global_space(torch.as_tensor(X))
    u = space.unconstrain({n: torch.as_tensor(v) for n, v in theta.items()})
    vi._raw_globals = torch.cat([u, torch.full_like(u, -20)]).numpy()
    return X, vi, ppca_log_evidence(X, loadings, mean, 0.49 * np.ones(4))


@pytest.mark.parametrize("family", [None, FullNormal()])
def test_no_looseness_of_the_bound_enters_the_predictive_density(family):
    """Diagonal q(z) leaves the ELBO 0.15 nats a row below; q(theta)'s sds of 2e-9 move 1e-7."""
    X, vi, evidence = known_ppca(family=family)
    assert family is not None or float((evidence - vi.score_samples(X)).min()) > 0.15
    for n_draws in (2, 3, 65):
        np.testing.assert_allclose(vi.score_samples(X, n_draws=n_draws), evidence, atol=1e-6)
    few, every = vi.score_samples(X[3:5], n_draws=8), vi.score_samples(X, n_draws=8)
    np.testing.assert_allclose(few, every[3:5], rtol=1e-13)


class FiveCounts(HierarchicalModel):
    """x_j ~ Poisson(exp(z_j)), each of five latents of its own: a row is a product of integrals."""

    n_latents = 5

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta):
        return Normal(torch.zeros(5), 1.0)

    def likelihood(self, z, theta):
        return Poisson(z.exp())


def test_many_latents_have_the_importance_weighted_bound():
    X = np.random.default_rng(0).poisson(2.0, size=(16, 5)).astype(float)
    vi = FactorizedVI(FiveCounts(), family=DiagonalNormal()).fit(X)
    grid = np.linspace(-9, 9, 2001)
    cells = stats.norm.pdf(grid) * stats.poisson.pmf(X[..., None], np.exp(grid))
    evidence = np.log(cells.sum(-1) * 18 / 2000).sum(-1)
    found = vi.score_samples(X, n_draws=1024)
    assert (evidence - vi.score_samples(X)).min() > 0.03
    np.testing.assert_allclose(found, evidence, atol=0.03)  # three standard errors
    two, three = (vi.score_samples(X, n_draws=n_draws) for n_draws in (2, 3))
    np.testing.assert_allclose(three, two, rtol=1e-12)  # draws come in pairs: of three two count


@pytest.mark.filterwarnings("ignore::skavi.models.CouplingBiasWarning")
def test_a_series_predictive_density_is_shared_by_its_rows():
    X = np.cumsum(np.random.default_rng(0).normal(size=(30, 1)), 0)
    chain = FactorizedVI(LocalLevel(0.7, 1.2)).fit(X)
    loose = FactorizedVI(LocalLevel(0.7, 1.2), family=DiagonalNormal()).fit(X)
    assert chain.elbo_ > loose.elbo_ + 1
    for vi in (chain, loose):
        terms = vi.score_samples(X, n_draws=4)
        np.testing.assert_allclose(terms, chain.elbo_ / 30, atol=1e-8)


def test_the_predictive_density_needs_draws_and_terms_of_rows():
    X, vi, _ = known_ppca()
    with pytest.raises(ValueError, match="n_draws=1 must be None or an integer >= 2"):
        vi.score_samples(X, n_draws=1)
    times = np.column_stack([np.arange(6.0), np.arange(6.0)])
    joint = FactorizedVI(GaussianProcess()).fit(times)
    with pytest.raises(ValueError, match="n_draws=10 needs a term a row"):
        joint.score_samples(times, n_draws=10)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
@pytest.mark.parametrize("likelihood", sorted(LIKELIHOODS))
def test_a_start_has_the_shapes_of_the_priors(likelihood, noise):
    X = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).double()
    model = FactorAnalysis(1, noise, likelihood=likelihood).adapted(X, X.new_ones(4))
    start = model.initial_globals(X, X.new_ones(4))
    shapes = model.global_space(X).shapes
    assert {name: value.shape for name, value in start.items()} == dict(shapes)
