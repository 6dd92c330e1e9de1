"""
Does the model fit my table?
============================

Tables that the fitted model draws, beside the one that was observed. Where the line leaves the
band, which holds 90 % of the drawn tables, the model does not know something of that column: here,
petals have two kinds of width, and a linear normal model has but one.
"""

from sklearn.datasets import load_iris

from skavi import FactorizedVI
from skavi.displays import PredictiveCheckDisplay
from skavi.models import FactorAnalysis, MixtureModel

X = load_iris(as_frame=True).data
linear = FactorizedVI(FactorAnalysis(2, noise="diagonal"), random_state=0).fit(X)
PredictiveCheckDisplay.from_estimator(linear, X, random_state=0)

# %%
# Three clusters do:

clusters = FactorizedVI(MixtureModel(3, covariance="full"), random_state=0).fit(X)
PredictiveCheckDisplay.from_estimator(clusters, X, random_state=0)
