"""Perplexity of topics on held-out words."""

import numpy as np

from skavi._data.sparse_rows import SparseRows


def held_out_perplexity(proportions, words, held_out) -> float:
    r"""Return the perplexity of words under given topics and proportions; lower is better.

    For document completion, proportions come from one half of each document's words, and `held_out`
    has the other half. Any topic model can be measured, so topic models can be compared.

    Parameters
    ----------
    proportions : array-like of shape (n_samples, n_components)
        Of the topics in each document; rows sum to one.
    words : array-like of shape (n_components, n_features)
        Probabilities of the words under each topic; rows sum to one.
    held_out : array-like or sparse matrix of shape (n_samples, n_features)
        Counts.

    Returns
    -------
    float
        :math:`\exp(-\sum_v x_v \log p_v / \sum_v x_v)` over all words: a random
        choice among this many is as hard.

    Raises
    ------
    ValueError
        If shapes do not fit, or `held_out` has no words.

    Notes
    -----
    Source: Wallach, Murray, Salakhutdinov & Mimno (2009), "Evaluation methods for topic models",
    section 4 (document completion).

    Examples
    --------
    >>> from skavi.diagnostics import held_out_perplexity
    >>> held_out_perplexity([[0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]], [[3, 3]])
    2.0
    """
    proportions, words = np.asarray(proportions, float), np.asarray(words, float)
    rows = SparseRows.from_scipy(held_out)
    if rows.shape != (len(proportions), words.shape[1]) or proportions.shape[1] != len(words):
        raise ValueError(
            f"held_out has shape {rows.shape}, but proportions {proportions.shape} and words "
            f"{words.shape} predict {(len(proportions), words.shape[1])}."
        )
    total = float(rows.values.sum())
    if not total > 0:
        raise ValueError("held_out has no words: nothing to predict.")
    probabilities = rows.sampled(*(rows.values.new_tensor(a) for a in (proportions, words.T)))
    return float((-(rows.values @ probabilities.log()) / total).exp())
