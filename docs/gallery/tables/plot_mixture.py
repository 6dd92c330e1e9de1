"""
Which clusters are there, if cells are missing?
===============================================

Three kinds of iris, with a fifth of the cells taken out. Points have the colours of their
components, faint where a row is in doubt; rows that lack one of the two cells are in the fit, but
not in the picture.
"""

import numpy as np
from sklearn.datasets import load_iris

from skavi import FactorizedVI
from skavi.displays import MixtureDisplay
from skavi.models import MixtureModel

X = load_iris(as_frame=True).data
X = X.mask(np.random.default_rng(0).random(X.shape) < 0.2)
vi = FactorizedVI(MixtureModel(3, covariance="tied"), random_state=0).fit(X)
MixtureDisplay.from_estimator(vi, X, features=(2, 3))
