"""
Topics in documents
===================

Documents are simulated from three known topics over 30 words, so that what was found can be laid
beside what is true.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import linear_sum_assignment

from skavi import FactorizedVI
from skavi.models import TopicModel

rng = np.random.default_rng(0)
topics = rng.dirichlet(np.full(30, 0.2), size=3)
shares = rng.dirichlet(np.full(3, 0.5), size=200)
counts = np.array([rng.multinomial(80, p) for p in shares @ topics])

vi = FactorizedVI(TopicModel(3), random_state=0).fit(counts)
found = vi.model_.word_probabilities(vi.global_posterior_)

# %%
# Topics have no order: match each with the true one that is closest.

distance = np.abs(topics[:, None] - found[None]).sum(-1)
_, match = linear_sum_assignment(distance)

figure, axes = plt.subplots(3, 1, figsize=(7, 5), sharex=True, layout="constrained")
for k, ax in enumerate(axes):
    ax.bar(np.arange(30) - 0.2, topics[k], 0.4, color="#0072B2", label="true")
    ax.bar(np.arange(30) + 0.2, found[match[k]], 0.4, color="#E69F00", label="found")
    ax.set_ylabel(f"topic {k + 1}")
axes[0].legend()
axes[-1].set_xlabel("word")
plt.show()
