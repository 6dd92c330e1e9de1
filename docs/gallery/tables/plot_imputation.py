"""
Fill missing cells, and say how sure
====================================

A third of the cells of a table with two hidden directions are missing. Factor analysis integrates
them out in the fit, and fills them with posterior predictive means.
"""

import matplotlib.pyplot as plt
import numpy as np

from skavi import FactorizedVI
from skavi.models import FactorAnalysis

rng = np.random.default_rng(0)
whole = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 8)) + 0.3 * rng.normal(size=(200, 8))
X = whole.copy()
gone = rng.random(X.shape) < 0.33
X[gone] = np.nan

vi = FactorizedVI(FactorAnalysis(2), random_state=0).fit(X)
filled, sd = vi.impute(X, return_sd=True)
inside = np.abs(filled - whole)[gone] < 1.645 * sd[gone]
print(f"{inside.mean():.0%} of the true values are in their 90 % intervals")

# %%

figure, ax = plt.subplots(figsize=(5, 4.5), layout="constrained")
some = rng.permutation(gone.sum())[:80]
true, guess, width = whole[gone][some], filled[gone][some], 1.645 * sd[gone][some]
ax.errorbar(true, guess, yerr=width, fmt="o", ms=4, lw=1, color="#0072B2", ecolor="0.7")
ax.axline((0, 0), slope=1, color="0.3", lw=1)
ax.set(xlabel="true value of a missing cell", ylabel="filled in, with 90 % interval")
plt.show()
