"""
Which counties differ, and how sure is that?
============================================

Which counties have more radon than their houses' floors explain? A county with two houses is drawn
towards the mean of all counties, one with forty is not; bars hold 50 % and 90 % of its posterior.
"""

import numpy as np
import pandas as pd

from skavi import FactorizedVI
from skavi.displays import GroupEffectsDisplay
from skavi.models import MixedEffects

rng = np.random.default_rng(0)
sizes = rng.choice([2, 5, 12, 40], 30)
county = np.repeat(np.arange(30), sizes)
X = pd.DataFrame({"county": [f"county {i + 1} ({sizes[i]} houses)" for i in county]})
X["floor"] = (rng.random(len(X)) < 0.2).astype(float)
X["log radon"] = 1.5 - 0.7 * X["floor"] + 0.4 * rng.normal(size=30)[county]
X["log radon"] += 0.8 * rng.normal(size=len(X))

model = MixedEffects("log radon", groups="county", fixed=["floor"])
vi = FactorizedVI(model, random_state=0).fit(X)
GroupEffectsDisplay.from_estimator(vi, X)

# %%
# Fixed effects and variance components, with mean field's sds and corrected ones:
vi.global_posterior_.summary().round(2)
