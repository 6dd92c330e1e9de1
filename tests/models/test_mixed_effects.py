"""Mixed models: closed forms against draws, reference optima, least squares, and predictions."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import halfnorm
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from torch.distributions import HalfNormal, constraints

import skavi
from skavi import AmortizedVI, FactorizedVI, amortization_gap
from skavi._data.grouped_rows import GroupedRows
from skavi._fit.parametrisation import _carried_over
from skavi.distributions import Flat
from skavi.families import DiagonalNormal, FullNormal
from skavi.models import MixedEffects
from skavi.objective import bind

CASES = json.loads((Path(__file__).parents[1] / "reference_cases.json").read_text())
RESPONSES = {
    "normal": lambda rng, eta: eta + 0.5 * rng.normal(size=len(eta)),
    "student_t": lambda rng, eta: eta + 0.5 * rng.standard_t(4, len(eta)),
    "bernoulli": lambda rng, eta: rng.random(len(eta)) < 1 / (1 + np.exp(-eta)),
    "binomial": lambda rng, eta: rng.binomial(6, 1 / (1 + np.exp(-eta))),
    "poisson": lambda rng, eta: rng.poisson(np.exp(eta)),
    "negative_binomial": lambda rng, eta: rng.poisson(np.exp(eta) * rng.gamma(3, 1 / 3, len(eta))),
}


def table(likelihood="normal", n_groups=40, seed=0):
    """Shuffled rows of groups of one to eight, text for labels, and columns that nobody names."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(n_groups), rng.integers(1, 9, n_groups))
    x, w = rng.normal(size=len(g)), rng.normal(size=n_groups)
    z = rng.normal(size=(n_groups, 2)) * [0.8, 0.5]
    eta = 0.7 + 0.5 * x + 0.4 * w[g] + z[g, 0] + z[g, 1] * x
    frame = pd.DataFrame({"id": "none", "g": [f"g{i}" for i in g], "x": x, "w": w[g], "n": 6.0})
    frame["y"] = RESPONSES[likelihood](rng, eta).astype(float)
    return frame.sample(frac=1, random_state=seed).reset_index(drop=True)


def model(likelihood="normal", **changed):
    trials = "n" if likelihood == "binomial" else None
    given = {"fixed": ["x"], "random": ["x"], "group_covariates": ["w"], "trials": trials}
    return MixedEffects("y", "g", likelihood=likelihood, **(given | changed))


@pytest.mark.parametrize(
    ("likelihood", "centred", "family"),
    [
        *(("normal", each, FullNormal()) for each in (False, True, (True, False))),
        *((each, (True, False), FullNormal()) for each in RESPONSES if each != "normal"),
        ("normal", False, DiagonalNormal()),
        ("poisson", False, DiagonalNormal()),
    ],
    ids=str,
)
def test_expectations_are_those_of_draws(likelihood, centred, family):
    X = table(likelihood, n_groups=6)
    vi = FactorizedVI(model(likelihood, centred=centred), max_iter=3, tol=1e3, family=family).fit(X)
    rows = vi._rows(vi._validate(X)).X
    generator = torch.Generator().manual_seed(0)
    objective = bind(vi.model_, vi.family_, vi.global_family_, rows)
    size = objective.family.n_parameters(2)
    raw = 0.3 * torch.randn(len(rows), size, generator=generator, dtype=torch.float64)
    raw[:, 2:4] -= 1.0
    raw_globals = torch.as_tensor(vi._raw_globals)
    factors, q_theta = objective.local_factors(raw), objective.global_factor(raw_globals)
    closed = vi.model_.expected_log_local(factors, q_theta, rows)
    n = 4000
    u = q_theta.draw(torch.randn(n, objective.space.size, generator=generator).double())
    z = factors.draw(torch.randn(n, len(rows), 2, generator=generator).double())
    terms = objective.evaluate_batch(u, z, rows)
    se = terms.std(0) / len(terms) ** 0.5
    assert bool(((terms.mean(0) - closed).abs() < 4.5 * se + 1e-6).all())


