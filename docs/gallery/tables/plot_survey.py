"""
How do I score a survey of mixed columns, with holes?
=====================================================

Ratings, a yes or no, a count and an age tell of one trait, and a fifth of the cells is missing.
Factor analysis with a likelihood for each column scores every row, and says how sure it is.
"""

import matplotlib.pyplot as plt
import numpy as np

from skavi import FactorizedVI
from skavi.models import FactorAnalysis

rng = np.random.default_rng(0)
trait = rng.normal(size=250)
noise = rng.logistic(size=(250, 4))
ratings = [
    (slope * trait + noise[:, i] > np.array([[-2.0], [-0.5], [0.7], [2.0]])).sum(0)
    for i, slope in enumerate((1.0, 1.5, 2.0))
]
again = trait + noise[:, 3] > 0
visits, age = rng.poisson(np.exp(0.5 + 0.4 * trait)), 45 - 6 * trait + 8 * rng.normal(size=250)
X = np.column_stack([*ratings, again, visits, age])
X[rng.random(X.shape) < 0.2] = np.nan

likelihood = {"ordinal": [0, 1, 2], "bernoulli": [3], "poisson": [4], "normal": [5]}
vi = FactorizedVI(FactorAnalysis(1, likelihood=likelihood), random_state=0).fit(X)
posterior = vi.posterior(X)

# %%
# Scores beside the trait, and the chances of the levels of the best question along it.

sign = np.sign(vi.global_posterior_.mean["loadings"][2, 0])
score, sd = sign * posterior.mean[:, 0], posterior.sd[:, 0]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
left.errorbar(trait, score, yerr=1.645 * sd, fmt="o", ms=3, lw=0.8, color="#0072B2", ecolor="0.8")
left.axline((0, 0), slope=1, color="0.3", lw=1)
left.set(xlabel="trait", ylabel="score, with 90 % interval")

along = np.linspace(-3, 3, 200)
cuts = vi.global_posterior_.mean["cutpoints"].reshape(3, 4)[2]
slope = abs(vi.global_posterior_.mean["loadings"][2, 0])
below = 1 / (1 + np.exp(slope * along[:, None] - cuts))
chances = np.diff(np.pad(below, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1))), axis=1)
right.stackplot(along, chances.T, colors=plt.cm.viridis(np.linspace(0.1, 0.9, 5)), alpha=0.8)
right.set(xlabel="trait", ylabel="chance of levels 0 to 4", xlim=(-3, 3), ylim=(0, 1))
plt.show()
