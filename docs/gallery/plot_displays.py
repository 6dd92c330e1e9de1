"""
Latents with their uncertainty, and how fits converged
======================================================

Displays work as scikit-learn's: ``SomeDisplay.from_estimator(..., ax=None)``, and ``ax_`` and
``figure_`` to go on with.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_iris
from sklearn.preprocessing import StandardScaler

from skavi import FactorizedVI
from skavi.displays import ElboCurveDisplay, LatentPosteriorDisplay
from skavi.models import FactorAnalysis
from skavi.solvers import LBFGS, CoordinateAscent

iris = load_iris()
X = StandardScaler().fit_transform(iris.data)
species = iris.target_names[iris.target]

free = FactorizedVI(FactorAnalysis(2, noise="diagonal"), random_state=0).fit(X)

# %%
# A map of two latents. An ellipse holds half of q:

LatentPosteriorDisplay.from_estimator(free, X, species)
plt.show()

# %%
# One latent, row by row:

LatentPosteriorDisplay(free.posterior(X[::5]), species[::5]).plot_intervals(latent=0)
plt.show()

# %%
# How far below the best ELBO each fit was after each iteration, under two solvers. Iterations of
# different solvers cost differently; ``ElboCurveDisplay.from_monitor`` has seconds.

solvers = {"coordinate ascent": CoordinateAscent(), "L-BFGS": LBFGS()}
fits = {
    name: FactorizedVI(FactorAnalysis(2), solver=solver, random_state=0).fit(X)
    for name, solver in solvers.items()
}
ElboCurveDisplay.from_estimators(fits)
plt.show()
