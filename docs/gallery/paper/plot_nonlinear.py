r"""
How wide must a network be? The nonlinear model
===============================================

The paper's second model (section 5.2) is
:math:`x_n \sim \mathrm{N}(\theta + z_n \sin z_n + z_n, \exp(\cos z_n)^2)`. The best factor
bends with :math:`x_n`. A polynomial or a narrow network leaves a gap.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from skavi import AmortizedVI, FactorizedVI
from skavi.displays import AmortizationGapDisplay, InferenceFunctionDisplay
from skavi.inference_functions import MLP
from skavi.models import NonlinearModel

rng = np.random.default_rng(0)
z = 3 * rng.normal(size=(50, 1))
X = z * np.sin(z) + z + np.exp(np.cos(z)) * rng.normal(size=(50, 1))

free = FactorizedVI(NonlinearModel(), random_state=0).fit(X)
widths = [1, 3, 8]
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # 30 iterations are enough for a picture
    fits = [
        AmortizedVI(NonlinearModel(), MLP((w, w)), max_iter=30, random_state=0).fit(X)
        for w in widths
    ]

# %%
# The total gap against the width:

AmortizationGapDisplay.from_settings(fits, X, widths, free)
plt.show()

# %%
# The widest network (line, and band of a standard deviation) on F-VI's table (dots and dashes).
# Between the dots nothing held it: a network is only as good as the rows that it has seen.

InferenceFunctionDisplay.from_estimator(fits[-1], X, free)
plt.show()
