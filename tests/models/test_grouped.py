"""Rows that share a latent: closed forms, any labels, any order, and predictions by group."""

import numpy as np
import pandas as pd
import polars
import pytest
import torch
from scipy.stats import multivariate_normal
from torch.distributions import Binomial, HalfNormal, MultivariateNormal, Normal

import skavi
from skavi import AmortizedVI, FactorizedVI
from skavi._estimators.fitted_estimator import position_on
from skavi.families import FullNormal
from skavi.models import GroupedModel
from skavi.solvers import Adam
from test_references import CASES, Rats, Seeds

NOISE, SPREAD = 0.7, 1.3


class Slopes(GroupedModel):
    """y = z_0 + z_1 x + noise, z ~ N(w (1, -1), 1.3^2) with known globals: q(z_g) is exact."""

    n_latents = 2

    def __init__(self, groups="school", covariates="x", group_covariates="w"):
        self.groups = groups
        self.covariates = covariates
        self.group_covariates = group_covariates

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta, group_covariates):
        return Normal(group_covariates * torch.tensor([1.0, -1.0]), SPREAD)

    def likelihood(self, z, theta, covariates):
        return Normal(z[:, :1] + z[:, 1:] * covariates, NOISE)


class Levels(GroupedModel):
    """A level for each group around a mean to learn."""

    groups = "g"
    n_latents = 1

    def global_prior(self, n_features):
        return {"mean": Normal(0.0, 10.0), "sd": HalfNormal(2.0)}

    def local_prior(self, theta):
        return Normal(theta["mean"].reshape(1), theta["sd"].reshape(1))

    def likelihood(self, z, theta):
        return Normal(z, NOISE)


def schools(seed=0, sizes=(4, 1, 7, 2, 1, 3)):
    """Shuffled rows of groups of unequal size, with text for labels."""
    rng = np.random.default_rng(seed)
    names = np.repeat([f"school {i}" for i in range(len(sizes))], sizes)
    w = np.repeat(rng.normal(size=len(sizes)), sizes)
    z = np.repeat(rng.normal(size=(len(sizes), 2)), sizes, 0)
    x = rng.normal(size=len(names))
    y = z[:, 0] + z[:, 1] * x + NOISE * rng.normal(size=len(names))
    frame = pd.DataFrame({"w": w, "school": names, "y": y, "x": x})
    return frame.sample(frac=1, random_state=seed).reset_index(drop=True)


def exact(part):
    """Return evidence, posterior mean and covariance of one group's latents."""
    R = np.column_stack([np.ones(len(part)), part["x"]])
    prior = part["w"].iloc[0] * np.array([1.0, -1.0])
    covariance = SPREAD**2 * R @ R.T + NOISE**2 * np.eye(len(part))
    evidence = multivariate_normal(R @ prior, covariance).logpdf(part["y"])
    precision = R.T @ R / NOISE**2 + np.eye(2) / SPREAD**2
    right = R.T @ part["y"].to_numpy() / NOISE**2 + prior / SPREAD**2
    return evidence, np.linalg.solve(precision, right), np.linalg.inv(precision)


@pytest.fixture(scope="module")
def fitted():
    X = schools()
    return FactorizedVI(Slopes(), family=FullNormal()).fit(X), X


def test_evidence_and_latents_are_exact(fitted):
    vi, X = fitted
    posterior = vi.posterior(X)
    assert list(posterior.groups) == list(X["school"].unique())
    found = [exact(X[X["school"] == name]) for name in posterior.groups]
    assert vi.elbo_ == pytest.approx(sum(one[0] for one in found), abs=1e-8)
    np.testing.assert_allclose(posterior.mean, [one[1] for one in found], atol=1e-6)
    covariance = posterior.scale @ np.swapaxes(posterior.scale, 1, 2)
    np.testing.assert_allclose(covariance, [one[2] for one in found], atol=1e-6)
    assert list(posterior.to_frame().index) == list(posterior.groups)


def test_each_row_gets_its_groups_latents_and_its_share_of_the_bound(fitted):
    vi, X = fitted
    latents, terms = vi.transform(X), vi.score_samples(X)
    for name, part in X.groupby("school"):
        evidence, mean, _ = exact(part)
        np.testing.assert_allclose(latents[part.index], [mean] * len(part), atol=1e-6)
        np.testing.assert_allclose(terms[part.index], evidence / len(part), atol=1e-8), name
    assert vi.score(X) == pytest.approx(vi.elbo_ / len(X), abs=1e-8)


