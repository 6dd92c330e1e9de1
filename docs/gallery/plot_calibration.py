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
from skavi.models import LocalLevel

vi = FactorizedVI(LocalLevel(level_sd=0.1, noise_sd=1.0, initial_sd=1.0))
report = calibration(vi, 80, n_samples=1, random_state=0)
print(report.advice)

CalibrationDisplay.from_calibration(report)
plt.show()

# %%
# With four rows in a chain the latents are correlated, which mean-field factors cannot say: q is
# too narrow, and the histogram has a valley.

narrow = calibration(
    FactorizedVI(LocalLevel(level_sd=0.1, noise_sd=1.0, initial_sd=1.0)),
    80,
    n_samples=4,
    random_state=0,
)
print(narrow.advice)

CalibrationDisplay.from_calibration(narrow)
plt.show()
