"""
What do the latents of a table mean?
====================================

Thirteen chemical measurements of wine, in three factors. Red columns grow with a factor, blue ones
fall: the first one is of phenols, the second of alcohol and colour, the third of ash.
"""

from sklearn.datasets import load_wine

from skavi import FactorizedVI
from skavi.displays import LatentPosteriorDisplay, LoadingsDisplay
from skavi.models import FactorAnalysis

X, y = load_wine(return_X_y=True, as_frame=True)
cultivar = y.map({0: "cultivar A", 1: "cultivar B", 2: "cultivar C"})

vi = FactorizedVI(FactorAnalysis(3, noise="diagonal"), random_state=0).fit(X)
loadings = LoadingsDisplay.from_estimator(vi)

# %%
# Rows and columns in one picture: arrows point where a column grows.

loadings.plot_biplot(vi.posterior(X), cultivar)

# %%
# Every pair of factors:

LatentPosteriorDisplay(vi.posterior(X), cultivar).plot_pairs()
