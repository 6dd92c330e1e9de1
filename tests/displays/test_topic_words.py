"""The words of topics."""

import numpy as np
import pandas as pd
import pytest

from pictures import assert_legible
from skavi import FactorizedVI
from skavi.displays import (
    TopicWordsDisplay,
)
from skavi.models import LinearModel, TopicModel


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    topics = np.kron(np.eye(2), np.full(4, 0.25))
    shares = rng.dirichlet([0.4, 1.2], size=60)
    return pd.DataFrame(
        [rng.multinomial(40, p) for p in shares @ topics], columns=[f"word{i}" for i in range(8)]
    )


def test_topics_show_their_most_probable_words_the_larger_topic_first(documents):
    vi = FactorizedVI(TopicModel(2), random_state=0).fit(documents)
    display = TopicWordsDisplay.from_estimator(vi, X=documents, n_words=4)
    shares = vi.transform(documents).mean(0)
    probabilities = vi.model_.word_probabilities(vi.global_posterior_)
    first, second = np.argsort(-shares)
    assert display.axes_[0].get_title() == f"topic {first} ({shares[first]:.0%})"
    for ax, topic in zip(display.axes_, [first, second], strict=True):
        words = [t.get_text() for t in ax.get_yticklabels()]
        assert words == vi.model_.top_words(vi.global_posterior_, documents.columns, 4)[topic]
        widths = [bar.get_width() for bar in ax.patches]
        np.testing.assert_allclose(widths, np.sort(probabilities[topic])[::-1][:4])
        assert_legible(display, ax)
    one = TopicWordsDisplay.from_estimator(vi, most=1)
    assert "1 of 2 topics" in one.figure_.get_supxlabel()
    with pytest.raises(ValueError, match="words has 3 entries, but topics have 8"):
        TopicWordsDisplay.from_estimator(vi, ["a", "b", "c"])
    other = FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]])
    with pytest.raises(ValueError, match="LinearModel has none: fit a TopicModel"):
        TopicWordsDisplay.from_estimator(other)
