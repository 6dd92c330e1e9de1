"""States of tables of mixed columns: Bayes' rule, expectations, sweeps, planted clusters, fills."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.special import gammaln, logsumexp
from sklearn.metrics import adjusted_rand_score

from skavi import AmortizedVI, FactorizedVI, amortization_gap, can_close_gap, load, save
from skavi._data.column_kinds import Kind
from skavi._data.column_roles import ColumnRoles, GivenColumn
from skavi._platform.forks_and_threads import seeded
from skavi.families import DiagonalNormal
from skavi.inference_functions import Polynomial
from skavi.models import HiddenMarkovModel, MixtureModel
from skavi.objective import bind

#: The last two columns are trials of the two binomial ones, in their order.
LIKELIHOOD = {
    "normal": [0, 3],
    "bernoulli": [1],
    "poisson": [2],
    "ordinal": [4],
    "categorical": [5],
    "binomial": [6, 7],
}
KINDS = (
    *map(Kind, ("normal", "bernoulli", "poisson", "normal")),
    Kind("ordinal", 4),
    Kind("categorical", 3),
    *[Kind("binomial")] * 2,
)
NAMES = [*"abcdefgh", "tries", "tries2"]


def survey(n_rows=60, holes=0.2, seed=0, apart=1.0):
    """Return rows of two clusters, and the clusters."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, n_rows)
    side = apart * (2 * kind - 1)
    trials = rng.integers(1, 9, (n_rows, 2))
    chances = np.exp(np.outer(side, [-1, 0, 1]))
    chances = (chances / chances.sum(1, keepdims=True)).cumsum(1)
    X = np.column_stack(
        [
            100 + 10 * (side + rng.normal(size=n_rows)),
            rng.logistic(size=n_rows) < side,
            rng.poisson(np.exp(1 + 0.5 * side)),
            rng.normal(size=n_rows),
            (side + rng.logistic(size=n_rows) > np.array([[-1.5], [0], [1.5]])).sum(0),
            (rng.random((n_rows, 1)) > chances).sum(1),
            rng.binomial(trials.T, 1 / (1 + np.exp([side, -side]))).T,
        ]
    ).astype(float)
    X[0, 4:6], X[1, 4:6] = [3, 2], [0, 0]  # all levels are there
    hidden = rng.random(X.shape) < holes
    hidden[:2] = False
    X[hidden] = np.nan
    return np.column_stack([X, trials]), kind


def told(k=3, **arguments):
    """Return a model that knows the columns of `survey`."""
    model = MixtureModel(k, LIKELIHOOD, trials=[8, 9], **arguments)
    columns = GivenColumn(8, "x8"), GivenColumn(9, "x9")
    model.columns_ = ColumnRoles({"trials": columns}, 10, (), KINDS)
    return model


def bound(model, X):
    objective = bind(model.adapted(X, torch.ones(len(X)).double()), None, DiagonalNormal(), X)
    return objective, objective.space


def log_cells(theta, X, k):
    """Return log p of every cell in state k, zeros where it is missing, by scipy."""
    theta = {name: value[k].numpy() for name, value in theta.items()}
    normal = stats.norm(theta["means"], np.sqrt(theta["variances"])).logpdf(X[:, [0, 3]])
    yes = stats.bernoulli(theta["probabilities"]).logpmf(X[:, [1]])
    counts = stats.poisson(theta["rates"]).logpmf(X[:, [2]])
    levels = [
        np.log(theta[f"levels_{c}"])[np.nan_to_num(X[:, c]).astype(int), None] for c in (4, 5)
    ]
    tried = stats.binom(X[:, 8:], theta["success_rates"]).logpmf(X[:, 6:8])
    cells = np.hstack([normal[:, :1], yes, counts, normal[:, 1:], *levels, tried])
    return np.where(np.isnan(X[:, :8]), 0, cells)


def test_probabilities_are_those_of_bayes_rule_where_theta_is_known():
    """log p(x) = log sum_k w_k prod_d p(x_d | k): the ELBO to 1e-8 nats, probabilities to 1e-6."""
    X, _ = survey(12)
    rows = torch.as_tensor(X)
    objective, space = bound(told(), rows)
    generator = torch.Generator().manual_seed(3)
    u = 0.7 * torch.randn(space.size, generator=generator, dtype=torch.float64)
    theta = space.constrain(u)
    joint = [log_cells(theta, X, k).sum(1) + float(theta["weights"][k].log()) for k in range(3)]
    joint = np.stack(joint, 1)
    raw = torch.cat([u, torch.full((space.size,), -20.0).double()])
    terms = objective.row_terms(rows[:, :0], raw, rows, None)
    np.testing.assert_allclose(terms, logsumexp(joint, 1), rtol=0, atol=1e-8)
    _, factors, _ = objective.optimum(raw, rows, None)
    expected = np.exp(joint - logsumexp(joint, 1, keepdims=True))
    np.testing.assert_allclose(factors.mean, expected, rtol=0, atol=1e-6)
    state = torch.zeros(12, 1).double()
    density = objective.model.log_likelihood(theta, state, rows)
    np.testing.assert_allclose(density, log_cells(theta, X, 0).sum(1), rtol=0, atol=1e-8)


