"""TopicModel: densities, bounds, recovered topics, sparse rows end to end."""

import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.integrate import quad
from scipy.special import gammaln, log_softmax, logsumexp, softmax
from scipy.stats import multinomial, norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import estimator_checks_generator

from seeds import seeds
from skavi import AmortizedVI, FactorizedVI, can_close_gap
from skavi._data import sparse_rows
from skavi._data.rows import Rows, distinct
from skavi._data.sparse_rows import CrowdedRows, SparseRows
from skavi._fit.model_checks import goes_through_vmap
from skavi.diagnostics import held_out_perplexity
from skavi.families import DiagonalFactors, DiagonalNormal
from skavi.inference_functions import MLP, Constant, Polynomial
from skavi.models import TopicModel
from skavi.models._topic_closed_forms import softmax_step
from skavi.noise import QuasiMonteCarlo

rng = np.random.default_rng(0)


def simulated(n_rows=300, n_features=40, n_topics=3, length=80, seed=0):
    """Return documents of topics that share few words, proportions and topics."""
    rng = np.random.default_rng(seed)
    topics = softmax(3 * rng.normal(size=(n_topics, n_features)), axis=1)
    proportions = softmax(2 * rng.normal(size=(n_rows, n_topics)), axis=1)
    X = np.stack([rng.multinomial(length, row) for row in proportions @ topics])
    return X.astype(float), proportions, topics


X, PROPORTIONS, TOPICS = simulated()


# --- sparse rows --------------------------------------------------------------------------------


def sparse_and_dense(n_rows=7, n_features=5, seed=0):
    rng = np.random.default_rng(seed)
    dense = rng.poisson(0.6, size=(n_rows, n_features)).astype(float)
    dense[2] = 0
    return SparseRows.from_scipy(dense), torch.as_tensor(dense)


def test_sparse_rows_are_the_dense_ones():
    rows, dense = sparse_and_dense()
    index = torch.tensor([5, 2, 2, 0])
    assert torch.equal(rows.dense(), dense)
    assert torch.equal(rows[index].dense(), dense[index])
    assert torch.equal(rows[1:4].dense(), dense[1:4])
    assert torch.equal(SparseRows.of(dense).dense(), dense)
    assert torch.equal(rows.transposed.dense(), dense.mT)
    assert torch.equal(rows.totals, dense.sum(1))
    assert [len(part) for part in rows.split(3)] == [3, 3, 1]


def test_explicit_zeros_and_repeated_cells_make_no_difference():
    messy = scipy.sparse.coo_matrix(([1.0, 2.0, 0.0, 4.0], ([0, 0, 1, 1], [2, 2, 0, 1])), (2, 3))
    rows = SparseRows.from_scipy(messy)
    assert rows.numel() == 2
    assert rows.dense().tolist() == [[0.0, 0.0, 3.0], [0.0, 4.0, 0.0]]


def test_products_at_crowded_cells_are_those_at_sparse_ones():
    """Of batches too; rows of which nearly all is zero stay as they are."""
    rows, dense = sparse_and_dense()
    crowded = CrowdedRows.if_crowded(rows)
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    right = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    assert isinstance(crowded, CrowdedRows)
    torch.testing.assert_close(crowded.sampled(left, right), rows.sampled(left, right))
    cells = (left[0] @ right.mT)[dense != 0]
    torch.testing.assert_close(crowded.sampled(left[0], right), cells, rtol=1e-14, atol=0)
    empty = SparseRows.from_scipy(scipy.sparse.csr_array(([1.0], ([3], [7])), (10, 10)))
    assert CrowdedRows.if_crowded(empty) is empty


@pytest.mark.parametrize("most", [0, 1000])
def test_quotients_times_a_matrix_are_those_of_dense_ones(most, monkeypatch):
    """Of stored cells, and of all: 0 / 0 is 0, as where a topic cannot say a word."""
    monkeypatch.setattr(sparse_rows, "_FULL", most)
    rows, dense = sparse_and_dense()
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.rand(n, 3, generator=generator, dtype=torch.float64) for n in (7, 5))
    right[dense[0].argmin()] = 0
    rows = rows.with_values(torch.where(rows.columns == dense[0].argmin(), 0.0, rows.values))
    dense, weights = rows.dense(), torch.linspace(0.5, 2, 7, dtype=torch.float64)
    quotients = torch.nan_to_num(dense / (left @ right.mT))
    for each in (rows, CrowdedRows.if_crowded(rows)):
        torch.testing.assert_close(each.quotients_times(left, right), quotients @ right)
        ours = each.transposed_quotients_times(left, right, weights)
        torch.testing.assert_close(ours, quotients.mT @ (weights[:, None] * left))


