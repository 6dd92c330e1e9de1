"""Plot of topics: the most probable words of each, with their probabilities."""

from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike

from skavi._estimators.base import VariationalInference
from skavi._platform.array_types import TableLike
from skavi._platform.forks_and_threads import guarded
from skavi.displays._axes import Display, colour, explained_names, how_many, panels, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Panels in a row and inches of all of them; inches of bars, of a character and of a line.
_ACROSS, _PAGE, _BARS, _CHARACTER, _LINE = 4, 10.0, 1.5, 0.08, 0.19


@guarded
class TopicWordsDisplay(Display):
    """The most probable words of each topic of a fitted `TopicModel`.

    Parameters
    ----------
    probabilities : ndarray of shape (n_topics, n_words)
    words : sequence of n_words str
    shares : ndarray of shape (n_topics,), default=None
        Of the topics in the documents, for the titles.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        One a topic; ``ax_`` is the first.
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn.feature_extraction.text import CountVectorizer
    >>> from skavi import FactorizedVI
    >>> from skavi.displays import TopicWordsDisplay
    >>> from skavi.models import TopicModel
    >>> words = CountVectorizer()
    >>> counts = words.fit_transform(["cat dog pet", "dog pet cat", "bond fund", "fund bond"])
    >>> vi = FactorizedVI(TopicModel(2), random_state=0).fit(counts)
    >>> display = TopicWordsDisplay.from_estimator(vi, words.get_feature_names_out())
    >>> len(display.axes_)
    2
    """

    def __init__(self, probabilities, words, shares=None):
        self.probabilities, self.words, self.shares = probabilities, words, shares

    @classmethod
    def from_estimator(
        cls,
        estimator: VariationalInference,
        words: ArrayLike | None = None,
        X: TableLike | None = None,
        *,
        n_words: int = 8,
        most: int = 12,
        figure: "Figure | None" = None,
    ) -> Self:
        """Draw the topics of a fit.

        Parameters
        ----------
        estimator : FactorizedVI or AmortizedVI
            Fitted with a `TopicModel`.
        words : array-like of shape (n_features,), default=None
            As `CountVectorizer.get_feature_names_out` gives them. None: names of the columns.
        X : array-like or CSR of shape (n_samples, n_features), default=None
            Documents: topics are then drawn by their share in them, the largest first.
        n_words, most, figure
            As in `plot`.

        Returns
        -------
        TopicWordsDisplay

        Raises
        ------
        ValueError
            If the model is no `TopicModel`, or words do not fit its columns.
        """
        model = estimator.model_
        if not hasattr(model, "word_probabilities"):
            raise ValueError(
                f"TopicWordsDisplay draws the words of topics, but {type(model).__name__} has "
                "none: fit a TopicModel."
            )
        probabilities = model.word_probabilities(estimator.global_posterior_)
        given = None if words is None else [str(word) for word in np.asarray(words)]
        names = explained_names(estimator) if given is None else given
        if len(names) != probabilities.shape[1]:
            raise ValueError(
                f"words has {len(names)} entries, but topics have {probabilities.shape[1]} words."
            )
        shares = None if X is None else estimator.transform(X)[:, : len(probabilities)].mean(0)
        display = cls(probabilities, names, shares)
        return display.plot(n_words=n_words, most=most, figure=figure)

    def plot(self, *, n_words: int = 8, most: int = 12, figure: "Figure | None" = None) -> Self:
        """Draw a panel for each topic.

        Parameters
        ----------
        n_words : int, default=8
            Words a topic.
        most : int, default=12
            Topics that are drawn at most: the first, or those of the largest shares.
        figure : matplotlib Figure, default=None
            An empty one. None: a new figure.

        Returns
        -------
        TopicWordsDisplay
        """
        k = len(self.probabilities)
        order = np.arange(k) if self.shares is None else np.argsort(-self.shares, kind="stable")
        topics, n_words = order[:most].tolist(), min(n_words, len(self.words))
        best = {t: np.argsort(-self.probabilities[t], kind="stable")[:n_words] for t in topics}
        longest = max(len(short(self.words[i])) for order in best.values() for i in order)
        wide = _BARS + _CHARACTER * longest
        across = min(_ACROSS, len(topics), int(_PAGE / wide))
        down = -(-len(topics) // across)
        size = max(4.2, wide * across), 0.5 + down * (0.65 + _LINE * n_words)
        figure, self.axes_ = panels(figure, len(topics), across, size)
        self._begin(self.axes_[0])
        for ax, topic in zip(self.axes_, topics, strict=True):
            words = best[topic]
            ax.barh(np.arange(n_words), self.probabilities[topic, words], color=colour(0))
            ax.set_yticks(np.arange(n_words), [short(self.words[i]) for i in words])
            ax.tick_params(labelsize="small")
            ax.invert_yaxis()
            share = "" if self.shares is None else f" ({self.shares[topic]:.0%})"
            ax.set_title(f"topic {topic}{share}", fontsize="medium")
        said = "probability of a word in a topic" + how_many(len(topics), k, "topics")
        figure.supxlabel(said, fontsize="small")
        return self
