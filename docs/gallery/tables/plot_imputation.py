"""
How do I fill missing cells, and how sure is that?
==================================================

A fifth of the cells of a table are taken out. Factor analysis integrates them out in the fit, and
fills them with predictive means; bars hold 90 %. Crosses are what the cells held.
"""

import numpy as np
from sklearn.datasets import load_wine

from skavi import FactorizedVI
from skavi.displays import ImputationDisplay
from skavi.models import FactorAnalysis

X = load_wine(as_frame=True).data
holes = X.mask(np.random.default_rng(0).random(X.shape) < 0.2)

vi = FactorizedVI(FactorAnalysis(3, noise="diagonal"), random_state=0).fit(holes)
ImputationDisplay.from_estimator(vi, holes, "flavanoids", truth=X)

# %%
# The filled table, and the sd of every cell (0 where it was observed):

filled, sd = vi.set_output(transform="pandas").impute(holes, return_sd=True)
filled.head().round(2)

# %%
# Over all columns, in sds of theirs: the error, and how many cells are in their intervals.

gone = holes.isna().to_numpy()
error = ((filled - X) / X.std()).to_numpy()[gone]
inside = (np.abs(filled - X) < 1.645 * sd).to_numpy()[gone]
print(f"root mean squared error {np.sqrt((error**2).mean()):.2f}; {inside.mean():.0%} inside")