def test_products_and_their_first_two_derivatives():
    """Against dense products: gradcheck compares with finite differences."""
    rows, dense = sparse_and_dense()
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    right = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(rows @ right, dense @ right)
    where = rows.row, rows.columns
    torch.testing.assert_close(rows.sampled(left, right), (left @ right.mT)[where])
    torch.testing.assert_close(rows.transposed_product(rows.values, left), dense.mT @ left)
    left.requires_grad_(), right.requires_grad_()
    cells = rows.values.clone().requires_grad_()
    for function, arguments in ((rows.sampled, (left, right)), (rows.product, (cells, right))):
        with torch.random.fork_rng(devices=[]):
            assert torch.autograd.gradcheck(function, arguments)
            assert torch.autograd.gradgradcheck(function, arguments)


@pytest.mark.parametrize("with_grad", [True, False])
def test_products_go_through_vmap_without_a_loop(with_grad, capfd):
    """Nested, with either side shared; beside dense products. torch tells of a loop on stderr."""
    rows, _ = sparse_and_dense()
    generator = torch.Generator().manual_seed(0)
    shapes = (4, 3, 7, 2), (4, 3, 5, 2), (4, 3, rows.numel())
    left, right, cells = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=with_grad)
        for shape in shapes
    )
    filled = torch.zeros(4, 3, 7, 5, dtype=torch.float64)
    filled[:, :, rows.row, rows.columns] = cells.detach()

    def at_cells(table):
        return table[..., rows.row, rows.columns]

    vmap, expected = torch.func.vmap, left @ right.mT
    with torch.set_grad_enabled(with_grad), warnings.catch_warnings():
        warnings.simplefilter("error")
        sampled, product = (vmap(vmap(f)) for f in (rows.sampled, rows.product))
        outer = vmap(vmap(rows.sampled, (0, None)), (1, 0), 1)(left, right[0])
        torch.testing.assert_close(sampled(left, right), at_cells(expected))
        torch.testing.assert_close(product(cells, right), filled @ right)
        torch.testing.assert_close(outer, at_cells(left @ right[0].mT))
        few = vmap(rows.sampled, (None, 0))(left[0, 0], right[0])
        torch.testing.assert_close(few, at_cells(left[0, 0] @ right[0].mT))
        shared = vmap(rows.product, (0, None))(cells[0], right[0, 0])
        torch.testing.assert_close(shared, filled[0] @ right[0, 0])
    assert "performance drop" not in capfd.readouterr().err
    if with_grad:
        with torch.random.fork_rng(devices=[]):
            for f, arguments in (
                (vmap(rows.sampled), (left[0], right[0])),
                (vmap(rows.sampled, (0, None)), (left[0], right[0, 0])),
                (vmap(rows.product), (cells[0], right[0])),
                (vmap(rows.product, (None, 0)), (cells[0, 0], right[0])),
            ):
                leaves = [a.detach().requires_grad_() for a in arguments]
                assert torch.autograd.gradcheck(f, leaves)
                assert torch.autograd.gradgradcheck(f, leaves)


def test_draws_of_a_topic_model_are_evaluated_at_once(fitted):
    """To rounding what a loop over the draws gives."""
    rows = SparseRows.from_scipy(X[:20])
    objective, globals_ = fitted._fitted_model.objective, torch.as_tensor(fitted._raw_globals)
    raw = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nodes = QuasiMonteCarlo(8).nodes(objective.n_drawn_globals, objective.n_latents, 20, None)
    batched, looped = (
        replace(objective, batched=b).expected_log_terms(
            objective.local_factors(raw), objective.global_factor(globals_), rows, nodes
        )
        for b in (True, False)
    )
    torch.testing.assert_close(batched, looped, rtol=1e-12, atol=0)
    weighted = Rows(rows, torch.ones(20, dtype=torch.float64))
    assert goes_through_vmap(objective, globals_, weighted)