@pytest.mark.parametrize("kind", ["integers", "floats", "categories", "polars", "array"])
def test_labels_of_any_kind(fitted, kind):
    vi, X = fitted
    number = X["school"].str[-1].astype(int)
    if kind == "integers":
        table, model = X.assign(school=number * 10), Slopes()
    elif kind == "floats":
        table, model = X.assign(school=number / 4), Slopes()
    elif kind == "categories":
        table, model = X.assign(school=X["school"].astype("category")), Slopes()
    elif kind == "polars":
        table, model = polars.from_pandas(X), Slopes()
    else:
        table, model = X.to_numpy(), Slopes(1, 3, 0)
    other = FactorizedVI(model, family=FullNormal()).fit(table)
    assert other.elbo_ == pytest.approx(vi.elbo_, abs=1e-9)
    np.testing.assert_allclose(other.transform(table), vi.transform(X), atol=1e-9)
    labels = other.posterior(table).groups
    assert list(labels) == list(
        dict.fromkeys(np.asarray(table["school"] if kind != "array" else table[:, 1]))
    )


def test_whole_numbers_are_labels_whatever_their_dtype():
    X = schools().assign(school=lambda t: t["school"].str[-1].astype(int))
    vi = FactorizedVI(Slopes()).fit(X)
    asked = X[:2].assign(y=np.nan)
    as_floats = vi.impute(asked.assign(school=asked["school"].astype(float)))
    np.testing.assert_array_equal(as_floats, vi.impute(asked))


def test_missing_responses_are_predicted_for_known_and_for_new_groups(fitted):
    vi, X = fitted
    known, new = (
        X.iloc[[0]].assign(y=np.nan, x=2.0),
        X.iloc[[0]].assign(y=np.nan, school="new", w=0.4),
    )
    filled, sd = vi.impute(pd.concat([known, new]), return_sd=True)
    _, mean, covariance = exact(X[X["school"] == X["school"][0]])
    r = np.array([1.0, 2.0])
    assert filled[0, 2] == pytest.approx(r @ mean, abs=2e-3)
    assert sd[0, 2] == pytest.approx(np.sqrt(r @ covariance @ r + NOISE**2), rel=1e-2)
    r = np.array([1.0, new["x"].iloc[0]])
    assert filled[1, 2] == pytest.approx(0.4 * (r @ [1.0, -1.0]), abs=2e-3)
    assert sd[1, 2] == pytest.approx(np.sqrt(SPREAD**2 * r @ r + NOISE**2), rel=1e-2)
    assert vi.transform(known)[0] == pytest.approx(mean, abs=1e-6)
    assert vi.transform(new)[0] == pytest.approx([0.4, -0.4], abs=1e-6)


def test_a_missing_response_is_marginalised_and_an_empty_group_left_out():
    X = schools()
    holes = X.copy()
    holes.loc[[0, 5], "y"] = np.nan
    lone = pd.DataFrame({"w": [0.3], "school": ["empty"], "y": [np.nan], "x": [0.1]})
    vi = FactorizedVI(Slopes(), family=FullNormal()).fit(
        pd.concat([holes, lone], ignore_index=True)
    )
    seen = holes.dropna()
    evidence = sum(exact(part)[0] for _, part in seen.groupby("school"))
    assert vi.elbo_ == pytest.approx(evidence, abs=1e-8)
    assert vi.transform(lone)[0] == pytest.approx([0.3, -0.3], abs=1e-6)


def test_weights_count_rows_inside_their_groups():
    X = schools()
    weights = np.resize([1.0, 2.0, 1.0, 0.0], len(X))
    weighted = FactorizedVI(Slopes()).fit(X, sample_weight=weights)
    repeated = FactorizedVI(Slopes()).fit(X.loc[np.repeat(X.index, weights.astype(int))])
    assert weighted.elbo_ == pytest.approx(repeated.elbo_, abs=1e-9)


def test_scores_take_every_group_as_new(fitted):
    vi, X = fitted
    part = X[X["school"] == X["school"][0]]
    renamed = part.assign(school="new")
    np.testing.assert_allclose(vi.score_samples(part), vi.score_samples(renamed), atol=1e-10)


def test_globals_are_learned_and_rows_need_no_order():
    rng = np.random.default_rng(1)
    X = pd.DataFrame({"g": np.repeat(np.arange(20), 3)})
    X["y"] = 4 + np.repeat(rng.normal(size=20), 3) + NOISE * rng.normal(size=60)
    vi = FactorizedVI(Levels(), random_state=0).fit(X)
    means = pd.DataFrame(X.groupby("g")["y"].mean())
    assert vi.global_posterior_.mean["mean"] == pytest.approx(means["y"].mean(), abs=0.05)
    # Linear response: the sd of a mean of 20 group means.
    se = np.sqrt(1 / 20 * (vi.global_posterior_.mean["sd"] ** 2 + NOISE**2 / 3))
    assert vi.global_posterior_.corrected_sd["mean"] == pytest.approx(se, rel=0.1)
    shuffled = FactorizedVI(Levels(), random_state=0).fit(X.sample(frac=1, random_state=0))
    assert shuffled.elbo_ == pytest.approx(vi.elbo_, abs=1e-5)


