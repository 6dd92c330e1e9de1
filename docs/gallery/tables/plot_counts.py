"""
Which cells are alike, by their counts?
=======================================

Counts of 40 genes in 300 simulated cells of three types. Depth, how much was counted of a cell,
varies tenfold: as an offset it does not end up in the latents.
"""

import numpy as np
import pandas as pd

from skavi import FactorizedVI
from skavi.displays import LatentPosteriorDisplay, LoadingsDisplay
from skavi.models import FactorAnalysis

rng = np.random.default_rng(0)
kind = rng.choice(["type A", "type B", "type C"], 300)
profile = {name: rng.normal(0.0, 1.0, 40) for name in np.unique(kind)}
log_depth = rng.uniform(np.log(0.3), np.log(3.0), 300)
rates = np.exp(np.array([profile[name] for name in kind]) + log_depth[:, None])
X = pd.DataFrame(rng.poisson(rates), columns=[f"gene {i}" for i in range(40)])
X["log depth"] = log_depth

model = FactorAnalysis(2, likelihood="poisson", offset="log depth")
vi = FactorizedVI(model, random_state=0).fit(X)
LatentPosteriorDisplay.from_estimator(vi, X, kind)

# %%
# Genes that tell the types apart, by what one sd of a factor adds to a log rate:

LoadingsDisplay.from_estimator(vi, most=20)
