"""Documents' own problems: searched against brute force, ended at a maximum to rounding."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from models.test_topic_start import corpus
from seeds import seeds
from skavi import AmortizedVI, FactorizedVI
from skavi._data.rows import Rows
from skavi._data.sparse_rows import SparseRows
from skavi._estimators.fitted_estimator import function_on
from skavi._fit.local_problems import solve_rows
from skavi.families import DiagonalFactors
from skavi.models import TopicModel
from skavi.models import _topic_rows as rows_module
from skavi.models._topic_documents import Documents
from skavi.models._topic_newton import newton
from skavi.models._topic_rows import approached, polished, searched

PRECISION = 0.25


def case(seed, n_rows=6, n_features=25, n_topics=4, longest=120):
    """Return documents of more topics than known, and words' probabilities: sums below one."""
    rng = np.random.default_rng(seed)
    topics = rng.dirichlet(np.full(n_features, 0.2), 3 * n_topics)
    words = rng.dirichlet(np.full(3 * n_topics, 0.3), n_topics) @ topics
    words = words * rng.uniform(0.6, 1, (n_topics, 1))
    p = rng.dirichlet(np.full(3 * n_topics, 0.2), n_rows) @ topics
    lengths = rng.integers(0, longest, n_rows)
    X = np.stack([rng.multinomial(n, row) for n, row in zip(lengths, p, strict=True)])
    return X.astype(float), words.T.clip(1e-12)


def at(n_rows, n_topics, seed=None):
    """Return prior means of logits (n_rows, n_topics): drawn, or zeros without a seed."""
    drawn = np.zeros((n_rows, n_topics))
    if seed is not None:
        drawn = 1.5 * np.random.default_rng(seed).normal(size=drawn.shape)
    return torch.as_tensor(drawn)


def bound(x, words, mean, log_sd, loc=0.0):
    """Blei & Lafferty's bound of one document, written again in numpy."""
    variance = np.exp(2 * log_sd)
    norm = logsumexp(mean + variance / 2)
    used = x > 0
    fit = x[used] @ logsumexp(mean - norm + np.log(words[used]), axis=1)
    return fit + (log_sd - 0.5 * PRECISION * ((mean - loc) ** 2 + variance)).sum()


def bounds(X, words, factors, loc=None):
    mean, sd = factors.mean.numpy(), factors.sd.numpy()
    rows = zip(X, mean, sd, np.zeros(mean.shape) if loc is None else loc.numpy(), strict=True)
    return np.array([bound(x, words, m, np.log(s), each) for x, m, s, each in rows])


def best_of_many(x, words, n_starts, rng, loc=0.0):
    """Return the best end of scipy's BFGS from random starts."""
    k, best = words.shape[1], -np.inf
    for _ in range(n_starts):
        share = rng.dirichlet(np.full(k, rng.uniform(0.05, 1.5))) + 1e-6
        variance = 1 / (x.sum() * share / share.sum() + PRECISION)
        start = np.concatenate([np.log(share) - np.log(share).mean(), 0.5 * np.log(variance)])
        end = minimize(lambda u: -bound(x, words, u[:k], u[k:], loc), start, method="BFGS")
        best = max(best, -end.fun)
    return best


@pytest.mark.parametrize("seed", seeds(0, 1, 2))
@pytest.mark.parametrize("moved", [False, True])
def test_no_start_leads_further_than_the_search(moved, seed):
    """scipy's BFGS from 15 random starts a document; its own ends are known to about 1e-6 nats.

    Also where covariates have moved the documents' prior means.
    """
    X, words = case(seed)
    loc = at(*X.shape[:1], words.shape[1], seed if moved else None)
    found = searched(SparseRows.from_scipy(X), torch.as_tensor(words), loc, PRECISION)
    rng = np.random.default_rng(seed)
    rows = zip(X, loc.numpy(), strict=True)
    brute = np.array([best_of_many(x, words, 15, rng, each) for x, each in rows])
    assert (bounds(X, words, found, loc) > brute - 1e-5).all()


def test_a_document_ends_at_a_maximum():
    """By autograd: no gradient, and a negative definite Hessian, in mean / sd and log sd."""
    X, words = case(3, n_rows=30)
    loc, words = at(30, 4, 0), torch.as_tensor(words)
    found = searched(SparseRows.from_scipy(X), words, loc, PRECISION)
    rows = zip(torch.as_tensor(X), found.mean, found.sd, loc, strict=True)
    for x, mean, sd, there in rows:
        blocks = ((x[None], words[None]),)
        one = Documents(blocks, x.sum().reshape(1, 1), there[None], PRECISION)

        def value(u, one=one, mean=mean, sd=sd):
            m, s = mean + sd * u[:4], sd * u[4:].exp()
            return one.bound(m[None, None], (s**2)[None, None])[0, 0]

        origin = torch.zeros(8, dtype=torch.float64)
        assert float(torch.func.grad(value)(origin).abs().max()) < 1e-5
        assert float(torch.linalg.eigvalsh(torch.func.hessian(value)(origin)).max()) < 0