def test_errors_name_the_column_and_what_to_do():
    X = schools()
    off = X.assign(w=np.arange(len(X), dtype=float))
    with pytest.raises(
        ValueError, match=r"group_covariates=...\): column 'w' is not constant within"
    ):
        FactorizedVI(Slopes()).fit(off)
    with pytest.raises(ValueError, match="the one column of X that holds the groups' labels"):
        FactorizedVI(Slopes(groups=None)).fit(X)
    holed = X.astype({"school": object})
    holed.loc[2, "school"] = None
    with pytest.raises(ValueError, match=r"'school' has 1 missing labels \(first at row 2\)"):
        FactorizedVI(Slopes()).fit(holed)
    with pytest.raises(ValueError, match="no response is observed"):
        FactorizedVI(Slopes()).fit(X.assign(y=np.nan))


class Radon(GroupedModel):
    """Log radon of houses in counties: the reference's model, a house a row."""

    groups, n_latents = 1, 1

    def global_prior(self, n_features):
        return {
            "mu_alpha": Normal(0.0, 10.0),
            "sigma_alpha": HalfNormal(1.0),
            "sigma_y": HalfNormal(1.0),
        }

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta):
        return Normal(theta["mu_alpha"] + theta["sigma_alpha"] * z, theta["sigma_y"])


class RatsInTime(GroupedModel):
    """Weights of rats by day: the reference's model, a weighing a row."""

    groups, covariates, n_latents = 1, 2, 2
    global_prior, local_prior = Rats.global_prior, Rats.local_prior

    def likelihood(self, z, theta, covariates):
        return Normal(z[:, :1] + z[:, 1:] * covariates, theta["sigma_y"])


class Plates(GroupedModel):
    """Seeds that germinate on a plate: the reference's model, each plate a group of its own."""

    groups, covariates, n_latents = 1, [2, 3, 4], 1
    global_prior, local_prior = Seeds.global_prior, Seeds.local_prior

    def likelihood(self, z, theta, covariates):
        seeds, x1, x2 = covariates.split(1, 1)
        logit = theta["alpha0"] + theta["alpha1"] * x1 + theta["alpha2"] * x2
        logit = logit + theta["alpha12"] * x1 * x2 + z
        return Binomial(seeds, logits=logit, validate_args=False)


def in_long_format(name):
    """Return a reference's model of groups, and its rows: response, group, covariates."""
    rows = CASES["radon_noncentred" if name == "radon" else name]["rows"]
    if name == "seeds":
        germinated, *given = np.array(rows, dtype=float).T
        return Plates(), np.column_stack([germinated, np.arange(len(rows)), *given])
    g = np.repeat(np.arange(len(rows)), list(map(len, rows)))
    y = np.concatenate(rows).astype(float)
    if name == "radon":
        return Radon(), np.column_stack([np.log(y), g])
    days = np.array([8.0, 15.0, 22.0, 29.0, 36.0]) - 22.0
    return RatsInTime(), np.column_stack([y, g, np.tile(days, len(rows))])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["radon", "rats", "seeds"])
def test_models_written_by_hand_reach_known_optima_in_long_format(name):
    """The same mean-field optima as in `test_references`, within 0.01 in loc and log scale."""
    model, X = in_long_format(name)
    X = np.random.default_rng(0).permutation(X)
    vi = FactorizedVI(model, random_state=0).fit(X)
    case = CASES["radon_noncentred" if name == "radon" else name]
    assert vi.elbo_ == pytest.approx(case["elbo"], abs=0.01)
    q = vi.global_posterior_
    for key, (loc, scale) in case["globals"].items():
        which = key.removeprefix("log ")
        assert q.unconstrained_mean[which].item() == pytest.approx(loc, abs=0.01 * scale)
        assert np.log(q.unconstrained_sd[which].item() / scale) == pytest.approx(0, abs=0.01)
    factors = position_on(vi, X).factors()
    places = vi.posterior(X).groups.astype(int)
    for k, latents in enumerate(case["latents"].values()):
        loc, scale = (np.array(each)[places] for each in latents.values())
        np.testing.assert_array_less(np.abs(factors.mean.numpy()[:, k] - loc), 0.01 * scale)
        np.testing.assert_allclose(np.log(factors.sd.numpy()[:, k] / scale), 0, atol=0.01)


class Pairs(GroupedModel):
    """Two responses a row, correlated: a distribution of whole rows."""

    groups = 2
    n_latents = 2

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta):
        return Normal(torch.zeros(2), 1.0)

    def likelihood(self, z, theta):
        return MultivariateNormal(z, torch.tensor([[1.0, 0.5], [0.5, 1.0]]))