def test_terms_of_groups_are_the_sums_of_their_rows():
    """Normal responses need sums of products a group; weights and missing responses count."""
    X = table()
    X.loc[[0, 5], "y"] = np.nan
    vi = FactorizedVI(model(centred=(True, False)), max_iter=3, tol=1e3).fit(X)
    rows = vi._rows(vi._validate(X)).X
    weights = 1.0 + torch.arange(len(X), dtype=torch.float64) % 3
    rows = replace(rows, weights=weights)
    objective = bind(vi.model_, vi.family_, vi.global_family_, rows)
    theta = objective.space.constrain(torch.as_tensor(vi.global_posterior_.widest_factor().mean))
    z = torch.linspace(-1, 1, 2 * len(rows), dtype=torch.float64).reshape(-1, 2)
    of_rows = weights * vi.model_.log_likelihood(theta, rows.at_rows(z), rows.table)
    expected = vi.model_.log_prior(theta, z, rows) + rows.over_units(of_rows)
    found = vi.model_.log_local(theta, z, rows)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)


def houses():
    rows = (
        CASES[CASES["radon_centred"]["rows"]]["rows"]
        if isinstance(CASES["radon_centred"]["rows"], str)
        else CASES["radon_centred"]["rows"]
    )
    return pd.DataFrame(
        {
            "y": np.log(np.concatenate(rows)),
            "g": np.repeat(np.arange(len(rows)), list(map(len, rows))),
        }
    ).astype({"g": str})


def rats():
    days = np.array([8.0, 15.0, 22.0, 29.0, 36.0]) - 22.0
    weights = np.array(CASES["rats"]["rows"], dtype=float)
    g = np.repeat(np.arange(len(weights)), 5)
    return pd.DataFrame({"y": weights.ravel(), "g": g, "x": np.tile(days, len(weights))})


@pytest.mark.parametrize("name", ["radon_noncentred", "radon_centred", "rats"])
def test_fits_in_long_format_reach_known_optima(name):
    if name == "rats":
        flat = {"random_scale": Flat(support=constraints.positive)}
        flat["noise_scale"] = Flat(support=constraints.positive)
        asked = MixedEffects(
            "y", "g", ["x"], ["x"], correlated=False, centred=True, fixed_scale=100.0, **flat
        )
        places = {"mu_alpha": ("fixed", 0), "mu_beta": ("fixed", 1), "sigma_y": ("noise_sd", ())}
        places |= {"sigma_alpha": ("random_sd", 0), "sigma_beta": ("random_sd", 1)}
        X = rats()
    else:
        centred = name == "radon_centred"
        asked = MixedEffects(
            "y", "g", centred=centred, fixed_scale=10.0, random_scale=1.0, noise_scale=1.0
        )
        places = {"mu_alpha": ("fixed", 0), "sigma_y": ("noise_sd", ())}
        places |= {"sigma_alpha": ("random_sd", 0)}
        X = houses()
    vi = FactorizedVI(asked, random_state=0).fit(X.sample(frac=1, random_state=0))
    assert vi.elbo_ == pytest.approx(CASES[name]["elbo"], abs=1e-4)
    q = vi.global_posterior_
    for key, (loc, scale) in CASES[name]["globals"].items():
        which, place = places[key.removeprefix("log ")]
        assert abs(q.unconstrained_mean[which].reshape(-1)[place or 0] - loc) < 1e-3 * scale
        assert q.unconstrained_sd[which].reshape(-1)[place or 0] == pytest.approx(scale, rel=1e-3)


@pytest.mark.slow
def test_fixed_effects_and_their_corrected_sds_are_those_of_least_squares():
    X = table(n_groups=100)
    vi = FactorizedVI(model(group_covariates=(), centred=True), random_state=0).fit(X)
    q, F = vi.global_posterior_, np.column_stack([np.ones(len(X)), X["x"]])
    spread = np.diag(q.mean["random_sd"]) @ q.mean["correlation"] @ np.diag(q.mean["random_sd"])
    same = X["g"].to_numpy()[:, None] == X["g"].to_numpy()
    V = same * (F @ spread @ F.T) + q.mean["noise_sd"] ** 2 * np.eye(len(X))
    inverse = np.linalg.inv(V)
    covariance = np.linalg.inv(F.T @ inverse @ F)
    beta, se = covariance @ F.T @ inverse @ X["y"], np.sqrt(np.diag(covariance))
    assert (np.abs(q.mean["fixed"] - beta) < 0.1 * se).all()
    np.testing.assert_allclose(q.corrected_sd["fixed"], se, rtol=0.1)
    effects = spread @ F.T  # best linear predictions of each row's group's effects
    blups = [
        (effects * (X["g"] == name).to_numpy()) @ inverse @ (X["y"] - F @ beta)
        for name in vi.posterior(X).groups
    ]
    found = vi.posterior(X).mean
    for k in range(2):
        assert np.corrcoef(found[:, k], np.array(blups)[:, k])[0, 1] > 0.99
    assert list(vi.get_feature_names_out()) == ["intercept", "x"]