def test_distinct_rows_of_sparse_and_dense_are_the_same():
    rows, dense = sparse_and_dense(40, 2)
    sparse_rows, sparse_index = distinct(rows)
    dense_rows, _ = distinct(dense)
    assert len(sparse_rows) == len(dense_rows) < 40
    assert torch.equal(sparse_rows.dense()[sparse_index], dense)


# --- densities and bounds -----------------------------------------------------------------------


def test_log_density_is_the_multinomial_one():
    model = TopicModel(3, proportion_scale=1.5)
    z, topics = rng.normal(size=(4, 3)), rng.normal(size=(3, 6))
    counts = rng.poisson(2.0, size=(4, 6)).astype(float)
    p = softmax(z, axis=1) @ softmax(topics, axis=1)
    likelihood = [
        multinomial.logpmf(x, int(x.sum()), row) for x, row in zip(counts, p, strict=True)
    ]
    prior = norm.logpdf(z, 0, 1.5).sum(1)
    theta, where = (
        {"topics": torch.as_tensor(topics)},
        (torch.as_tensor(z), torch.as_tensor(counts)),
    )
    np.testing.assert_allclose(model.log_likelihood(theta, *where), likelihood, rtol=1e-12)
    np.testing.assert_allclose(model.log_local(theta, *where), likelihood + prior, rtol=1e-12)


