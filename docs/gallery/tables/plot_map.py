"""
What lies behind a table?
=========================

Three cultivars of wine, thirteen chemical measurements, a fifth of the cells missing. Two latents
of each bottle, with an ellipse that holds half of its posterior; the cultivars were not used.
"""

import numpy as np
from sklearn.datasets import load_wine

from skavi import FactorizedVI
from skavi.displays import ElboCurveDisplay, LatentPosteriorDisplay
from skavi.models import FactorAnalysis

X, y = load_wine(return_X_y=True, as_frame=True)
X = X.mask(np.random.default_rng(0).random(X.shape) < 0.2)
cultivar = y.map({0: "cultivar A", 1: "cultivar B", 2: "cultivar C"})

vi = FactorizedVI(FactorAnalysis(2, noise="diagonal"), random_state=0).fit(X)
LatentPosteriorDisplay.from_estimator(vi, X, cultivar)

# %%
# How sure is each row? Sixty of them, each with its 90 % interval:

LatentPosteriorDisplay(vi.posterior(X[::3]), cultivar[::3]).plot_intervals(latent=0)

# %%
# Did the fit arrive? The ELBO after each iteration, as nats below the best:

ElboCurveDisplay.from_estimator(vi)