def test_responses_are_predicted_for_known_and_for_new_groups():
    X = table(n_groups=60)
    vi = FactorizedVI(model(centred=True), random_state=0).fit(X)
    row = X.iloc[[0]].assign(y=np.nan, x=1.5)
    filled, sd = vi.impute(pd.concat([row, row.assign(g="new", w=-1.0)]), return_sd=True)
    q, effects = vi.global_posterior_.mean, vi.transform(row)[0]
    known = q["fixed"] @ [1, 1.5] + effects @ [1, 1.5]
    new = q["fixed"] @ [1, 1.5] - q["group_coefficients"][:, 0] @ [1, 1.5]
    assert filled[0, 5] == pytest.approx(known, abs=0.01)
    assert filled[1, 5] == pytest.approx(new, abs=0.02)
    assert q["noise_sd"] < sd[0, 5] < sd[1, 5]
    bare = row[["w", "x", "g"]]  # neither the columns that nobody names, nor the response
    np.testing.assert_array_equal(vi.impute(bare)[0, [1, 5]], filled[0, [1, 5]])
    known = X.head(9)
    for method in (vi.transform, vi.score_samples, lambda rows: vi.posterior(rows).mean):
        np.testing.assert_array_equal(method(known[["y", "w", "x", "g"]]), method(known))
    with pytest.raises(ValueError, match=r"yet now missing:\n- id\n- n\n- y"):
        vi.score(bare)
    given = {"covariates": X[["x"]], "groups": X["g"], "group_covariates": X[["w"]]}
    drawn, Z = vi.sample(random_state=0, **given)
    assert list(drawn[:, 1]) == list(X["g"])
    left = drawn[:, 5].astype(float) - vi.inverse_transform(Z, covariates=X[["x"]])[:, 0]
    assert left.std() == pytest.approx(q["noise_sd"], rel=0.15)


@pytest.mark.parametrize(
    "likelihood", ["bernoulli", pytest.param("poisson", marks=pytest.mark.nightly)]
)
def test_amortized_groups_lose_little(likelihood):
    X = table(likelihood, n_groups=120)
    asked = MixedEffects("y", "g", ["x"], likelihood=likelihood, centred=False)
    amortized = AmortizedVI(asked, random_state=0).fit(X)
    assert amortization_gap(amortized, X).total < 5e-3 * len(X)


@pytest.mark.slow
def test_a_search_over_random_effects_by_folds_of_groups(tmp_path):
    X = table(n_groups=60)
    asked = MixedEffects("y", "g", ["x"], centred=True, correlated=False)
    search = GridSearchCV(
        FactorizedVI(asked, random_state=0), {"model__random": [(), ("x",)]}, cv=GroupKFold(2)
    )
    assert search.fit(X, groups=X["g"]).best_params_ == {"model__random": ("x",)}
    scores = cross_val_score(search.best_estimator_, X, cv=GroupKFold(2), groups=X["g"])
    assert np.isfinite(scores).all()
    best = search.best_estimator_
    skavi.save(best, tmp_path / "mixed.skavi")
    loaded = skavi.load(tmp_path / "mixed.skavi")
    np.testing.assert_array_equal(loaded.transform(X), best.transform(X))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"response": None}, "the one column of X to explain"),
        ({"likelihood": "gamma"}, "must be one of"),
        ({"likelihood": "binomial", "trials": None}, 'column of trials for likelihood="binomial"'),
        ({"centred": (True, False, True)}, "one of them for each effect"),
        ({"fixed": ["age"]}, "X has no column 'age'"),
        ({"noise_scale": -1.0}, "positive numbers, a distribution, or None"),
    ],
)
def test_errors_name_the_argument(changed, words):
    arguments = {"response": "y", "groups": "g", "fixed": ["x"], "random": ["x"]} | changed
    with pytest.raises(ValueError, match=words):
        FactorizedVI(MixedEffects(**arguments)).fit(table(n_groups=5))


