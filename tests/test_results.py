"""Results as data: frames, quantiles, ArviZ's trees and what notebooks show."""

import re
import sys
import warnings
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array
from scipy.stats import invgamma, lognorm, norm
from torch.distributions import Dirichlet, HalfNormal, MultivariateNormal, Normal, Uniform
from torch.distributions.constraints import less_than

from skavi import AmortizedVI, FactorizedVI, amortization_gap, can_close_gap
from skavi.distributions import Flat
from skavi.families import DiagonalNormal
from skavi.inference_functions import Constant
from skavi.models import (
    FactorAnalysis,
    GaussianProcess,
    HierarchicalModel,
    LatentVariableModel,
    LinearModel,
    LocalLevel,
    RandomEffects,
    SawTimeSeries,
    TopicModel,
)
from skavi.posterior import GlobalPosterior, LatentPosterior

QUANTILES = np.array([0.05, 0.5, 0.95])
SCHOOLS = np.array(
    [[28, 15], [8, 10], [-3, 16], [7, 11], [-1, 9], [1, 11], [18, 10], [12, 18]], float
)


class Below(Flat):
    """Flat on x < 2: its bijection falls."""

    def __init__(self):
        super().__init__()
        self.support = less_than(2.0)


class ManyKinds(HierarchicalModel):
    """One global of each kind of support."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {
            "real": Normal(torch.zeros(2, 2), 1.0),
            "positive": HalfNormal(1.0),
            "interval": Uniform(1.0, 3.0),
            "below": Below(),
            "vector": MultivariateNormal(torch.zeros(2), torch.eye(2)),
            "simplex": Dirichlet(torch.ones(2)),
        }

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta):
        return Normal(z, theta["positive"])


@pytest.fixture(scope="module")
def global_posterior():
    mean = np.array([0.1, -0.4, 2.0, 1.0, 0.3, -0.7, 0.2, 1.0, 2.0, 0.5])
    log_sd = np.log(np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 0.2, 0.3, 0.4]))
    return GlobalPosterior(ManyKinds(), DiagonalNormal(), np.concatenate([mean, log_sd]), 1)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 3)) + 0.3 * rng.normal(size=(40, 3))
    return pd.DataFrame(X, index=[f"case {i}" for i in range(40)], columns=["a", "b", "c"])


@pytest.fixture(scope="module")
def fitted(table):
    return FactorizedVI(FactorAnalysis(2), random_state=0).fit(table)


# Latents


def test_a_frame_keeps_rows_and_names(fitted, table):
    posterior = fitted.posterior(table)
    frame = posterior.to_frame()
    assert list(frame.index) == list(table.index)
    latents = ["factor0", "factor1"]
    assert list(fitted.get_feature_names_out()) == latents
    labels = ["mean", "sd", "5%", "50%", "95%"]
    assert list(frame) == [f"{name}_{label}" for name in latents for label in labels]
    np.testing.assert_array_equal(frame["factor1_mean"], posterior.mean[:, 1])
    np.testing.assert_array_equal(frame["factor0_sd"], posterior.sd[:, 0])
    np.testing.assert_array_equal(frame["factor1_95%"], posterior.quantile(0.95)[:, 1])


def test_an_array_gives_numbered_rows(fitted, table):
    fitted = FactorizedVI(LinearModel(), output="mean_sd").fit([[1.0], [2.0]])
    frame = fitted.posterior([[1.0], [2.0]]).to_frame(quantiles=(0.25,))
    assert list(frame.index) == [0, 1]
    assert list(frame) == ["factorizedvi0_mean", "factorizedvi0_sd", "factorizedvi0_25%"]


def test_a_posterior_by_hand_has_plain_names():
    posterior = LatentPosterior(np.zeros((2, 1)), np.ones((2, 1)), np.ones((2, 1, 1)))
    assert list(posterior.to_frame(quantiles=())) == ["latent0_mean", "latent0_sd"]


def test_latent_quantiles_are_the_normals(fitted, table):
    posterior = fitted.posterior(table)
    expected = norm.ppf(QUANTILES[:, None, None], posterior.mean, posterior.sd)
    np.testing.assert_allclose(posterior.quantile(QUANTILES), expected, rtol=1e-12)
    np.testing.assert_allclose(posterior.quantile(0.95), expected[2], rtol=1e-12)


@pytest.mark.parametrize("q", [-0.1, 1.5, [0.5, np.nan]])
def test_wrong_probabilities_are_named(fitted, table, q):
    with pytest.raises(ValueError, match=r"q=.*probabilities must be in \[0, 1\]"):
        fitted.posterior(table).quantile(q)
    with pytest.raises(ValueError, match=r"q=.*probabilities must be in \[0, 1\]"):
        fitted.global_posterior_.quantile(q)


# Globals


def test_global_quantiles_are_exact_through_every_elementwise_bijection(global_posterior):
    """Closed forms on the model's scale, bijections written out anew; rtol is rounding."""
    quantiles = global_posterior.quantile(QUANTILES)
    z = norm.ppf(QUANTILES)
    mean, sd = np.array([[0.1, -0.4], [2.0, 1.0]]), np.array([[0.5, 0.6], [0.7, 0.8]])
    expected = {
        "real": mean + sd * z[:, None, None],
        "positive": lognorm.ppf(QUANTILES, 0.9, scale=np.exp(0.3)),
        "interval": 1 + 2 / (1 + np.exp(-(-0.7 + 1.0 * z))),
        "below": 2 - np.exp(0.2 - 1.1 * z),  # falls in u, so takes the other tail
        "vector": np.array([1.0, 2.0]) + z[:, None] * np.array([0.2, 0.3]),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(quantiles[name], value, rtol=1e-12, err_msg=name)


def test_quantiles_of_a_simplex_agree_with_many_draws(global_posterior):
    """One logit u ~ N(0.5, 0.4^2) makes a simplex of two (stick breaking): monotone, so exact.

    4,096 Sobol draws place a quantile to about 1e-3.
    """
    first = 1 / (1 + np.exp(-(0.5 + 0.4 * norm.ppf(QUANTILES))))
    quantiles = global_posterior.quantile(QUANTILES)["simplex"]
    np.testing.assert_allclose(quantiles[:, 0], first, atol=2e-3)
    np.testing.assert_allclose(quantiles[::-1, 1], 1 - first, atol=2e-3)


def test_a_summary_has_a_row_a_number(global_posterior):
    summary = global_posterior.summary()
    assert list(summary) == ["name", "index", "mean", "sd", "corrected_sd", "5%", "50%", "95%"]
    places = [("real", (i, j)) for i in range(2) for j in range(2)]
    places += [("positive", ()), ("interval", ()), ("below", ())]
    places += [(name, (i,)) for name in ("vector", "simplex") for i in range(2)]
    assert list(zip(summary["name"], summary["index"], strict=True)) == places
    row = summary.iloc[places.index(("real", (1, 0)))]
    assert row["mean"] == pytest.approx(global_posterior.mean["real"][1, 0])
    assert row["sd"] == pytest.approx(global_posterior.sd["real"][1, 0])
    assert row["5%"] == pytest.approx(global_posterior.quantile(0.05)["real"][1, 0])
    assert summary["corrected_sd"].isna().all()  # no fit: no linear response
    assert (summary["5%"] < summary["50%"]).all() and (summary["50%"] < summary["95%"]).all()


def test_a_model_without_globals_has_an_empty_summary():
    vi = FactorizedVI(LocalLevel(level_sd=1.0, noise_sd=1.0)).fit([[1.0], [2.0]])
    assert len(vi.global_posterior_.summary()) == 0
    assert vi.global_posterior_.quantile(0.5) == {}
    assert "0 numbers" in vi.global_posterior_._repr_html_()


# ArviZ


@pytest.fixture(scope="module")
def tree(fitted, table):
    return fitted.to_arviz(table, n_draws=400, random_state=0)


def test_a_tree_names_its_dimensions(tree, table, fitted):
    sizes = {"chain": 1, "draw": 400, "row": 40, "latent": 2, "feature": 3}
    dims = {
        ("posterior", "z"): ("chain", "draw", "row", "latent"),
        ("posterior", "loadings"): ("chain", "draw", "feature", "latent"),
        ("posterior", "mean"): ("chain", "draw", "feature"),
        ("posterior", "noise_variance"): ("chain", "draw"),
        ("observed_data", "x"): ("row", "feature"),
        ("posterior_predictive", "x"): ("chain", "draw", "row", "feature"),
        ("log_likelihood", "x"): ("chain", "draw", "row"),
        ("sample_stats", "lp"): ("chain", "draw"),
        ("sample_stats", "log_q"): ("chain", "draw"),
    }
    for (group, name), names in dims.items():
        value = tree[group][name]
        assert value.dims == names
        assert value.shape == tuple(sizes[n] for n in names)
    assert {(g, str(v)) for g in tree.children for v in tree[g].data_vars} == set(dims)
    assert list(tree["posterior"]["row"].values) == list(table.index)
    assert list(tree["observed_data"]["feature"].values) == list(table.columns)
    assert list(tree["posterior"]["latent"].values) == list(fitted.get_feature_names_out())
    np.testing.assert_array_equal(tree["observed_data"]["x"], table)


def test_a_trees_densities_are_those_of_its_draws(tree, fitted, table):
    """Written out with scipy from the draws in the tree: likelihood, prior and q."""
    posterior = {name: value.values[0, 7] for name, value in tree["posterior"].data_vars.items()}
    W, m, v, z = (posterior[n] for n in ("loadings", "mean", "noise_variance", "z"))
    likelihood = norm.logpdf(table, z @ W.T + m, np.sqrt(v)).sum(1)
    np.testing.assert_allclose(tree["log_likelihood"]["x"][0, 7], likelihood, rtol=1e-9)
    model, q = fitted.model_, fitted.global_posterior_
    prior = norm.logpdf(W, 0, float(model.loading_scale)).sum()
    prior += norm.logpdf(m, model.mean_loc, float(model.mean_scale)).sum()
    # The density of log v: that of v times v.
    prior += invgamma.logpdf(v, model.noise_shape, scale=float(model.noise_scale)) + np.log(v)
    lp = likelihood.sum() + norm.logpdf(z).sum() + prior
    assert float(tree["sample_stats"]["lp"][0, 7]) == pytest.approx(lp, rel=1e-7)
    latents = fitted.posterior(table)
    log_q = norm.logpdf(z, latents.mean, latents.sd).sum()
    for name, u in (("loadings", W), ("mean", m), ("noise_variance", np.log(v))):
        centre, sd = (
            d[name].reshape(np.shape(u)) for d in (q.unconstrained_mean, q.unconstrained_sd)
        )
        log_q += norm.logpdf(u, centre, sd).sum()
    assert float(tree["sample_stats"]["log_q"][0, 7]) == pytest.approx(log_q, rel=1e-7)


def test_predictions_are_drawn_from_the_likelihood(tree):
    """Residuals over the noise's sd are standard normal: 48,000 of them, 5 standard errors."""
    posterior = tree["posterior"]
    mean = (posterior["z"] * posterior["loadings"]).sum("latent") + posterior["mean"]
    noise = (tree["posterior_predictive"]["x"] - mean) / np.sqrt(posterior["noise_variance"])
    assert abs(float(noise.mean())) < 5 / np.sqrt(noise.size)
    assert float(noise.var()) == pytest.approx(1, abs=5 * np.sqrt(2 / noise.size))


def test_a_seed_fixes_the_tree(fitted, table, tree):
    again = fitted.to_arviz(table, n_draws=400, random_state=0)
    assert all(again[group].equals(tree[group]) for group in tree.children)
    other = fitted.to_arviz(table, n_draws=400, random_state=1)
    assert not other["posterior"].equals(tree["posterior"])
    assert not other["posterior_predictive"].equals(tree["posterior_predictive"])


@pytest.mark.filterwarnings("ignore::skavi.models.CouplingBiasWarning")
@pytest.mark.parametrize(
    ("model", "X"),
    [
        (RandomEffects(), SCHOOLS),
        (LocalLevel(), np.cumsum(np.random.default_rng(0).normal(size=(8, 1)), 0)),
        (GaussianProcess(), np.column_stack([np.arange(5.0), [0.1, 0.5, 0.4, -0.2, 0.3]])),
        (SawTimeSeries(), [[1.0], [2.0], [0.5], [0.3]]),
    ],
    ids=["effects", "chain", "process", "series"],
)
def test_every_kind_of_model_gives_predictions_and_likelihoods(model, X):
    X = np.asarray(X)
    tree = FactorizedVI(model, random_state=0).fit(X).to_arviz(X, 50, random_state=0)
    assert tree["posterior_predictive"]["x"].shape == (1, 50, *X.shape)
    assert tree["log_likelihood"]["x"].shape == (1, 50, len(X))
    # What the model does not explain (standard errors, times) is kept.
    for column in {RandomEffects: [1], GaussianProcess: [0]}.get(type(model), []):
        predicted = tree["posterior_predictive"]["x"].values[0, :, :, column]
        np.testing.assert_array_equal(predicted, np.broadcast_to(X[:, column], predicted.shape))


@pytest.mark.filterwarnings("ignore:FactorizedVI did not converge")
def test_sparse_counts_give_the_tree_of_dense_ones():
    X = np.random.default_rng(0).poisson(1.0, size=(8, 5)).astype(float)
    vi = FactorizedVI(TopicModel(2), max_iter=5, random_state=0).fit(X)
    dense = vi.to_arviz(X, 10, random_state=0)
    sparse = vi.to_arviz(csr_array(X), 10, random_state=0)
    np.testing.assert_array_equal(dense["observed_data"]["x"], X)
    assert all(dense[group].equals(sparse[group]) for group in dense.children)


class OnlyAJointDensity(LatentVariableModel):
    def __init__(self, name="theta"):
        self.name = name

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {self.name: Normal(0.0, 1.0)}

    def log_joint(self, theta, z, X):
        return -0.5 * ((X - theta[self.name] - z) ** 2 + z**2).sum()


def test_a_bare_log_joint_gives_what_it_can():
    X = [[1.0], [2.0]]
    tree = FactorizedVI(OnlyAJointDensity()).fit(X).to_arviz(X, 20, random_state=0)
    assert set(tree.children) == {"posterior", "sample_stats", "observed_data"}
    assert tree["sample_stats"]["lp"].shape == (1, 20)


def test_arviz_takes_the_trees(tree, table):
    """ArviZ's summary, LOO and comparison; its own word on high k-hats may warn, we may not."""
    import arviz_stats

    summary = arviz_stats.summary(tree, var_names=["loadings"], round_to="none")
    np.testing.assert_allclose(
        summary["mean"].astype(float),
        tree["posterior"]["loadings"].mean(("chain", "draw")).values.ravel(),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto", UserWarning)
        loo = arviz_stats.loo(tree)
    assert loo.n_data_points == len(table)
    # The naive LOO bound: each row's mean log likelihood is above its leave-one-out density.
    mean = float(tree["log_likelihood"]["x"].mean(("chain", "draw")).sum())
    assert loo.elpd < mean


def test_latents_alone_make_a_tree(fitted, table):
    latents = fitted.posterior(table).to_arviz(n_draws=100, random_state=0)
    assert latents["posterior"]["z"].dims == ("chain", "draw", "row", "latent")
    expected = fitted.posterior(table).sample(100, random_state=0)
    np.testing.assert_array_equal(latents["posterior"]["z"].values[0], expected)


def test_what_a_tree_needs_is_said(fitted, table):
    with pytest.raises(ValueError, match="n_draws=0 must be an integer >= 1"):
        fitted.to_arviz(table, n_draws=0)
    named = FactorizedVI(OnlyAJointDensity("x")).fit([[1.0], [2.0]])
    with pytest.raises(ValueError, match="global named 'x'"):
        named.to_arviz([[1.0]], n_draws=1)


@pytest.mark.parametrize(
    ("library", "install", "call"),
    [
        ("arviz_base", "skavi[arviz]", lambda vi: vi.to_arviz([[1.0]], 2)),
        ("arviz_base", "skavi[arviz]", lambda vi: vi.posterior([[1.0]]).to_arviz(2)),
        ("pandas", "pandas", lambda vi: vi.posterior([[1.0]]).to_frame()),
        ("pandas", "pandas", lambda vi: vi.global_posterior_.summary()),
    ],
    ids=["tree", "latents", "frame", "summary"],
)
def test_a_missing_library_is_named(monkeypatch, library, install, call):
    vi = FactorizedVI(LinearModel()).fit([[1.0], [2.0]])
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    with pytest.raises(ImportError, match=re.escape(f'pip install "{install}"')):
        call(vi)


# What notebooks show


class Cells(HTMLParser):
    """Collect the text of every element; fail on markup that does not nest."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts = [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1], data))

    def rows_of(self, tag):
        return [text for kind, text in self.texts if kind == tag]


def test_a_latent_posterior_shows_its_first_rows(fitted, table):
    posterior = fitted.posterior(table)
    cells = Cells(posterior._repr_html_())
    assert cells.rows_of("th") == ["row", "factor0", "factor1"]
    assert cells.rows_of("td")[:2] == [
        "case 0",
        f"{posterior.mean[0, 0]:.3g} ± {posterior.sd[0, 0]:.2g}",
    ]
    assert len(cells.rows_of("td")) == 10 * 3
    assert "first 10 of 40 rows" in "".join(cells.rows_of("p"))


def test_a_global_posterior_shows_its_summary(fitted):
    cells = Cells(fitted.global_posterior_._repr_html_())
    assert cells.rows_of("strong") == ["GlobalPosterior: 10 numbers"]
    assert cells.rows_of("th") == [
        "name",
        "index",
        "mean",
        "sd",
        "corrected_sd",
        "5%",
        "50%",
        "95%",
    ]
    row = fitted.global_posterior_.summary().iloc[0]
    assert cells.rows_of("td")[:3] == [row["name"], str(row["index"]), f"{row['mean']:.4g}"]


def test_labels_cannot_inject_markup(table):
    frame = table.set_axis([f"<script>{i}" for i in range(40)])
    html = FactorizedVI(FactorAnalysis(1)).fit(frame).posterior(frame)._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;0" in html


def test_a_gap_and_a_verdict_show_what_they_found():
    X = np.array([[0.0], [1.0], [5.0]])
    gap = amortization_gap(AmortizedVI(LinearModel(), Constant()).fit(X), X)
    cells = Cells(gap._repr_html_()).rows_of("td")
    cells = dict(zip(cells[::2], cells[1::2], strict=True))
    assert cells["total"].startswith(f"{gap.total:.4g}")
    assert cells["largest gap of a row"].endswith("(row 2)")
    open_, closed = can_close_gap(LocalLevel(), X), can_close_gap(LinearModel(), X)
    assert "cannot be closed" in open_._repr_html_()
    assert "can be closed" in closed._repr_html_()
    assert closed.reason in "".join(Cells(closed._repr_html_()).rows_of("p"))


@pytest.mark.parametrize(
    ("thing", "page"),
    [
        (FactorizedVI(), "skavi.FactorizedVI.html"),
        (AmortizedVI(), "skavi.AmortizedVI.html"),
        (LinearModel(), "skavi.models.LinearModel.html"),
        (DiagonalNormal(), "skavi.families.DiagonalNormal.html"),
    ],
    ids=repr,
)
def test_the_html_of_estimators_links_to_our_documentation(thing, page):
    link = f"https://skavi.readthedocs.io/en/stable/generated/{page}"
    assert thing._get_doc_link() == link
    assert f'href="{link}"' in thing._repr_html_()
