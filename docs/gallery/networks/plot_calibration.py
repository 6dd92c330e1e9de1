"""
Is q calibrated? Ranks of simulated truths
==========================================

Simulate data with known latents, infer them, and rank the truth under q. Where q is right, ranks
are level. Here every parameter is known and a row has no neighbour, so q is exact.
"""

import matplotlib.pyplot as plt

from skavi import FactorizedVI
from skavi.diagnostics import calibration
from skavi.displays import CalibrationDisplay
from skavi.families import DiagonalNormal
from skavi.models import LocalLevel

vi = FactorizedVI(LocalLevel(0.1, 1.0, initial_mean=0.0, initial_sd=1.0))
report = calibration(vi, 80, n_samples=1, random_state=0)
print(report.advice)

CalibrationDisplay.from_calibration(report)
plt.show()

# %%
# With four rows in a chain the latents are correlated, which independent factors cannot say (the
# default family, `Chain`, can): q is too narrow, and the histogram has a valley.

narrow = calibration(
    FactorizedVI(LocalLevel(0.1, 1.0, initial_mean=0.0, initial_sd=1.0), family=DiagonalNormal()),
    80,
    n_samples=4,
    random_state=0,
)
print(narrow.advice)

CalibrationDisplay.from_calibration(narrow)
plt.show()