def test_derivatives_are_those_of_the_bound():
    """The damped Newton step, from which log sds are eliminated, against a dense solution."""
    generator = torch.Generator().manual_seed(0)
    mean, counts, words = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 4), (3, 7), (3, 7, 4))
    )
    counts = (5 * counts.abs()).round()
    variance = torch.rand(3, 4, generator=generator, dtype=torch.float64) + 0.1
    blocks = ((counts, words.abs()),)
    documents = Documents(blocks, counts.sum(1, keepdim=True), at(3, 4, 0), PRECISION)
    damping = torch.full((3,), 20.0, dtype=torch.float64)
    along, widening, gain, fine = documents.curved(mean, variance).newton_step(damping)
    assert bool(fine.all())
    for i in range(3):

        def value(u, i=i):
            m, v = mean[i] + variance[i].sqrt() * u[:4], variance[i] * (2 * u[4:]).exp()
            return documents[i : i + 1].bound(m[None, None], v[None, None])[0, 0]

        origin = torch.zeros(8, dtype=torch.float64)
        gradient, hessian = torch.func.grad(value)(origin), torch.func.hessian(value)(origin)
        step = torch.linalg.solve(damping[i] * torch.eye(8).double() - hessian, gradient)
        torch.testing.assert_close(torch.cat([along[i], widening[i]]), step)
        torch.testing.assert_close(gain[i], 0.5 * gradient @ step)


def test_newton_leaves_a_saddle():
    """Two topics that are nearly one: even shares have no gradient, and are no maximum."""
    words = torch.tensor([[0.52, 0.48], [0.48, 0.52]], dtype=torch.float64)
    counts = torch.tensor([[50.0, 50.0]], dtype=torch.float64)
    blocks = ((counts, words[None]),)
    documents = Documents(blocks, counts.sum(1, keepdim=True), at(1, 2), PRECISION)
    even = torch.zeros(1, 1, 2).double(), torch.full((1, 1, 2), 0.02).double()
    even = documents.looked(*even, 500)
    mean, variance = (t[:, 0] for t in even)
    curved = documents.curved(mean, variance)
    assert float(curved.mean_gradient.abs().max()) < 1e-9
    assert float(torch.linalg.eigvalsh(curved._reduced(torch.zeros(1))[1]).min()) < -1e-3
    assert float(newton(documents, mean, variance)[2]) > float(documents.bound(*even)) + 0.1


def test_documents_with_several_optima_are_searched():
    """Words discounted unevenly: even shares alone would end 0.39 nats below for two of these."""
    rng = np.random.default_rng(0)
    words = (rng.dirichlet(np.full(12, 0.5), 5) * rng.uniform(0.3, 1, (5, 12))).T
    X = np.stack(
        [rng.multinomial(rng.integers(5, 60), rng.dirichlet(np.ones(12))) for _ in range(400)]
    ).astype(float)[[123, 136]]
    found = searched(SparseRows.from_scipy(X), torch.as_tensor(words.copy()), at(2, 5), PRECISION)
    brute = np.array([best_of_many(x, words, 40, rng) for x in X])
    assert (bounds(X, words, found) > brute - 1e-5).all()


def test_no_document_is_better_under_an_amortized_factor():
    """Case F1: at one q(theta) the searched factors beat the function's for every row."""
    rng = np.random.default_rng(0)
    beta, share = rng.dirichlet(np.full(60, 0.1), 3), rng.dirichlet(np.full(3, 0.5), 150)
    X = np.stack([rng.multinomial(60, p) for p in share @ beta]).astype(float)
    amortized = AmortizedVI(TopicModel(2), random_state=0).fit(X)
    rows = SparseRows.from_scipy(X)
    objective = amortized._fitted_model.objective
    q_theta = objective.global_factor(torch.as_tensor(amortized._raw_globals))
    words = amortized.model_._tilted_words(q_theta)
    found = searched(rows, words, at(150, 2), PRECISION)
    latents = amortized.posterior(X).logits
    theirs = DiagonalFactors(torch.as_tensor(latents.mean), torch.as_tensor(latents.sd))
    difference = bounds(X, words.numpy(), found) - bounds(X, words.numpy(), theirs)
    assert difference.min() > -1e-6


def test_search_is_no_worse_than_where_it_starts():
    X, words = case(4, n_rows=20)
    generator = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(20, 4, generator=generator, dtype=torch.float64)
    start = DiagonalFactors(mean, torch.full_like(mean, 0.5))
    sparse, given = SparseRows.from_scipy(X), torch.as_tensor(words)
    found = searched(sparse, given, at(20, 4), PRECISION, start)
    assert (bounds(X, words, found) >= bounds(X, words, start)).all()