def test_closed_forms_are_means_over_draws_of_theta():
    """To 4 standard errors of 400 draws."""
    X = torch.as_tensor(survey(6)[0])
    objective, space = bound(told(), X)
    generator = torch.Generator().manual_seed(0)
    raw = 0.3 * torch.randn(space.size, generator=generator, dtype=torch.float64)
    q = objective.global_factor(torch.cat([raw, torch.full_like(raw, -1.5)]))
    noise = torch.randn(400, len(raw), generator=generator, dtype=torch.float64)
    draws = [objective.log_joints_at(space.constrain(u), X) for u in q.draw(noise)]
    draws = torch.stack(draws)
    away = (objective.expected_log_joints(q, X, None) - draws.mean(0)).abs()
    assert bool((away < 4 * draws.std(0) / 20).all())


def test_states_change_their_order_with_all_that_they_have():
    X = torch.as_tensor(survey(20)[0])
    objective, space = bound(told(), X)
    emissions, n = objective.model.emissions, space.slices["weights"].stop
    u = torch.randn(space.size - n, generator=torch.Generator().manual_seed(0)).double()
    order, rows = torch.tensor([2, 0, 1]), objective.model.emitted(X)
    whole = emissions.expected_log_likelihoods(u, u.abs(), rows)
    moved = (emissions.permuted(each, order, 8) for each in (u, u.abs()))
    found = emissions.expected_log_likelihoods(*moved, rows)
    torch.testing.assert_close(found, whole[:, order])


def test_levels_of_one_state_are_a_dirichlet_posterior():
    """Dirichlet and categorical are conjugate: evidence and means are known.

    p(X) = Gamma(K) prod_k Gamma(n_k + 1) / Gamma(N + K), and E p_k = (n_k + 1) / (N + K). q is
    normal in the logits of breaking a stick, 0.01 nats and 0.001 off for counts of 10 and more.
    """
    counts = np.array([30, 15, 45])
    X = np.repeat([0.0, 1.0, 2.0], counts)[:, None]
    for likelihood in ("categorical", "ordinal"):
        vi = FactorizedVI(MixtureModel(1, likelihood), random_state=0).fit(X)
        evidence = gammaln(3) + gammaln(counts + 1).sum() - gammaln(93)
        assert 0 <= evidence - vi.elbo_ < 0.01
        levels = vi.global_posterior_.mean["levels_0"][0]
        np.testing.assert_allclose(levels, (counts + 1) / 93, atol=1e-3)


def test_names_of_one_thing_are_one_fit():
    """Yes and no is one trial; an order of levels matters to predictions alone."""
    X = np.nan_to_num(survey(80)[0][:, [1]]) * np.ones((1, 3))
    X[:, 1:] = np.random.default_rng(0).random((80, 2)) < 0.2 + 0.6 * X[:, :1]
    plain = FactorizedVI(MixtureModel(2, "bernoulli"), random_state=0).fit(X)
    model = MixtureModel(2, "binomial", trials=3)
    tried = FactorizedVI(model, random_state=0).fit(np.column_stack([X, np.ones(80)]))
    assert tried.elbo_ == pytest.approx(plain.elbo_, abs=1e-6)
    one, other = (
        FactorizedVI(MixtureModel(2, name), random_state=0).fit(X).elbo_
        for name in ("ordinal", "categorical")
    )
    assert one == pytest.approx(other, abs=1e-9)


# --- clusters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("holes", [0.0, 0.2])
def test_planted_clusters_are_found_better_than_from_codes(holes):
    """In each of three tables: 0.59 to 0.64 against 0.08 to 0.49, with holes 0.5 against 0.2."""
    for seed in range(3):
        X, kind = survey(300, holes, seed, apart=0.6)
        mixed = FactorizedVI(MixtureModel(2, LIKELIHOOD, trials=[8, 9]), random_state=0).fit(X)
        codes = FactorizedVI(MixtureModel(2), random_state=0).fit(X[:, :8])
        assert mixed.converged_
        found = adjusted_rand_score(kind, mixed.predict(X))
        assert found > adjusted_rand_score(kind, codes.predict(X[:, :8])) + 0.1


