r"""
When does a straight line lose nothing? The linear model
========================================================

The first of the paper's models (Margossian & Blei 2024, section 5.1): :math:`\theta` has a flat
prior, :math:`z_n \sim \mathrm{N}(0, 1)`, and :math:`x_n \sim \mathrm{N}(\theta + \tau z_n,
\sigma^2)`. The best factor's mean is affine in :math:`x_n` and its sd is the same for all rows, so
a polynomial of degree 1 closes the gap and a constant cannot.
"""

import matplotlib.pyplot as plt
import numpy as np

from skavi import AmortizedVI, FactorizedVI
from skavi.displays import AmortizationGapDisplay, InferenceFunctionDisplay
from skavi.inference_functions import Constant, Polynomial
from skavi.models import LinearModel

rng = np.random.default_rng(0)
X = 1.5 + 1.155 * rng.normal(size=(300, 1)) + 2.43 * rng.normal(size=(300, 1))

free = FactorizedVI(LinearModel()).fit(X)
constant = AmortizedVI(LinearModel(), Constant()).fit(X)
line = AmortizedVI(LinearModel(), Polynomial(degree=1)).fit(X)

# %%
# The function (line) on F-VI's table (dots):

InferenceFunctionDisplay.from_estimator(line, X, free)
plt.show()

# %%
# What each row loses:

AmortizationGapDisplay.from_estimators({"constant": constant, "degree 1": line}, X, free)
plt.show()