def test_polish_keeps_to_the_nearest_optimum():
    """From where the search ends it stays, to rounding; from elsewhere it climbs to no more."""
    X, words = case(4, n_rows=20)
    sparse, given = SparseRows.from_scipy(X), torch.as_tensor(words)
    prior = at(20, 4), PRECISION
    found = searched(sparse, given, *prior)
    again = polished(sparse, given, *prior, found)
    np.testing.assert_allclose(bounds(X, words, again), bounds(X, words, found), rtol=1e-12)
    torch.testing.assert_close(again.mean, found.mean, rtol=0, atol=1e-5)
    even = DiagonalFactors(torch.zeros_like(found.mean), torch.ones_like(found.mean))
    near = bounds(X, words, polished(sparse, given, *prior, even))
    assert (near >= bounds(X, words, even)).all()
    assert (near <= bounds(X, words, found) + 1e-9).all()


def test_approach_ends_within_the_nats_asked_for_and_never_below_its_start():
    """Against 200 Newton steps from where it ends; Newton's decrement is exact to second order."""
    X, words = case(4, n_rows=40)
    sparse, given = SparseRows.from_scipy(X), torch.as_tensor(words)
    prior = at(40, 4), PRECISION
    start = DiagonalFactors(torch.zeros(40, 4).double(), 0.1 * torch.ones(40, 4).double())
    for nats in (0.1, 1e-3):
        near = approached(sparse, given, *prior, start, nats)
        best = bounds(X, words, polished(sparse, given, *prior, near))
        assert (best - bounds(X, words, near)).max() < 2 * nats
        assert (bounds(X, words, near) >= bounds(X, words, start)).all()


@pytest.mark.parametrize(("seed", "row"), [(10, 275), (13, 313), (14, 302)])
def test_an_approach_does_not_stop_on_a_ledge(seed, row):
    """Where a Newton step promises less than 1e-3 nats, and leads 0.3 to 0.8 nats up."""
    X, words = case(seed, n_rows=400, n_topics=6, longest=60)
    X, given, prior = X[[row]], torch.as_tensor(words), (at(1, 6), PRECISION)
    start = DiagonalFactors(torch.zeros(1, 6).double(), torch.full((1, 6), 0.5).double())
    near = approached(SparseRows.from_scipy(X), given, *prior, start, 1e-3)
    best = polished(SparseRows.from_scipy(X), given, *prior, near)
    assert (bounds(X, words, best) - bounds(X, words, near)).max() < 2e-3


def test_documents_of_several_widths_are_one_collection(monkeypatch):
    """What is said of them together, and of those at a mask, is said of each width alone."""
    X, words = case(4, n_rows=40)
    chunks = list(
        rows_module._in_chunks(
            SparseRows.from_scipy(X), torch.as_tensor(words), at(40, 4), PRECISION
        )
    )
    assert len(chunks) > 3
    index, together = rows_module._joined(chunks)
    mean = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance, mask = 0.3 + mean**2, torch.arange(40) % 3 > 0
    assert sorted(index.tolist()) == list(range(40)) and len(together) == 40

    def said(documents, m, v):
        damping = torch.full_like(m[:, 0], 5.0)
        m_, v_ = documents.looked(m.unsqueeze(1), v.unsqueeze(1), 2)
        return documents.bound(m_, v_), *documents.curved(m, v).newton_step(damping)[:3]

    apart = [said(each, mean[i], variance[i]) for i, each in chunks]
    everything = said(together, mean[index], variance[index])
    some = said(together[mask], mean[index][mask], variance[index][mask])
    for of_parts, of_all, of_some in zip(zip(*apart, strict=True), everything, some, strict=True):
        torch.testing.assert_close(torch.cat(of_parts), of_all)
        torch.testing.assert_close(of_all[mask], of_some)
    monkeypatch.setattr(rows_module, "_HELD", 0)
    groups = list(rows_module._together(chunks))
    assert len(groups) == len(chunks)  # a chunk is held alone where memory is short


def test_proportions_do_not_depend_on_the_documents_beside():
    z = torch.randn(2, 21, 5, generator=torch.Generator().manual_seed(0)).double()
    model = TopicModel(5)
    together = model.own_scale({}, z)
    torch.testing.assert_close(together, torch.softmax(z, -1), rtol=1e-14, atol=1e-16)
    for n in (1, 5, 8, 13):
        assert torch.equal(model.own_scale({}, z[:, :n]), together[:, :n])