@pytest.fixture(scope="module")
def fitted():
    """A frame with texts, whose levels are not in the order of the alphabet, and its fit."""
    X, kind = survey(120)
    table = pd.DataFrame(X, columns=NAMES)
    ordered = pd.CategoricalDtype(["never", "rarely", "often", "always"], ordered=True)
    codes = table["e"].fillna(-1).astype(int)
    table["e"] = pd.Categorical.from_codes(codes, dtype=ordered)
    table["f"] = table["f"].map({0: "car", 1: "bus", 2: "train"}).astype(object)
    named = {k: [NAMES[i] for i in places] for k, places in LIKELIHOOD.items()}
    model = MixtureModel(2, named, trials=["tries", "tries2"])
    return FactorizedVI(model, random_state=0).fit(table), table, kind


def test_cells_are_filled_in_their_own_kind(fitted):
    vi, table, kind = fitted
    assert adjusted_rand_score(kind, vi.predict(table)) > 0.7
    filled, sd = vi.impute(table, return_sd=True)
    filled = pd.DataFrame(filled, columns=NAMES)
    assert not filled.isna().any(axis=None)
    assert set(filled["e"]) <= {"never", "rarely", "often", "always"}
    assert set(filled["f"]) == {"car", "bus", "train"}
    assert set(filled["b"]) == {0, 1}
    whole = filled[["c", "g", "h"]].astype(float)
    assert bool((whole % 1 == 0).all(axis=None))
    assert bool((whole["g"] <= filled["tries"].astype(float)).all())
    assert float(np.asarray(sd)[:, 5].max()) <= 0.5  # of a yes or no
    seen = table["a"].notna()
    np.testing.assert_array_equal(filled["a"][seen].astype(float), table["a"][seen])


def test_hidden_cells_are_filled_better_than_by_the_columns_means():
    whole, _ = survey(300, 0.0)
    hidden = np.random.default_rng(1).random((300, 8)) < 0.2
    hidden[:2] = False
    X = whole.copy()
    X[:, :8][hidden] = np.nan
    vi = FactorizedVI(MixtureModel(2, LIKELIHOOD, trials=[8, 9]), random_state=0).fit(X)
    filled = vi.impute(X)
    for column in (0, 2, 4, 6, 7):
        at, truth = hidden[:, column], whole[hidden[:, column], column]
        usual = np.nanmean(X[:, column])
        if column > 5:
            usual = whole[at, column + 2] * np.nansum(X[:, column])
            usual = usual / whole[~hidden[:, column], column + 2].sum()
        assert np.square(filled[at, column] - truth).mean() < np.square(usual - truth).mean()
    for column in (1, 5):
        at, truth = hidden[:, column], whole[hidden[:, column], column]
        levels, counts = np.unique(X[~at, column], return_counts=True)
        assert (filled[at, column] == truth).mean() > (levels[counts.argmax()] == truth).mean()


def test_new_rows_are_of_their_columns_kind_and_rates(fitted):
    """20,000 rows at one theta: means of all columns within 4 standard errors of weights @ means"""
    vi, table, _ = fitted
    theta = {n: torch.as_tensor(v) for n, v in vi.global_posterior_.mean.items()}
    trials = torch.tensor([5.0, 2.0]).double().expand(20_000, -1)
    with seeded(0):
        X, _ = vi.model_.simulate(theta, 20_000, 8, trials)
    sizes = {"levels_4": 4, "levels_5": 3}
    levels = [theta[c] @ torch.arange(n).double()[:, None] for c, n in sizes.items()]
    means, tried = theta["means"], theta["success_rates"] * trials[0]
    by_state = [means[:, :1], theta["probabilities"], theta["rates"], means[:, 1:], *levels, tried]
    expected = theta["weights"] @ torch.cat(by_state, 1)
    assert bool(((X.mean(0) - expected).abs() < 4 * X.std(0) / 20_000**0.5).all())
    X, _ = vi.sample(300, random_state=0, covariates=trials[:300].numpy())
    assert X.shape == (300, 10) and set(X[:, 5]) == {"car", "bus", "train"}
    assert X[:, 6].max() == 5 and X[:, 7].max() == 2
    means = vi.inverse_transform(vi.transform(table), covariates=trials[:120].numpy())
    assert means.shape == (120, 8)


