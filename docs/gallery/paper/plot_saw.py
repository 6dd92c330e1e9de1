r"""
Which rows must a function read? The saw time series
====================================================

In the paper's third model (section 5.3) a latent reads the row before:
:math:`z_n \sim \mathrm{N}(x_{n-1}, 1)`. No function of :math:`x_n` alone closes the gap, however
rich; a straight line in :math:`(x_{n-1}, x_n)` does.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np

from skavi import AmortizedVI, FactorizedVI, can_close_gap
from skavi.diagnostics import AmortizationWarning
from skavi.displays import AmortizationGapDisplay, LatentPosteriorDisplay
from skavi.inference_functions import Polynomial
from skavi.models import SawTimeSeries

rng = np.random.default_rng(0)
X = np.zeros((150, 1))
for n in range(1, len(X)):
    X[n] = 0.75 * (2.0 + X[n - 1] + rng.normal()) + rng.normal()

print("rows to read (before, after):", can_close_gap(SawTimeSeries(), X, random_state=0).context)

free = FactorizedVI(SawTimeSeries()).fit(X)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", AmortizationWarning)  # the point of this example
    blind = AmortizedVI(SawTimeSeries(), Polynomial(3, context=(0, 0))).fit(X)
seeing = AmortizedVI(SawTimeSeries(), Polynomial(1, context=(1, 0))).fit(X)

# %%

AmortizationGapDisplay.from_estimators(
    {"degree 3 in x_n": blind, "degree 1 in (x_n-1, x_n)": seeing}, X, free
)
plt.show()

# %%
# The latents, with bands:

LatentPosteriorDisplay(seeing.posterior(X)).plot_series(X)
plt.show()
