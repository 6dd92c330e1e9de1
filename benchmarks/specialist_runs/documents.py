"""Topics of documents, beside scikit-learn's latent Dirichlet allocation."""

import numpy as np
from sklearn.decomposition import LatentDirichletAllocation

from benchmarks import topics
from skavi import AmortizedVI, FactorizedVI
from skavi.diagnostics import held_out_perplexity
from skavi.models import TopicModel

from .contest import Contestant, Job


def documents(n_topics=10):
    """Docstrings of numpy, scipy, scikit-learn and torch, as in `benchmarks/topics.py`."""
    train, test, given, rest, _ = topics.corpus()

    def factorized():
        return FactorizedVI(TopicModel(n_topics), random_state=0).fit(train)

    def amortized():
        return AmortizedVI(TopicModel(n_topics), random_state=0).fit(train)

    def specialist():
        return LatentDirichletAllocation(n_topics, random_state=0).fit(train)

    def log_likelihood(fitted):
        proportions, words = topics.topics_of(fitted, given)
        return -np.log(held_out_perplexity(proportions, words, rest))

    everyone = [
        Contestant(name, fit, log_likelihood, lambda fitted: fitted.transform(test), name != "LDA")
        for name, fit in (
            ("skavi F-VI", factorized),
            ("skavi A-VI", amortized),
            ("LDA", specialist),
        )
    ]
    name = f"documents: {train.shape[0]} x {train.shape[1]}, {n_topics} topics"
    return Job(name, "completion: log-likelihood a held-out word, nats", True, everyone)