def test_simulated_documents_follow_the_density():
    """Word frequencies of 20,000 documents within 5 standard errors of E[proportions] words."""
    model = TopicModel(2, topic_loc=np.zeros(3))
    theta = {"topics": torch.tensor([[2.0, 0.0, -1.0], [-1.0, 0.0, 1.0]]).double()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        counts, z = model.simulate(theta, 20_000, 3)
    assert (counts.sum(1) == 100).all()
    share = counts / 100
    expected = model.predicted_mean(theta, z.double())
    error = (share - expected).mean(0).abs()
    assert (error < 5 * 0.5 / np.sqrt(100 * 20_000)).all()
    np.testing.assert_allclose(
        expected.mean(0)[1], theta["topics"].softmax(1)[:, 1].mean(), atol=0.01
    )


def test_replicated_documents_are_multinomial():
    """Means and variances N p and N p (1 - p), by 20,000 draws within 5 standard errors.

    The kurtosis of a binomial count is below 3 + 1 / (N p (1 - p)): below 4 for these.
    """
    model, n = TopicModel(2), 20_000
    topics = torch.tensor([[2.0, 0.0, -1.0, 0.5], [-1.0, 0.0, 1.0, 0.5]]).double()
    theta, z = {"topics": topics}, torch.tensor([[0.3, -0.4]]).double()
    counts = scipy.sparse.csr_array([[7.0, 0.0, 5.4, 0.0]])  # 12.4 words: 12
    for X in (torch.as_tensor(counts.toarray()), SparseRows.from_scipy(counts)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            index = torch.zeros(n, dtype=torch.int64)
            drawn = model.replicate(theta, z.expand(n, 2), X[index]).numpy()
        assert drawn.shape == (n, 4)
        assert (drawn.sum(1) == 12).all()
        p = multinomial(12, (z.softmax(1) @ topics.softmax(1))[0].numpy())
        variance = np.diag(p.cov())
        assert (np.abs(drawn.mean(0) - p.p * 12) < 5 * np.sqrt(variance / n)).all()
        np.testing.assert_allclose(drawn.var(0), variance, rtol=5 * np.sqrt((4 - 1) / n))


def test_no_words_are_replicated_for_an_empty_document():
    theta, z = {"topics": torch.zeros(2, 3).double()}, torch.zeros(2, 2).double()
    with torch.random.fork_rng():
        assert not TopicModel(2).replicate(theta, z, torch.zeros(2, 3).double()).any()
        assert TopicModel(2).replicate(theta, z[:0], torch.zeros(0, 3).double()).shape == (0, 3)


def test_arviz_gets_predictions_and_likelihoods(fitted):
    """From the tree's own draws, by scipy; documents as long as the ones observed."""
    tree = fitted.to_arviz(scipy.sparse.csr_array(X[:6]), n_draws=5, random_state=0)
    z, topics = (tree["posterior"][name].values[0, 3] for name in ("z", "topics"))
    p = z @ softmax(topics, axis=1)
    expected = [multinomial.logpmf(x, 80, row) for x, row in zip(X[:6], p, strict=True)]
    np.testing.assert_allclose(tree["log_likelihood"]["x"].values[0, 3], expected, rtol=1e-9)
    assert tree["posterior_predictive"]["x"].dims == ("chain", "draw", "row", "feature")
    assert (tree["posterior_predictive"]["x"].sum("feature") == 80).all()
    assert tree["posterior"]["topics"].dims == ("chain", "draw", "latent", "feature")


def test_a_given_q_of_the_topics_changes_no_term(fitted):
    """What is worked out once for all steps is what each would have worked out."""
    rows = SparseRows.from_scipy(X[:20])
    objective, globals_ = fitted._fitted_model.objective, torch.as_tensor(fitted._raw_globals)
    raw = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = objective.given(globals_)
    assert torch.equal(given.global_term(globals_), objective.global_term(globals_))
    terms = (o.row_terms(raw, globals_, rows, None) for o in (given, objective))
    assert torch.equal(*terms)


def one_latent_evidence(x, topics, scale):
    """Log evidence of a document, two topics given: only z_1 - z_2 ~ N(0, 2 scale^2) matters."""
    words = log_softmax(topics, axis=1)
    coefficient = gammaln(x.sum() + 1) - gammaln(x + 1).sum()

    def log_density(d):
        share = np.array([-np.logaddexp(0, -d), -np.logaddexp(0, d)])
        return x @ logsumexp(share[:, None] + words, axis=0) + norm.logpdf(d, 0, scale * 2**0.5)

    grid = np.linspace(-30, 30, 4001)
    top = max(log_density(d) for d in grid)
    area, _ = quad(lambda d: np.exp(log_density(d) - top), -40, 40, limit=500)
    return coefficient + top + np.log(area)


def test_bound_is_below_the_evidence_and_near_it():
    """Topics known to 1e-6: the row's bound is under its evidence.

    It loses the tokens' own coupling and the normaliser's second order (Blei & Lafferty 2007): at
    these wide proportions about two nats a document. The ELBO itself, by draws, lies between.
    """
    topics = np.array([[3.0, 2.0, 1.0, -3.0, -3.0], [-3.0, -3.0, 0.0, 2.0, 3.0]])
    documents = np.array([[6.0, 3, 1, 0, 0], [4, 1, 1, 2, 3], [0, 0, 2, 5, 9], [1, 0, 0, 0, 0]])
    model = TopicModel(2, topic_loc=np.zeros(5))
    factor = DiagonalFactors(torch.as_tensor(topics).reshape(-1), torch.full((10,), 1e-6).double())
    rows = torch.as_tensor(documents)
    best = model.local_optimum(factor, rows, DiagonalNormal())
    bound = (model.expected_log_local(best, factor, rows) + best.entropy()).numpy()
    evidence = np.array([one_latent_evidence(x, topics, 2.0) for x in documents])
    assert (bound < evidence).all()
    assert (evidence - bound < 2.5).all()
    noise = torch.randn(4000, 1, 2, generator=torch.Generator().manual_seed(0)).double()
    z = best.draw(torch.cat([noise, -noise]))
    theta = {"topics": torch.as_tensor(topics)}
    drawn = model.log_local(theta, z.reshape(-1, 2), rows.repeat(len(z), 1)).reshape(len(z), -1)
    drawn = drawn.mean(0) + best.entropy()
    assert (drawn.numpy() < evidence + 0.02).all()
    assert (bound < drawn.numpy() + 0.02).all()


def test_softmax_step_climbs_to_the_stationary_point():
    """Every step raises the objective; at the end its gradient, by autograd, is zero."""
    generator = torch.Generator().manual_seed(0)
    counts = 30 * torch.rand(5, 4, generator=generator, dtype=torch.float64) ** 4
    total, loc = counts.sum(-1, keepdim=True), torch.zeros(4).double()
    precision = torch.tensor(0.25).double()

    def objective(mean, log_variance):
        variance = log_variance.exp()
        fit = (counts * mean).sum(-1) - total[:, 0] * torch.logsumexp(mean + variance / 2, -1)
        prior = -0.5 * precision * ((mean - loc) ** 2 + variance)
        return fit + (prior + 0.5 * log_variance).sum(-1)

    mean, variance = torch.zeros(5, 4).double(), torch.full((5, 4), 4.0).double()
    value = objective(mean, variance.log())
    for _ in range(200):
        mean, variance = softmax_step(counts, total, loc, precision, mean, variance)
        new = objective(mean, variance.log())
        assert (new >= value - 1e-12 * value.abs()).all()
        value = new
    unknowns = mean.requires_grad_(), variance.log().requires_grad_()
    gradients = torch.autograd.grad(objective(*unknowns).sum(), unknowns)
    assert max(float(g.abs().max()) for g in gradients) < 1e-6


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_coordinate_ascent_never_lowers_the_bound():
    vi = FactorizedVI(TopicModel(3, resolution=0), random_state=0, max_iter=60).fit(X)
    assert (np.diff(vi.elbo_curve_) >= -1e-9 * abs(vi.elbo_)).all()


def test_resolution_is_where_a_fit_stops():
    """A finer one goes on, and gains."""
    coarse = FactorizedVI(TopicModel(3, resolution=1e-2), random_state=0).fit(X)
    fine = FactorizedVI(TopicModel(3, resolution=1e-4), random_state=0).fit(X)
    assert coarse.converged_
    assert fine.converged_
    assert fine.n_iter_ > coarse.n_iter_
    assert fine.elbo_ > coarse.elbo_


# --- what a fit finds ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[FactorizedVI, AmortizedVI], ids=lambda e: e.__name__)
def fitted(request):
    return request.param(TopicModel(3), random_state=0).fit(X)


def best_order(found, truth):
    return min(permutations(range(len(truth))), key=lambda p: np.abs(found[list(p)] - truth).sum())


def test_topics_and_proportions_are_recovered(fitted):
    """24,000 words on 120 probabilities: sampling leaves about 0.01 a topic's largest word."""
    found = fitted.model_.word_probabilities(fitted.global_posterior_)
    order = list(best_order(found, TOPICS))
    assert np.abs(found[order] - TOPICS).max() < 0.03
    shares = fitted.transform(X)[:, order]
    # A share of 80 words has an sd of up to sqrt(0.25 / 80) = 0.056; below twice that.
    assert np.sqrt(np.mean((shares - PROPORTIONS) ** 2)) < 0.1


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_word_probabilities_are_expected_ones():
    """Against the mean over draws of q(topics), whose sds are larger the rarer a word is.

    The ratio of expectations is right to a few in a hundred with 200 words, and so are means of
    4,000 draws; at the topics' means rare words would have a tenth too little.
    """
    rates = np.r_[np.full(20, 10.0), np.full(180, 0.05)]
    documents = np.random.default_rng(0).poisson(rates, size=(10, 200)).astype(float)
    vi = FactorizedVI(TopicModel(2), max_iter=5, random_state=0).fit(documents)
    logits = vi.global_posterior_.sample(4000, random_state=0)["topics"]
    expected = softmax(logits, -1).mean(0)
    found = vi.model_.word_probabilities(vi.global_posterior_)
    np.testing.assert_allclose(found.sum(-1), 1.0)
    assert np.abs((found / expected)[:, 20:].mean(-1) - 1).max() < 0.03
    at_means = softmax(vi.global_posterior_.mean["topics"], -1)
    assert (at_means / expected)[:, 20:].mean(-1).max() < 0.9


def test_dense_and_sparse_are_one(fitted):
    again = type(fitted)(TopicModel(3), random_state=0).fit(scipy.sparse.csr_array(X))
    assert again.elbo_ == fitted.elbo_
    sparse = scipy.sparse.csr_matrix(X[:20])
    for method in ("transform", "score_samples"):
        assert np.array_equal(getattr(again, method)(sparse), getattr(fitted, method)(X[:20]))
    assert np.array_equal(fitted.posterior(sparse).sd, fitted.posterior(X[:20]).sd)


def test_a_row_does_not_depend_on_the_others(fitted):
    together = fitted.transform(X)
    alone = np.concatenate([fitted.transform(X[n : n + 1]) for n in range(20)])
    np.testing.assert_allclose(alone, together[:20], rtol=0, atol=1e-9)


def test_prediction_and_simulation(fitted):
    Z = fitted.transform(X[:5])
    expected = fitted.inverse_transform(Z)
    assert expected.shape == (5, 40)
    np.testing.assert_allclose(expected.sum(1), 1, rtol=1e-12)
    drawn, latents = fitted.sample(50, random_state=0)
    assert drawn.shape == (50, 40)
    assert latents.shape == (50, 3)
    assert set(drawn.sum(1)) == {80.0}


def test_an_empty_document_keeps_its_prior():
    vi = FactorizedVI(TopicModel(3), random_state=0).fit(np.vstack([X, np.zeros((2, 40))]))
    posterior = vi.posterior(np.zeros((1, 40)))
    np.testing.assert_allclose(posterior.logits.mean, 0, atol=1e-3)
    np.testing.assert_allclose(posterior.logits.sd, 2, rtol=1e-3)
    np.testing.assert_allclose(posterior.mean, 1 / 3, atol=0.01)
    np.testing.assert_allclose(vi.score_samples(np.zeros((1, 40))), 0, atol=1e-6)
    amortized = AmortizedVI(TopicModel(3), random_state=0).fit(np.vstack([X, np.zeros((2, 40))]))
    assert np.isfinite(amortized.transform(np.zeros((1, 40)))).all()


def test_a_pipeline_from_text_to_classes():
    """Two subjects that share a few words: their topics tell them apart."""
    rng = np.random.default_rng(0)
    subjects = ["cat dog pet tail paw fur", "bond stock fund rate bank yield"]
    labels = rng.integers(2, size=120)
    shared = ["the", "and", "with"]
    texts = [" ".join(rng.choice(subjects[c].split() * 3 + shared, size=15)) for c in labels]
    pipeline = make_pipeline(
        CountVectorizer(), AmortizedVI(TopicModel(2), random_state=0), LogisticRegression()
    )
    pipeline.fit(texts[:80], labels[:80])
    assert pipeline.score(texts[80:], labels[80:]) > 0.95
    vi, names = pipeline[1], pipeline[0].get_feature_names_out()
    tops = vi.model_.top_words(vi.global_posterior_, names, 6)
    for subject in subjects:
        assert max(len(set(words) & set(subject.split())) for words in tops) >= 5


def test_held_out_perplexity_is_the_definition():
    rest = np.floor(X[:30] / 2)
    p = PROPORTIONS[:30] @ TOPICS
    expected = np.exp(-(rest * np.log(p)).sum() / rest.sum())
    for held_out in (rest, scipy.sparse.csr_matrix(rest)):
        found = held_out_perplexity(PROPORTIONS[:30], TOPICS, held_out)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("held_out", "message"),
    [(X[:29], r"held_out has shape \(29, 40\)"), (0 * X[:30], "held_out has no words")],
)
def test_unusable_held_out_words(held_out, message):
    with pytest.raises(ValueError, match=message):
        held_out_perplexity(PROPORTIONS[:30], TOPICS, held_out)


def test_amortizing_topics_costs_nothing_in_principle():
    verdict = can_close_gap(TopicModel(3), n_features=6, random_state=0)
    assert verdict.closable
    assert verdict.context == (0, 0)


# --- what cannot be used ------------------------------------------------------------------------


def changed(value):
    bad = X.copy()
    bad[17, 2] = value
    return bad


@pytest.mark.parametrize("to", [np.asarray, scipy.sparse.csr_matrix], ids=["dense", "CSR"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (changed(-1), r"1 negative entry \(first at row 17, column 2\).*needs counts >= 0"),
        (changed(np.nan), "Input X contains NaN"),
        (changed(np.inf), "Input X contains infinity"),
    ],
    ids=["negative", "NaN", "infinite"],
)
def test_unusable_counts(to, bad, message):
    with pytest.raises(ValueError, match=message):
        FactorizedVI(TopicModel(2)).fit(to(bad))


def test_several_negative_entries_are_counted():
    bad = changed(-1)
    bad[20, :2] = -2
    with pytest.raises(ValueError, match=r"3 negative entries \(first at row 17, column 2\)"):
        FactorizedVI(TopicModel(2)).fit(bad)


def test_fractions_count_as_they_are():
    """The mixture's part of the log density is linear in the counts, so half of them have half.

    The rest is the prior and the multinomial coefficient, by scipy's gammaln.
    """
    model, theta = TopicModel(3), {"topics": torch.as_tensor(np.log(TOPICS))}
    z = torch.as_tensor(rng.normal(size=(5, 3)))

    def of_words(x):
        prior = norm.logpdf(z.numpy(), 0, 2).sum(1)
        coefficient = gammaln(x.sum(1) + 1) - gammaln(x + 1).sum(1)
        return model.log_local(theta, z, torch.as_tensor(x)).numpy() - prior - coefficient

    np.testing.assert_allclose(2 * of_words(X[:5] / 2), of_words(X[:5]), rtol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_components": 0}, "n_components must be >= 1"),
        ({"proportion_scale": 0.0}, "proportion_scale must be positive"),
        ({"topic_scale": -1.0}, "topic_scale must be positive"),
        ({"resolution": -1.0}, "resolution must be >= 0"),
    ],
)
def test_unusable_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        FactorizedVI(TopicModel(**arguments)).fit(X)


