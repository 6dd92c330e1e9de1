"""Mixtures: expectations by draws of theta, missing cells, counts, and scikit-learn's mixture."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits, load_iris
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import BayesianGaussianMixture

import skavi
from skavi import AmortizedVI, FactorizedVI, amortization_gap
from skavi.families import DiagonalFactors, DiagonalNormal
from skavi.inference_functions import Polynomial
from skavi.models import MixtureModel
from skavi.objective import bind

IRIS, KINDS = load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def iris():
    return FactorizedVI(MixtureModel(3), random_state=0).fit(IRIS)


@pytest.mark.parametrize(
    ("likelihood", "covariance"),
    [
        ("normal", "diagonal"),
        ("normal", "tied"),
        ("normal", "full"),
        ("poisson", "diagonal"),
        ("bernoulli", "diagonal"),
        ("student_t", "diagonal"),
        ("negative_binomial", "diagonal"),
    ],
)
def test_closed_forms_are_means_over_draws_of_theta(likelihood, covariance):
    """To 4 standard errors of 200 draws; of a covariance, rows with holes have a lower bound."""
    generator = torch.Generator().manual_seed(0)
    X = (3 * torch.rand(5, 2, generator=generator, dtype=torch.float64)).round()
    X = X.clamp_max(1) if likelihood == "bernoulli" else X
    X[0, 1] = torch.nan
    model = MixtureModel(3, likelihood, covariance).adapted(X, torch.ones(5).double())
    objective = bind(model, None, DiagonalNormal(), X)
    raw = 0.3 * torch.randn(objective.space.size, generator=generator, dtype=torch.float64)
    q = objective.global_factor(torch.cat([raw, torch.full_like(raw, -1.5)]))
    noise = torch.randn(200, len(raw), generator=generator, dtype=torch.float64)
    thetas = [objective.space.constrain(u) for u in q.draw(noise)]
    draws = torch.stack([objective.log_joints_at(theta, X) for theta in thetas])
    error = draws.std(0) / len(draws) ** 0.5
    away = (objective.expected_log_joints(q, X, None) - draws.mean(0)) / error
    whole = slice(1 if covariance != "diagonal" else 0, None)
    assert away[whole].abs().max() < 4
    assert away.max() < 4
    priors = torch.stack([objective.space.log_prior(u) for u in q.draw(noise)])
    away = (objective.space.expected_log_prior(q) - priors.mean()).abs()
    assert away < 4 * priors.std() / len(priors) ** 0.5


@pytest.mark.xfail(reason="0.745 at the highest ELBO, 0.818 a third of a nat below", strict=True)
def test_clusters_are_those_of_scikit_learn(iris):
    """Its index is .77: no more than .02 below."""
    other = BayesianGaussianMixture(
        n_components=3, covariance_type="diag", max_iter=1000, random_state=0
    ).fit(IRIS)
    ours, theirs = (adjusted_rand_score(KINDS, m.predict(IRIS)) for m in (iris, other))
    assert ours >= theirs - 0.02


def test_probabilities_and_weights_sum_to_one(iris):
    assert iris.converged_
    assert iris.global_posterior_.mean["weights"].sum() == pytest.approx(1.0, abs=1e-3)
    assert list(iris.get_feature_names_out()) == ["component0", "component1", "component2"]
    np.testing.assert_allclose(iris.transform(IRIS).sum(1), 1)


@pytest.mark.parametrize("covariance", ["diagonal", "tied", "full"])
def test_probabilities_are_those_of_bayes_rule_where_theta_is_known(covariance):
    """Of rows with and without holes: probabilities to 1e-6, the ELBO to 1e-8 nats a row."""
    rng = np.random.default_rng(0)
    model = MixtureModel(3, covariance=covariance).adapted(
        torch.as_tensor(IRIS), torch.ones(150).double()
    )
    space = model.global_space(torch.as_tensor(IRIS))
    theta = space.constrain(space.start(torch.Generator().manual_seed(0))[0].double())
    root = rng.normal(size=(3, 4, 4))
    sigma = root @ root.swapaxes(1, 2) + np.eye(4)
    sigma = {"tied": sigma[0], "full": sigma}.get(covariance, sigma.diagonal(0, 1, 2).copy())
    name = "variances" if covariance == "diagonal" else "covariances"
    theta |= {name: torch.as_tensor(sigma), "means": torch.as_tensor(rng.normal(3, 2, (3, 4)))}
    X = IRIS[::30].copy()
    X[0, 1] = X[1, [0, 3]] = np.nan
    log_joint = np.empty((len(X), 3))
    for n, k in np.ndindex(*log_joint.shape):
        seen = ~np.isnan(X[n])
        own = {"tied": sigma, "full": sigma[k]}.get(covariance, np.diag(sigma[k]))
        density = multivariate_normal(theta["means"][k].numpy()[seen], own[np.ix_(seen, seen)])
        log_joint[n, k] = density.logpdf(X[n, seen]) + float(theta["weights"][k].log())
    objective = bind(model, None, DiagonalNormal(), torch.as_tensor(X))
    raw = torch.cat([space.unconstrain(theta), torch.full((space.size,), -20.0).double()])
    terms = objective.row_terms(torch.zeros(len(X), 0).double(), raw, torch.as_tensor(X), None)
    np.testing.assert_allclose(terms, np.logaddexp.reduce(log_joint, 1), rtol=0, atol=1e-8)
    _, factors, _ = objective.optimum(raw, torch.as_tensor(X), None)
    expected = np.exp(log_joint - np.logaddexp.reduce(log_joint, 1, keepdims=True))
    np.testing.assert_allclose(factors.mean, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("covariance", ["diagonal", "tied", "full"])
def test_components_are_ordered_by_weight(covariance):
    """Of rows that k-means puts in the other order: of 60 wide and 50 tight rows it takes some."""
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(0, [2.0, 1.0], (60, 2)), rng.normal(2.5, 0.4, (50, 2))])
    model = MixtureModel(2, covariance=covariance)
    vi = FactorizedVI(model, random_state=0, n_init=1).fit(X)
    assert vi.converged_
    assert np.all(np.diff(vi.global_posterior_.mean["weights"]) <= 0)
    ordered = vi._fitted_model.objective
    q = ordered.global_factor(torch.as_tensor(vi._raw_globals))
    n, order = ordered.space.slices["weights"].stop, torch.tensor([1, 0])
    own = [ordered.model.emissions.permuted(each[n:], order, 2) for each in (q.mean, q.sd)]
    other = DiagonalFactors(torch.cat([-q.mean[:n], own[0]]), torch.cat([q.sd[:n], own[1]]))
    again = ordered.model.in_order(other, 2)
    np.testing.assert_allclose(again.mean[n:], q.mean[n:])
    np.testing.assert_allclose(again.mean[:n], q.mean[:n], atol=0.01)  # a start: means alone


def test_one_component_is_the_rows_own_normal():
    """Its means are the columns', where the prior is centred."""
    vi = FactorizedVI(MixtureModel(1), random_state=0).fit(IRIS)
    means = vi.global_posterior_.mean["means"][0]
    np.testing.assert_allclose(means, IRIS.mean(0), rtol=1e-3)
    np.testing.assert_array_equal(vi.transform(IRIS), 1)


