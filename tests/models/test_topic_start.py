"""Where topics start: the topics that are found, and those that are dropped or drawn anew."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from seeds import seeds
from skavi import FactorizedVI
from skavi._data.sparse_rows import SparseRows
from skavi.families import DiagonalFactors
from skavi.models import TopicModel
from skavi.models import _topic_start as start
from skavi.models._sought_topics import Topics, undecided


def corpus(seed, n=200, n_words=100):
    """Return counts of 3 to 10 topics, and a number of topics to fit, between 2 and 12."""
    rng = np.random.default_rng(seed)
    k, k_fitted = int(rng.integers(3, 11)), int(rng.integers(2, 13))
    topics, shares = rng.dirichlet(np.full(n_words, 0.1), k), rng.dirichlet(np.full(k, 0.3), n)
    return np.stack([rng.multinomial(60, p) for p in shares @ topics]).astype(float), k_fitted


def small(seed=0, k=4):
    rng = np.random.default_rng(seed)
    topics, shares = rng.dirichlet(np.full(40, 0.1), k), rng.dirichlet(np.full(k, 0.3), 80)
    X = np.stack([rng.multinomial(60, p) for p in shares @ topics]).astype(float)
    return X, topics


def from_topics(X, topics):
    """Return the state of topics at given probabilities of words, with documents swept."""
    k, X = len(topics), SparseRows.of(torch.as_tensor(X))
    weights = torch.ones(len(X), dtype=torch.float64)
    model = TopicModel(k).adapted(X, weights)
    mean = torch.as_tensor(topics).clamp_min(1e-4).log().reshape(-1)
    q_topics = DiagonalFactors(mean, torch.full_like(mean, 0.2))
    return Topics(model, X, weights, q_topics, undecided(X, k)).swept(5)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", seeds(0, 1))
def test_true_topics_are_found(seed):
    X, topics = small()
    there = from_topics(X, topics).swept(100)
    X, weights, model = there.X, there.weights, there.model
    with torch.no_grad():
        logits = start.best_topics(model, X, weights, generator(seed))
        found = from_topics(X.dense(), torch.softmax(logits, -1)).swept(100)
    assert found.elbo > there.elbo - 1e-3 * abs(there.elbo)


def test_topics_that_others_explain_are_the_least_loss():
    X, topics = small()
    flat = np.full((1, 40), 1 / 40)
    state = from_topics(X, np.concatenate([topics, topics[:1], flat]))
    order = state.losses().argsort().tolist()
    assert order[0] == 5
    assert set(order[1:3]) == {0, 4}


def test_losses_are_those_at_unchanged_proportions():
    """Against the bound itself, whose other topics keep their proportions to each other."""
    X, topics = small()
    state = from_topics(X, topics)
    shares = torch.softmax(state.q_documents.mean, -1)
    words = state.model._tilted_words(state.q_topics)
    for k in range(4):
        rest = shares.clone()
        rest[:, k] = 0

        def fit(p):
            p = p / p.sum(-1, keepdim=True)
            cells = state.X.sampled(p, words).log()
            return float(state.X.values @ cells)

        torch.testing.assert_close(
            float(state.losses()[k]), fit(shares) - fit(rest), rtol=1e-6, atol=1e-6
        )


def test_a_topic_that_is_missed_is_drawn_anew():
    """One topic twice and another one missing: moves find it."""
    X, topics = small()
    best, poor = from_topics(X, topics).swept(100), topics.copy()
    poor[3] = poor[0]
    stuck = from_topics(X, poor).swept(20)
    moved = start._exchanged(stuck, generator(0))
    assert moved.elbo >= stuck.elbo
    assert stuck.elbo < best.elbo - 1e-3 * abs(best.elbo) < moved.elbo


def test_pruning_leaves_as_many_as_asked():
    X, topics = small()
    there = from_topics(X, topics)
    many = Topics.near_prior(there.model, there.X, there.weights, 14, generator(0))
    pruned = start._pruned(many.swept(20), 4)
    assert pruned.k == 4
    assert pruned.q_topics.mean.shape == (160,)
    assert pruned.q_documents.mean.shape == (80, 4)
    assert pruned.elbo > there.swept(100).elbo - 0.02 * abs(there.elbo)


def test_one_topic_is_neither_pruned_nor_drawn_anew():
    X, topics = small()
    there = from_topics(X, topics[:1])
    logits = start.best_topics(there.model, there.X, there.weights, generator(0))
    assert logits.shape == (1, 40)


def test_the_best_of_several_searches_is_kept_with_topics_of_the_others():
    """Each of two searches misses another topic: together they have them all."""
    X, topics = small()
    best = from_topics(X, topics).swept(100)
    stuck = []
    for missed in (1, 3):
        poor = topics.copy()
        poor[missed] = poor[0]
        stuck.append(from_topics(X, poor).swept(40))
    assert max(each.elbo for each in stuck) < best.elbo - 5e-3 * abs(best.elbo)
    assert start._recombined(stuck).elbo > best.elbo - 1e-3 * abs(best.elbo)
    assert start._recombined([stuck[0], stuck[0]]) is stuck[0]
    assert start._recombined([stuck[0], best, stuck[1]]).elbo >= best.elbo


def test_words_are_unexplained_as_a_loop_over_documents_counts_it():
    """Of each word the gain x log(x / mu) - (x - mu) of a Poisson count, less a nat's price.

    mu is what the topics' shares and words lead one to expect. Summed where x > mu and the gain is
    worth its price; documents have weights.
    """
    X, topics = small()
    state = from_topics(X, topics)
    weights = torch.linspace(0.5, 2, len(X), dtype=torch.float64)
    state = replace(state, weights=weights)
    shares = torch.softmax(state.q_documents.mean, -1).numpy()
    words = state.model._tilted_words(state.q_topics).mT.numpy()
    words = words / words.sum(-1, keepdims=True)
    gains = np.zeros(X.shape[1])
    for n, v in zip(*X.nonzero(), strict=True):
        mu = X[n].sum() * shares[n] @ words[:, v]
        if X[n, v] > mu:
            gain = X[n, v] * np.log(X[n, v] / mu) - (X[n, v] - mu) - 1
            gains[v] += float(weights[n]) * max(gain, 0)
    np.testing.assert_allclose(state.unexplained(), gains, rtol=1e-9)


def test_a_topic_of_one_word_is_nearly_all_that_word():
    X, topics = small()
    state = from_topics(X, topics).with_word(7)
    p = torch.softmax(state.q_topics.mean.reshape(5, -1)[4], -1)
    assert state.k == 5
    assert float(p[7]) == pytest.approx(np.exp(2) / (1 + np.exp(2)), abs=0.02)
    assert state.q_documents.mean.shape == (80, 5)
    assert state.without(4).q_topics.mean.equal(from_topics(X, topics).q_topics.mean)


@pytest.mark.parametrize("two", [(0, 1), (3, 1)])
def test_losses_of_merges_are_those_at_unchanged_proportions(two):
    """Against the bound of the topics with the two as one: words are shared out by their counts."""
    X, topics = small()
    state = from_topics(X, topics)
    weights = torch.linspace(0.5, 2, len(X), dtype=torch.float64)
    state = replace(state, weights=weights)
    shares = torch.softmax(state.q_documents.mean, -1).numpy()
    words = state.model._tilted_words(state.q_topics).numpy()
    counts = (weights.numpy() * X.sum(1)) @ shares
    i, j = two
    one = (counts[i] * words[:, i] + counts[j] * words[:, j]) / (counts[i] + counts[j])
    apart = shares @ words.T
    merged = apart + (shares[:, [i]] + shares[:, [j]]) * one
    merged -= shares[:, [i]] * words[:, i] + shares[:, [j]] * words[:, j]
    lost = weights.numpy() @ (X * np.log(apart / merged)).sum(1)
    assert lost > 100
    np.testing.assert_allclose(state.merge_losses()[i, j], lost, rtol=1e-9)
    np.testing.assert_allclose(state.merge_losses()[j, i], lost, rtol=1e-9)


def test_merged_topics_have_the_words_and_documents_of_both():
    X, topics = small()
    state = from_topics(X, topics)
    shares = torch.softmax(state.q_documents.mean, -1)
    counts = torch.as_tensor(X.sum(1)) @ shares
    words = torch.softmax(state.q_topics.mean.reshape(4, -1), -1)
    merged = state.merged(0, 2)
    assert merged.k == 3
    ours = torch.softmax(merged.q_topics.mean.reshape(3, -1), -1)
    both = (counts[[0, 2], None] * words[[0, 2]]).sum(0) / counts[[0, 2]].sum()
    torch.testing.assert_close(ours, torch.stack([both, words[1], words[3]]))
    both = torch.stack([shares[:, 0] + shares[:, 2], shares[:, 1], shares[:, 3]], -1)
    ours = torch.softmax(merged.q_documents.mean, -1)
    torch.testing.assert_close(ours, both, atol=1e-5, rtol=0)


def test_two_as_one_and_one_as_two_are_told_apart():
    """Two topics that are one, and another one twice: one split and one merge put them right."""
    X, topics = small()
    best = from_topics(X, topics).swept(100)
    wrong = np.stack([topics[:2].mean(0), topics[2], topics[2], topics[3]])
    stuck = from_topics(X, wrong).swept(60)
    assert stuck.elbo < best.elbo - 1e-2 * abs(best.elbo)
    assert start._regrouped(stuck, generator(0)).elbo > best.elbo - 1e-4 * abs(best.elbo)


def test_halves_of_a_topic_are_not_merged_again():
    X, topics = small()
    split = from_topics(X, topics).with_split(1, generator(0)).swept(20)
    assert split.merge_losses().fill_diagonal_(torch.inf).min() == split.merge_losses()[1, 4]
    pairs = [two for _, _, two in start._merges(split, 1)]
    assert len(pairs) == start._PAIRS
    assert (1, 4) not in pairs


def test_of_topics_too_many_one_is_taken_out_or_two_are_merged():
    """Of a topic that is there twice, one is taken out first, and the two are merged first."""
    X, topics = small()
    state = from_topics(X, np.concatenate([topics, topics[:1]]))
    fewer = list(start._one_fewer(state))
    assert [each.k for each in fewer] == [4] * (start._TAKEN_OUT + start._PAIRS)
    best = from_topics(X, topics).swept(20).elbo
    for each in (fewer[0], fewer[start._TAKEN_OUT]):
        assert each.swept(20).elbo > best - 1e-3 * abs(best)


def test_two_topics_are_not_regrouped():
    X, topics = small()
    state = from_topics(X, topics[:2])
    assert start._regrouped(state, generator(0)) is state


def bursty():
    """Return documents of three topics, in some of which one word comes ten times more."""
    rng = np.random.default_rng(0)
    topics, shares = rng.dirichlet(np.full(40, 0.1), 3), rng.dirichlet(np.full(3, 0.3), 80)
    X = np.stack([rng.multinomial(60, p) for p in shares @ topics]).astype(float)
    word = int(X.sum(0).argsort()[20])
    X[::4, word] += 10
    return X, topics, word


def test_a_word_takes_the_place_of_a_topic_that_is_there_twice(monkeypatch):
    """Documents of three topics that say a word at random beside: it needs the fourth one.

    The word that is explained worst is tried alone.
    """
    X, topics, word = bursty()
    twice = from_topics(X, np.concatenate([topics, topics[:1]])).swept(60)
    alone = np.full((1, 40), 1e-3)
    alone[0, word] = 1
    right = from_topics(X, np.concatenate([topics, alone / alone.sum()])).swept(60)
    monkeypatch.setattr(start, "_WORDS", 1)
    moved = start._swapped(twice)
    assert int(twice.unexplained().argmax()) == word
    assert twice.elbo < right.elbo - 1e-3 * abs(right.elbo)
    assert moved.elbo > right.elbo - 1e-4 * abs(right.elbo)


def test_searches_of_many_cells_try_no_words(monkeypatch):
    X, topics = small()
    found = [from_topics(X, topics), from_topics(X, topics[::-1].copy())]
    monkeypatch.setattr(start, "_QUICK", 4 * found[0].X.numel() - 1)
    monkeypatch.setattr(start, "_climbed", lambda *_: pytest.fail("words were tried"))
    assert start._searched(found, generator(0)).elbo >= max(each.elbo for each in found)


#: Corpora on which fewer end so near, of ten seeds, and the farthest.
FEWER = {
    14: "7, 0.62 % below",
    17: "8, 0.16 % below",
}


def corpora():
    """Yield all twenty, those on which fewer seeds agree marked so."""
    for seed in range(20):
        marks = [pytest.mark.xfail(strict=True, reason=FEWER[seed])] if seed in FEWER else []
        yield pytest.param(seed, marks=marks)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", list(corpora()))
def test_seeds_agree_on_simulated_corpora(seed):
    """Nine of ten at least end within 0.1 % of the best."""
    X, k = corpus(seed)
    elbos = np.array([FactorizedVI(TopicModel(k), random_state=s).fit(X).elbo_ for s in range(10)])
    assert (elbos.max() - elbos < 0.001 * abs(elbos.max())).sum() >= 9