def test_models_that_need_dense_rows_say_so():
    with pytest.raises(TypeError, match="dense data is required"):
        FactorizedVI().fit(scipy.sparse.csr_matrix(X))


# --- what inference functions read --------------------------------------------------------------


@pytest.mark.parametrize("function", seeds(MLP(hidden_layer_sizes=(8,)), Polynomial(1)), ids=str)
def test_any_function_reads_the_summary(function):
    """Three topics, one length: four numbers a document. On X as on CSR, and above a constant."""
    sparse = AmortizedVI(TopicModel(3), function, random_state=0).fit(scipy.sparse.csr_matrix(X))
    assert sparse.model_.summary(torch.as_tensor(X)).shape == (300, 4)
    dense = AmortizedVI(TopicModel(3), function, random_state=0).fit(X)
    assert sparse.elbo_ == dense.elbo_
    assert sparse.elbo_ > AmortizedVI(TopicModel(3), Constant(), random_state=0).fit(X).elbo_ + 300


def test_a_module_gets_as_far_as_factors_of_its_own():
    """It starts from its own weights, far off: falling steps would leave it 60 nats below.

    The factorized fit stops 0.001 nats a word, 24 in all, below its optimum at most.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = torch.nn.Sequential(
            torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 6)
        ).double()
    vi = AmortizedVI(TopicModel(3), module, random_state=0).fit(X)
    assert vi.converged_
    assert vi.elbo_ > FactorizedVI(TopicModel(3), random_state=0).fit(X).elbo_ - 24


def test_the_summary_is_near_the_factors():
    """Its softmax, counts over their sum, is within 0.1 of the factorized fit's proportions."""
    rows = torch.as_tensor(X)
    vi = FactorizedVI(TopicModel(3), random_state=0).fit(X)
    objective = vi._fitted_model.objective
    model = vi.model_.reading(objective.global_factor(torch.as_tensor(vi._raw_globals)))
    shares = model.summary(rows)[:, :3].softmax(1).numpy()
    assert np.sqrt(np.mean((shares - vi.transform(X)) ** 2)) < 0.1