def test_documents_in_any_company_end_alike(monkeypatch):
    """To 1e-9 alone, among others and in other chunks; a document that comes twice, exactly."""
    X, words = case(5, n_rows=40)
    X[7] = X[3]
    sparse, words = scipy.sparse.csr_matrix(X), torch.as_tensor(words)

    def found(rows):
        return searched(SparseRows.from_scipy(rows), words, at(rows.shape[0], 4), PRECISION)

    together = found(sparse)
    assert torch.equal(together.mean[3], together.mean[7])
    alone = torch.cat([found(sparse[[i]]).mean for i in range(10)])
    torch.testing.assert_close(alone, together.mean[:10], rtol=0, atol=1e-9)
    monkeypatch.setattr(rows_module, "_NUMBERS", 500)
    torch.testing.assert_close(found(sparse).mean, together.mean, rtol=0, atol=1e-9)


def test_empty_and_endless_documents():
    """No words: the prior. A thousand million of one word: its topic, the bound near its limit."""
    words = torch.as_tensor(softmax(np.random.default_rng(0).normal(size=(5, 3)), axis=0))
    X = np.zeros((2, 5))
    X[1, 2] = 1e9
    found = searched(SparseRows.from_scipy(X), words, at(2, 3), PRECISION)
    torch.testing.assert_close(found.mean[0], torch.zeros(3).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.sd[0], torch.full((3,), 2.0).double())
    share = torch.softmax(found.mean[1] + 0.5 * found.sd[1] ** 2, -1)
    assert int(share.argmax()) == int(words[2].argmax())
    assert float(share.max()) > 0.99


def test_a_fit_ends_with_its_documents_at_their_best():
    """The fit's own ELBO is not below that of solving every row again; the rows' part is equal."""
    X, _ = case(6, n_rows=60)
    vi = FactorizedVI(TopicModel(3), random_state=0).fit(X)
    assert vi.elbo_curve_[-1] == pytest.approx(vi.elbo_, rel=1e-12)
    here = vi._fitted_model.at(Rows(torch.as_tensor(X), torch.ones(60).double()))
    free = replace(here.problem, frozen_globals=False)
    assert float(free.elbo_of(here.raw, here.raw_globals)) == pytest.approx(vi.elbo_, abs=1e-6)


def test_one_huge_document_does_not_loosen_the_rule():
    """Words a row are the median's: ten and 1e9 are alike; seeds end within 0.1 % of their best."""
    X = np.random.default_rng(0).poisson(1, (40, 5)).astype(float)
    X[3, 2] = 1e9
    fits = [FactorizedVI(TopicModel(2), random_state=seed).fit(X) for seed in range(3)]
    assert fits[0].model_.coarsest_tol == pytest.approx(1e-3 * np.median(X.sum(1)))
    elbos = np.array([vi.elbo_ for vi in fits])
    assert all(vi.converged_ for vi in fits)
    assert (elbos > elbos.max() - 1e-3 * abs(elbos.max())).all()


@pytest.mark.nightly
def test_seeds_agree_on_simulated_topics():
    """Case A5, a fifth of it: from the prior one start in four was percents below the others."""
    rng = np.random.default_rng(8)
    topics, shares = rng.dirichlet(np.full(300, 0.08), size=5), rng.dirichlet([0.2] * 5, size=300)
    X = np.array([rng.multinomial(rng.integers(30, 80), p) for p in shares @ topics]).astype(float)
    elbos = np.array([FactorizedVI(TopicModel(5), random_state=s).fit(X).elbo_ for s in range(4)])
    assert (elbos > elbos.max() - 1e-3 * abs(elbos.max())).all()


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(20))
def test_no_document_is_better_off_with_the_functions_factor(seed):
    """Than with what the search finds without it, under the same topics, by more than 1e-6 nats."""
    X, k = corpus(seed)
    here = function_on(AmortizedVI(TopicModel(k), random_state=0).fit(X), X)
    with torch.no_grad():
        solved, _ = solve_rows(here.problem, here.raw_globals, 1e-9)
        terms = [here.problem.row_terms(raw, here.raw_globals) for raw in (here.raw, solved)]
    assert float((terms[0] - terms[1]).max()) <= 1e-6


def test_where_topics_start_does_not_depend_on_the_order_of_rows():
    """Nor on whether a document comes twice or has weight two, nor on those of weight nought."""
    X = case(7, n_rows=30)[0]
    model = TopicModel(3).adapted(torch.as_tensor(X), torch.ones(30).double())

    def start(rows, weights):
        generator = torch.Generator().manual_seed(0)
        weights = torch.as_tensor(weights, dtype=torch.float64)
        return model.drawn_globals(torch.as_tensor(rows), weights, generator)["topics"]

    weights = np.arange(30) % 3
    once, again = start(X, weights), start(np.repeat(X, weights, 0)[::-1].copy(), np.ones(30))
    torch.testing.assert_close(once, again, rtol=1e-6, atol=1e-6)