def test_globals_have_the_names_of_columns_and_levels(fitted):
    index = fitted[0].global_posterior_.to_frame().index
    for label in ("means[component1, d]", "rates[component0, c]", "success_rates[component1, h]"):
        assert label in index
    assert "levels_4[component1, rarely]" in index and "levels_5[component0, bus]" in index


def test_a_saved_fit_opens_as_it_was(fitted, tmp_path):
    vi, table, _ = fitted
    save(vi, tmp_path / "fit.skavi")
    again = load(tmp_path / "fit.skavi")
    np.testing.assert_array_equal(again.transform(table), vi.transform(table))
    assert list(again.impute(table)[:, 5]) == list(vi.impute(table)[:, 5])


# --- inference functions --------------------------------------------------------------------------


def test_functions_of_levels_close_the_gap():
    """Logits are linear in counts, in yes and no, and in a number for each level but the first."""
    X, _ = survey(120, 0.0)
    X = X[:, [1, 2, 4, 5]]
    model = MixtureModel(2, {"bernoulli": [0], "poisson": [1], "ordinal": [2], "categorical": [3]})
    vi = FactorizedVI(model, n_init=1, random_state=0).fit(X)
    amortized = AmortizedVI(model, Polynomial(1), n_init=1, random_state=0).fit(X)
    assert abs(amortization_gap(amortized, X, vi).total) < 1e-6
    assert bool(can_close_gap(model, X=X))


# --- series ---------------------------------------------------------------------------------------


def test_regimes_of_mixed_columns_are_found_and_forecast():
    """States that stay: the forecast far ahead is the mean over the chain's long run."""
    rng = np.random.default_rng(0)
    state = np.repeat([0, 1, 0, 1, 0], 30)
    chances = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]).cumsum(1)[state]
    levels = (rng.random((150, 2, 1)) > chances[:, None]).sum(-1)
    X = np.column_stack([rng.normal(3 * state), levels]).astype(float)
    X[rng.random(X.shape) < 0.1] = np.nan
    model = HiddenMarkovModel(2, {"normal": [0], "ordinal": [1], "categorical": [2]})
    vi = FactorizedVI(model, random_state=0).fit(X)
    assert adjusted_rand_score(state, vi.predict(X)) > 0.9
    mean, _ = vi.forecast(X, 300)
    assert mean.shape == (300, 3) and set(mean[:, 2]) <= {0, 1, 2}
    theta = vi.global_posterior_.mean
    often = np.linalg.matrix_power(theta["transitions"], 500)[0]
    expected = often @ theta["levels_1"] @ np.arange(3)
    assert mean[-1, 1] == pytest.approx(expected, abs=0.05)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (MixtureModel(2, {"normal": [0], "cauchy": [1]}), r"likelihood must be a dict"),
        (MixtureModel(2, "cauchy"), r"likelihood must be one of"),
        (MixtureModel(2, {"normal": [0, 1]}, "full"), r"covariance.*left alone"),
        (MixtureModel(2, {"normal": [0]}), r"column 'x1' is named under no likelihood"),
        (MixtureModel(2, {"normal": [0], "binomial": [1]}), r"trials must be the columns"),
        (MixtureModel(2, {"normal": [0], "ordinal": [1]}), r"column 'x1' is ordinal, but holds"),
        (MixtureModel(2, {"poisson": [0, 1]}), r"negative entries.*'poisson'"),
        (MixtureModel(2, {"normal": [0, 1]}, trials=[1]), r"trials must be None"),
        (HiddenMarkovModel(2, "binomial"), r"likelihood must be one of"),
        (MixtureModel(2, {"normal": [0, 1]}, mean_loc=np.zeros(3)), r"mean_loc"),
    ],
)
def test_wrong_arguments_are_named(model, message):
    X = np.array([[1.0, 0.5], [2.0, 1.0], [-3.0, 2.0]])
    with pytest.raises(ValueError, match=message):
        FactorizedVI(model).fit(X)


@pytest.mark.parametrize("model", [MixtureModel(2), MixtureModel(2, {"normal": [0, 1]})])
def test_columns_without_a_cell_are_named(model):
    X = np.column_stack([np.arange(5.0), np.full(5, np.nan)])
    with pytest.raises(ValueError, match=r"without a single observed cell \(first column 1\)"):
        FactorizedVI(model).fit(X)


def test_cells_that_no_fit_could_have_are_named(fitted):
    vi, table, _ = fitted
    with pytest.raises(ValueError, match="column 'f' holds 'plane'"):
        vi.transform(table.assign(f="plane"))
    with pytest.raises(ValueError, match="more successes than trials"):
        vi.transform(table.assign(tries=0.0))