def test_a_summary_of_an_empty_or_long_document_is_finite():
    documents = torch.zeros(3, 40).double()
    documents[1], documents[2, 0] = 1e12, 1e300
    factor = DiagonalFactors(torch.zeros(120).double(), torch.ones(120).double())
    summary = TopicModel(3).reading(factor).summary(documents)
    assert bool(torch.isfinite(summary).all())
    torch.testing.assert_close(summary[0], torch.tensor([0.1, 0.1, 0.1, 1.0]).double().log())


def test_top_words_need_a_name_a_word(fitted):
    with pytest.raises(ValueError, match="feature_names has 3 names, but the topics have 40 words"):
        fitted.model_.top_words(fitted.global_posterior_, ["a", "b", "c"])


# --- scikit-learn, memory -----------------------------------------------------------------------


# Without a network: its Adam steps are tested elsewhere, and a fit takes a thousand of them.
CHECKED = [
    FactorizedVI(TopicModel(2), n_init=1),
    AmortizedVI(TopicModel(2), Polynomial(1), n_init=1),
]


#: Words of the checks that read what is this model's own: sparse rows, and results a document. What
#: any model would answer alike is asked of others in CI (tests/test_sklearn_checks.py).
WORDS_OF_MODEL = ("sparse_array", "sparse_data", "transformer_general", "subset", "idempotent")
#: What depends on the function or on its features; what is common to both is F-VI's in CI.
CHECKS_OF_AMORTIZED = {
    "check_estimators_pickle",
    "check_fit_idempotent",
    "check_n_features_in",
    "check_sample_weight_equivalence_on_sparse_data",
    "check_transformer_general",
}