def test_priors_left_open_are_the_rows_own_spread():
    """Inverse Wishart of d + 2 degrees of freedom, scale S / K^(2/d): Fraley & Raftery (2007).

    Of one column that is an inverse gamma of shape 3/2 and half the scale. S is the covariance with
    a thousandth of the variances added.
    """
    X, ones = torch.as_tensor(IRIS), torch.ones(150, dtype=torch.float64)
    full, own = (MixtureModel(3, covariance=name).adapted(X, ones) for name in ("full", "diagonal"))
    S = np.cov(IRIS.T, bias=True) + 1e-3 * np.diag(IRIS.var(0))
    np.testing.assert_allclose(2 * full.variance_scale, S / 3**0.5)
    np.testing.assert_allclose(2 * own.variance_scale, IRIS.var(0) / 3**0.5)
    assert 2 * full.variance_shape + 4 - 1 == 4 + 2
    np.testing.assert_allclose(full.mean_scale, IRIS.std(0))


@pytest.mark.parametrize("covariance", ["diagonal", "tied", "full"])
def test_a_column_of_one_value_has_the_scale_of_one_unit(covariance):
    """Half of 1 over K^(2 / d), and a thousandth of it; the other column's is its own."""
    X = torch.tensor([[7.0, 1.0], [7.0, 5.0], [7.0, 3.0]], dtype=torch.float64)
    ones = torch.ones(3, dtype=torch.float64)
    scale = MixtureModel(2, covariance=covariance).adapted(X, ones).variance_scale
    more = 1.0 if covariance == "diagonal" else 1.001
    known = 0.25 * more * np.array([1.0, 8 / 3])
    np.testing.assert_allclose(scale if covariance == "diagonal" else np.diag(scale), known)


def test_a_covariance_that_holes_spoil_counts_for_less():
    """Pairs (1, 2) and (1, 3) agree, (2, 3) disagree: eigenvalues 2, 2, -1 of correlations -+1.

    No matrix has them. It is lifted by what it lacks: to 3, 3, 0, and a thousandth.
    """
    nan = np.nan
    X = [[1, 1, nan], [-1, -1, nan], [1, nan, 1], [-1, nan, -1], [nan, 1, -1], [nan, -1, 1]]
    X = torch.tensor(X, dtype=torch.float64)
    model = MixtureModel(1, covariance="full").adapted(X, torch.ones(6, dtype=torch.float64))
    known = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1]]) + 1.001 * np.eye(3)
    np.testing.assert_allclose(2 * model.variance_scale, known, atol=1e-12)


