"""
What are these documents about?
===============================

Two hundred short documents, drawn from three themes of twelve words each and some of the others'.
The title of a panel says how much of all documents its topic is.
"""

import numpy as np
import pandas as pd

from skavi import FactorizedVI
from skavi.displays import TopicWordsDisplay
from skavi.models import TopicModel

THEMES = {
    "kitchen": "salt pan butter oven flour onion knife boil spoon sugar taste dinner",
    "harbour": "ship wind anchor rope tide sail crew deck storm port wave captain",
    "court": "judge law trial jury claim witness appeal verdict guilty lawyer case oath",
}
words = " ".join(THEMES.values()).split()
rng = np.random.default_rng(0)
topics = np.kron(np.eye(3), rng.dirichlet(np.full(12, 2.0), size=1)) + 0.004
topics /= topics.sum(1, keepdims=True)
shares = rng.dirichlet([0.6, 0.4, 0.3], size=200)
counts = np.array([rng.multinomial(60, p) for p in shares @ topics])
X = pd.DataFrame(counts, columns=words)

vi = FactorizedVI(TopicModel(3), random_state=0).fit(X)
TopicWordsDisplay.from_estimator(vi, X=X)

# %%
# What is the first document about? Shares of the topics, with their sds:

posterior = vi.posterior(X)
pd.DataFrame({"share": posterior.mean[0], "sd": posterior.sd[0]}).round(2)

# %%
# How well are shares found? Their correlation with those that the documents were drawn from, topic
# by topic (topics have no order: each is laid beside the true one that it follows best):

found = np.corrcoef(posterior.mean.T, shares.T)[:3, 3:]
found.max(1).round(3)