def test_rows_with_half_a_response_are_refused_where_they_cannot_be_marginalised():
    X = np.array([[0.3, 1.0, 0], [0.1, np.nan, 0], [np.nan, np.nan, 1], [2.0, 1.0, 1]])
    with pytest.raises(ValueError, match="likelihood is a distribution of whole rows"):
        FactorizedVI(Pairs()).fit(X)
    whole = FactorizedVI(Pairs()).fit(X[[0, 3]])
    assert FactorizedVI(Pairs()).fit(X[[0, 2, 3]]).elbo_ == pytest.approx(whole.elbo_, abs=1e-9)


def test_samples_have_the_groups_and_covariates_they_were_drawn_for(fitted):
    vi, X = fitted
    given = {"covariates": X["x"], "groups": X["school"], "group_covariates": X["w"]}
    table, Z = vi.sample(random_state=0, **given)
    assert list(table[:, 1]) == list(X["school"])
    np.testing.assert_array_equal(table[:, [0, 3]].astype(float), X[["w", "x"]])
    assert len(np.unique(Z, axis=0)) == X["school"].nunique()
    many = pd.DataFrame({"x": np.ones(20_000), "w": np.ones(20_000)})
    table, Z = vi.sample(random_state=1, covariates=many["x"], group_covariates=many["w"])
    assert len(np.unique(table[:, 1])) == 20_000
    sd = np.sqrt(2 * SPREAD**2 + NOISE**2)  # of z_0 + z_1 + noise, of mean 1 - 1
    assert table[:, 2].astype(float).mean() == pytest.approx(0, abs=4 * sd / 20_000**0.5)
    assert table[:, 2].astype(float).std() == pytest.approx(sd, rel=0.03)


def test_a_fit_is_saved_with_its_groups(fitted, tmp_path):
    vi, X = fitted
    skavi.save(vi, tmp_path / "vi.skavi")
    loaded = skavi.load(tmp_path / "vi.skavi", model=Slopes())
    np.testing.assert_array_equal(loaded.transform(X), vi.transform(X))
    asked = X[:3].assign(y=np.nan)
    np.testing.assert_array_equal(loaded.impute(asked), vi.impute(asked))


def test_arviz_has_draws_of_every_row(fitted):
    vi, X = fitted
    tree = vi.to_arviz(X, n_draws=5, random_state=0)
    assert tree["log_likelihood"]["x"].shape == (1, 5, len(X))
    z = tree["posterior"]["z"].to_numpy()[0]
    same = np.flatnonzero(X["school"] == X["school"][0])
    assert (z[:, same] == z[:, same[:1]]).all()


@pytest.mark.slow
def test_amortized_functions_read_sets_of_rows():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 150)
    X = pd.DataFrame({"g": np.repeat(np.arange(150), sizes)})
    X["y"] = np.repeat(rng.normal(size=150), sizes) + NOISE * rng.normal(size=len(X))
    amortized = AmortizedVI(Levels(), random_state=0).fit(X)
    gap = skavi.amortization_gap(amortized, X)
    assert gap.per_row.shape == (150,)
    assert gap.total / len(X) < 1e-3
    reordered = X.sample(frac=1, random_state=0)
    np.testing.assert_allclose(
        amortized.transform(reordered), amortized.transform(X)[reordered.index], atol=1e-9
    )
    asked = pd.DataFrame({"g": [3, 999], "y": [np.nan, np.nan]})
    known, new = amortized.transform(asked)
    assert known == pytest.approx(amortized.transform(X)[X["g"] == 3][0])
    assert new[0] == pytest.approx(amortized.global_posterior_.mean["mean"], abs=1e-6)


@pytest.mark.nightly
def test_the_rest_of_the_package_takes_groups_for_what_rows_are_elsewhere():
    rng = np.random.default_rng(2)
    X = pd.DataFrame({"g": np.repeat(np.arange(30), 4)})
    X["y"] = np.repeat(rng.normal(size=30), 4) + NOISE * rng.normal(size=120)
    vi = FactorizedVI(Levels(), random_state=0).fit(X)
    by_batches = FactorizedVI(Levels(), solver=Adam(batch_size=10), tol=0.2, random_state=0).fit(X)
    assert by_batches.elbo_ == pytest.approx(vi.elbo_, abs=6)  # tol a group
    streamed = FactorizedVI(Levels(), random_state=0).partial_fit(X[:60]).partial_fit(X[60:])
    assert streamed.elbo_ == pytest.approx(vi.elbo_, abs=0.5)
    assert (vi.score_samples(X, n_draws=200) > vi.score_samples(X)).mean() > 0.9