def checks():
    """Yield estimators with their checks: in CI where they tell more than a cheaper one does."""
    for vi in CHECKED:
        for estimator, check in estimator_checks_generator(vi):
            name = getattr(check, "func", check).__name__
            if "array_api" in name:
                continue  # tests/test_sklearn_checks.py says why and where they run
            repeated = not any(word in name for word in WORDS_OF_MODEL)
            if isinstance(vi, AmortizedVI):
                repeated = name not in CHECKS_OF_AMORTIZED
            marks = [pytest.mark.nightly] if repeated else []
            yield pytest.param(estimator, check, id=f"{type(vi).__name__}-{name}", marks=marks)


@pytest.mark.changes_globals
@pytest.mark.parametrize(("estimator", "check"), list(checks()))
def test_check(estimator, check):
    check(estimator)


_LARGE = """
import re, warnings
from pathlib import Path
import numpy as np, scipy.sparse
from skavi import AmortizedVI
from skavi.models import TopicModel

n, n_features = 20_000, 20_000
rng = np.random.default_rng(0)
columns = rng.integers(n_features, size=10 * n)
starts = np.arange(0, 10 * n + 1, 10)
X = scipy.sparse.csr_matrix((np.ones(10 * n), columns, starts), (n, n_features))
warnings.simplefilter("ignore")  # a few steps will do
vi = AmortizedVI(TopicModel(2), max_iter=3, n_init=1, random_state=0).fit(X[:40])
assert vi.transform(X).shape == (n, 2)
# Of this program alone: ru_maxrss would begin with that of the process that started it.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(int(peak[1]) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_grows_with_the_stored_cells():
    """Dense, the matrix would take 3.2 GB; 200,000 cells are to pass within 1.5 GB."""
    run = subprocess.run(
        [sys.executable, "-c", _LARGE], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1.5


def test_counts_beyond_the_range_of_numbers_are_refused():
    """Any table that is taken adds up, but not times any weights."""
    counts, weights = np.full((2, 2), 1e29), [1e290, 1e290]
    with pytest.raises(ValueError, match=r"add up to more than a torch\.float64 number"):
        AmortizedVI(TopicModel(1)).fit(counts, sample_weight=weights)


def test_documents_of_any_length_are_drawn_in_the_memory_of_their_counts():
    """Half of 1e12 words, give or take a million; 1e300 words come in proportion."""
    halves = torch.full((2, 2), 0.5).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        counts = TopicModel(1).replicate(
            {"topics": torch.zeros(1, 2).double()},
            torch.zeros(2, 1).double(),
            torch.tensor([[1e12, 0.0], [1e300, 0.0]], dtype=torch.float64),
        )
    totals = torch.tensor([[1e12], [1e300]], dtype=torch.float64)
    assert ((counts / totals - halves).abs() < 5e-6).all()
    assert torch.allclose(counts.sum(-1, keepdim=True), totals, rtol=1e-15)


def test_documents_without_a_single_word_are_fitted():
    """Nothing is stored, and nothing learned: q(topics) is the prior."""
    X = scipy.sparse.csr_matrix((3, 4))
    vi = AmortizedVI(TopicModel(2), max_iter=3, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        vi.fit(X)
    assert np.isfinite(vi.transform(X)).all() and np.isfinite(vi.elbo_)