def test_the_parametrisation_of_the_higher_bound_is_kept():
    """Two effects have four forms, of which three are tried; here all four are fitted."""
    X = table(n_groups=30)
    asked = {"group_covariates": (), "random": ["x"]}
    forms = list(itertools.product((False, True), repeat=2))
    elbos = [FactorizedVI(model(centred=form, **asked)).fit(X).elbo_ for form in forms]
    chosen = FactorizedVI(model(**asked)).fit(X)
    assert chosen.elbo_ == pytest.approx(max(elbos), abs=1e-6)
    best = forms[int(np.argmax(elbos))]
    assert chosen.model_.centred == (best[0] if best[0] == best[1] else best)


def test_each_of_several_effects_is_given_its_own_form():
    """Of three effects the last is measured well in each group (centred), the others hardly."""
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(25), 6)
    far, near = rng.normal(size=len(g)), 30 * rng.normal(size=len(g))
    z = rng.normal(size=(25, 3)) * [0.2, 0.2, 1.0]
    y = 1 + z[g, 0] + z[g, 1] * far + z[g, 2] * near + rng.normal(size=len(g))
    X = pd.DataFrame({"y": y, "g": g, "far": far, "near": near})
    asked = MixedEffects("y", "g", ["far", "near"], ["far", "near"], correlated=False)
    vi = FactorizedVI(asked, random_state=0).fit(X)
    assert vi.model_.centred == (False, False, True)
    given = clone(asked).set_params(centred=(False, False, True))
    assert vi.elbo_ == pytest.approx(FactorizedVI(given).fit(X).elbo_, abs=1e-6)


def test_a_fit_goes_on_in_another_form_with_the_same_effects():
    X = table(n_groups=30)
    vi = FactorizedVI(model(centred=(True, False)), random_state=0).fit(X)
    rows = vi._rows(vi._validate(X))
    objective = vi._fitted_model.objective
    state = vi._fitted_model.state(rows)
    here = SimpleNamespace(objective=objective)
    there = SimpleNamespace(
        objective=replace(objective, model=vi.model_.with_arguments({"centred": (False, True)}))
    )
    moved = _carried_over(here, state, there, rows.X)
    theta = objective.space.constrain(objective.global_factor(state.raw_globals).mean)
    noise = torch.randn(50, 30, 2, generator=torch.Generator().manual_seed(0)).double()
    effects = [
        each.objective.model.own_scale(
            theta,
            each.objective.local_factors(raw).draw(noise),
            *each.objective.model.own_given(rows.X),
        )
        for each, raw in ((here, state.raw_locals), (there, moved.raw_locals))
    ]
    torch.testing.assert_close(*effects)


@pytest.mark.parametrize("likelihood", RESPONSES)
def test_densities_said_to_be_concave_in_the_latents_are(likelihood):
    """So that no row is searched for other optima; Student t's tails are not concave."""
    X = table(likelihood, n_groups=4)
    vi = FactorizedVI(model(likelihood, centred=False), max_iter=1, tol=1e9).fit(X)
    rows, objective = vi._rows(vi._validate(X)).X, vi._fitted_model.objective
    theta = objective.space.constrain(torch.as_tensor(vi._raw_globals)[: objective.space.size])
    theta["random_sd"] = 20 * theta["random_sd"]  # against it a normal prior's curvature is small
    generator = torch.Generator().manual_seed(0)
    curvatures = []
    for spread in (0.03, 0.1, 0.5):
        z = spread * torch.randn(len(rows), 2, generator=generator).double()
        hessian = torch.autograd.functional.hessian(
            lambda z: vi.model_.log_local(theta, z, rows).sum(), z
        )
        blocks = hessian.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        curvatures.append(torch.linalg.eigvalsh(blocks).max())
    assert (max(curvatures) < 0) == vi.model_.concave_in_latents


def test_priors_are_scales_or_distributions():
    X = table(n_groups=20)
    asked = {"centred": True, "random": (), "group_covariates": ()}
    one = FactorizedVI(model(random_scale=0.5, **asked)).fit(X)
    other = FactorizedVI(model(random_scale=HalfNormal(0.5), **asked)).fit(X)
    assert one.elbo_ == pytest.approx(other.elbo_, abs=1e-6)
    assert one.elbo_ != pytest.approx(FactorizedVI(model(random_scale=5.0, **asked)).fit(X).elbo_)


def test_more_successes_than_trials_are_refused():
    X = table("binomial", n_groups=5).assign(n=1.0)
    with pytest.raises(ValueError, match="more successes than trials"):
        FactorizedVI(model("binomial")).fit(X)