def test_clusters_are_not_lost_at_the_start():
    """The agreement is .62; where q(means) starts ten times as wide it is .27."""
    digits, kinds = load_digits(return_X_y=True)
    X = digits[:700, (digits > 0).mean(0) > 0.1]
    vi = FactorizedVI(MixtureModel(10), n_init=1, random_state=0).fit(X / X.std(0))
    assert adjusted_rand_score(kinds[:700], vi.predict(X / X.std(0))) > 0.5


def test_components_that_no_row_needs_empty():
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(0, 1, (60, 2)), rng.normal(8, 1, (40, 2))])
    vi = FactorizedVI(MixtureModel(5, concentration=0.01), random_state=0).fit(X)
    weights = vi.global_posterior_.mean["weights"]
    np.testing.assert_allclose(weights[:2], [0.6, 0.4], atol=0.02)
    assert weights[2:].sum() < 0.02
    assert set(vi.predict(X)) == {0, 1}


def test_a_missing_cell_is_left_out(iris):
    row = IRIS[[100]].copy()
    row[0, 1:] = np.nan
    theta = [iris.global_posterior_.sample(4000, random_state=0)[n] for n in ("means", "variances")]
    weights = iris.global_posterior_.sample(4000, random_state=0)["weights"]
    means, variances = (each[..., 0] for each in theta)
    density = -0.5 * ((row[0, 0] - means) ** 2 / variances + np.log(2 * np.pi * variances))
    logs = (density + np.log(weights)).mean(0)
    expected = np.exp(logs - logs.max())
    np.testing.assert_allclose(iris.transform(row)[0], expected / expected.sum(), atol=0.03)


def test_clusters_with_holes_are_found_and_filled_in():
    holes = IRIS.copy()
    holes[np.random.default_rng(0).random(IRIS.shape) < 0.2] = np.nan
    missing, errors = np.isnan(holes), {}
    for covariance in ("diagonal", "full"):
        vi = FactorizedVI(MixtureModel(3, covariance=covariance), n_init=1, random_state=0)
        assert vi.fit(holes).converged_
        assert adjusted_rand_score(KINDS, vi.predict(holes)) > 0.6
        errors[covariance] = np.abs(vi.impute(holes) - IRIS)[missing].mean()
    assert errors["diagonal"] < 0.5 * np.abs(np.nanmean(holes, 0) - IRIS)[missing].mean()
    assert errors["full"] < 0.9 * errors["diagonal"]  # columns tell of each other


def test_counts_form_clusters():
    rng = np.random.default_rng(0)
    kinds = rng.random(60) < 0.5
    X = rng.poisson(np.where(kinds[:, None], [2.0, 8.0], [8.0, 1.0])).astype(float)
    vi = FactorizedVI(MixtureModel(2, "poisson"), random_state=0).fit(X)
    assert adjusted_rand_score(kinds, vi.predict(X)) > 0.8
    assert vi.sample(5, random_state=0)[0].shape == (5, 2)


@pytest.mark.parametrize(
    ("covariance", "degree"),
    [("diagonal", 2), pytest.param("full", 2, marks=pytest.mark.slow), ("tied", 1)],
)
def test_functions_close_the_gap_as_theory_says(covariance, degree):
    """Logits are quadratic in x, and linear where all components share their covariance."""
    rng, model = np.random.default_rng(0), MixtureModel(2, covariance=covariance)
    one = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 30)
    X = np.vstack([one, rng.multivariate_normal([2.5, 0], [[1, -0.5], [-0.5, 0.6]], 20)])
    vi = FactorizedVI(model, n_init=1, random_state=0).fit(X)
    amortized = AmortizedVI(model, Polynomial(degree), n_init=1, random_state=0).fit(X)
    assert abs(amortization_gap(amortized, X, vi).total) < 1e-6


def test_a_fit_is_saved_and_loaded(iris, tmp_path):
    skavi.save(iris, tmp_path / "iris.skavi")
    again = skavi.load(tmp_path / "iris.skavi")
    np.testing.assert_array_equal(again.transform(IRIS), iris.transform(IRIS))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (MixtureModel(0), r"n_components"),
        (MixtureModel(2, "cauchy"), r"likelihood"),
        (MixtureModel(2, covariance="spherical"), r"covariance.*'diagonal'"),
        (MixtureModel(2, "poisson", "full"), r"covariance.*left alone"),
        (MixtureModel(2, covariance="full", variance_scale=np.ones((4, 4))), r"positive definite"),
        (MixtureModel(2, covariance="full", variance_scale=np.eye(3)), r"3 rows, but X has 4"),
        (MixtureModel(2, variance_scale=np.eye(4)), r"variance_scale.*one dimension"),
        (MixtureModel(2, concentration=-1.0), r"concentration"),
    ],
)
def test_wrong_arguments_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        FactorizedVI(model).fit(IRIS)