def test_grouped_rows_are_cut_by_unit():
    rows = GroupedRows.by_code(torch.eye(5), torch.ones(5), torch.tensor([3, 1, 3, 2, 1]))
    assert rows.codes.tolist() == [3, 1, 2]
    few = rows[torch.tensor([2, 0])]
    assert few.codes.tolist() == [2, 3]
    assert few.table.nonzero()[:, 1].tolist() == [3, 0, 2]
    assert few.over_units(torch.ones(3)).tolist() == [1, 2]


def test_the_summary_names_effects_as_a_user_does():
    """Text is encoded as 0 and 1, its first level left out; labels survive a file."""
    X = table(n_groups=12).assign(sex=lambda frame: np.where(frame["x"] > 0, "m", "f"))
    short = FactorizedVI(
        model(fixed=["x", "sex"], centred=True), max_iter=1, tol=1e9, random_state=0
    )
    summary = short.fit(X).global_posterior_.summary()
    index = {name: list(part["index"]) for name, part in summary.groupby("name")}
    assert index["fixed"] == [("intercept",), ("x",), ("sex_m",)]
    assert index["random_sd"] == [("intercept",), ("x",)]
    assert index["group_coefficients"] == [("intercept", "w"), ("x", "w")]
    assert index["correlation"][1] == ("intercept", "x")
    assert index["noise_sd"] == [()]
    by_place = FactorizedVI(MixedEffects(0, 1, [2], centred=True), max_iter=1, tol=1e9)
    summary = by_place.fit(X[["y", "g", "x"]].assign(g=1.0).to_numpy(float))
    assert ("x2",) in list(summary.global_posterior_.summary()["index"])


def by_quadrature(X, w, m):
    """Return exact means and sds of the intercept and the slope of a covariate of the groups.

    Given both sds the means of the groups are normal about (1, w) beta with variance sd^2 +
    noise^2 / n, and beta has a normal posterior; squares within the groups tell of the noise
    alone. The sds are averaged over a grid of their logs, prior and Jacobian included.
    """
    part = X.groupby("g", sort=False)["y"]
    n, mean = part.count().to_numpy(), part.mean().to_numpy()
    squares = float(((X["y"] - part.transform("mean")) ** 2).sum())
    D, prior = (
        np.column_stack([np.ones(len(n)), w]),
        np.r_[m.fixed_scale, m.group_scale_[0]] ** -2.0,
    )
    logs, means, covariances = [], [], []
    for log_sd in np.linspace(-2.7, -0.1, 41):
        for log_noise in np.linspace(-0.4, -0.1, 31):
            v = np.exp(2 * log_sd) + np.exp(2 * log_noise) / n
            precision = D.T @ (D / v[:, None]) + np.diag(prior)
            right = D.T @ (mean / v)
            beta = np.linalg.solve(precision, right)
            log = 0.5 * right @ beta - 0.5 * np.linalg.slogdet(precision)[1]
            log -= 0.5 * np.log(v).sum() + 0.5 * (mean**2 / v).sum()
            log -= (n - 1).sum() * log_noise + 0.5 * squares * np.exp(-2 * log_noise)
            log += halfnorm.logpdf(np.exp(log_sd), scale=float(m.random_scale[0])) + log_sd
            log += halfnorm.logpdf(np.exp(log_noise), scale=m.noise_scale) + log_noise
            logs.append(log)
            means.append(beta)
            covariances.append(np.linalg.inv(precision))
    p, means = np.exp(np.array(logs) - max(logs)), np.array(means)
    p /= p.sum()
    away = means - p @ means
    return p @ means, np.sqrt(p @ np.array([np.diag(c) for c in covariances]) + p @ away**2)


def test_a_covariate_of_counties_is_estimated_as_quadrature_has_it():
    X = houses()
    w = np.random.default_rng(0).normal(size=X["g"].nunique())
    X["w"] = X["g"].map(dict(zip(X["g"].unique(), w, strict=True)))
    X["y"] += 0.3 * X["w"]
    vi = FactorizedVI(
        MixedEffects("y", "g", group_covariates=["w"], centred=True), random_state=0
    ).fit(X)
    mean, sd = by_quadrature(X, w, vi.model_)
    q = vi.global_posterior_
    found = np.r_[q.mean["fixed"], q.mean["group_coefficients"].ravel()]
    corrected = np.r_[q.corrected_sd["fixed"], q.corrected_sd["group_coefficients"].ravel()]
    assert (np.abs(found - mean) < 0.1 * sd).all()
    np.testing.assert_allclose(corrected, sd, rtol=0.1)
