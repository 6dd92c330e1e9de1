"""
How do I take a batch out of counts?
====================================

Cells of three types, counted in two batches whose machines favour different genes: without the
batch, factors are spent on it. Given as a covariate it has coefficients of its own, and the latents
tell the types alone.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from skavi import FactorizedVI
from skavi.displays import GlobalsDisplay
from skavi.models import FactorAnalysis, RandomEffects

rng = np.random.default_rng(0)
n, genes = 240, [f"gene {i + 1}" for i in range(12)]
kind, batch = rng.integers(0, 3, n), rng.integers(0, 2, n)
log_rates = 1.5 + rng.normal(size=(3, 12))[kind] + batch[:, None] * rng.normal(size=12)
X = pd.DataFrame(rng.poisson(np.exp(log_rates)).astype(float), columns=genes)
X["batch"] = np.where(batch, "second", "first")

without = FactorAnalysis(2, likelihood="poisson")
given = FactorAnalysis(2, likelihood="poisson", covariates="batch")
blind = FactorizedVI(without, random_state=0).fit(X[genes])
aware = FactorizedVI(given, random_state=0).fit(X)

# %%

figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
latents = {"without the batch": blind.transform(X[genes]), "given the batch": aware.transform(X)}
for ax, (title, Z) in zip(axes, latents.items(), strict=True):
    for which, marker in ((0, "o"), (1, "x")):
        some = batch == which
        colours = np.array(["#0072B2", "#D55E00", "#009E73"])[kind[some]]
        ax.scatter(*Z[some].T, c=colours, marker=marker, s=22)
    ax.set(title=title, xlabel="latent 0", ylabel="latent 1")
figure.suptitle("colour: type of cell; o and x: first and second batch", fontsize="medium")
plt.show()

# %%
# What the second batch has more of, in nats, with both kinds of intervals:
GlobalsDisplay.from_estimator(aware, "coefficients")

# %%
# Meta-regression
# ---------------
#
# Thirteen trials of the BCG vaccine against tuberculosis (Colditz et al. 1994): its effect, a log
# risk ratio, is stronger the further a trial was from the equator.

effect = [-0.89, -1.59, -1.35, -1.44, -0.22, -0.79, -1.62, 0.01, -0.47, -1.37, -0.34, 0.45, -0.02]
se = [0.57, 0.44, 0.64, 0.14, 0.23, 0.08, 0.47, 0.06, 0.24, 0.27, 0.11, 0.73, 0.27]
latitude = [44, 55, 42, 52, 13, 44, 19, 13, 27, 42, 18, 33, 33]
trials = pd.DataFrame({"effect": effect, "se": se, "latitude": np.array(latitude) - 33.5})

vi = FactorizedVI(RandomEffects(covariates="latitude"), random_state=0).fit(trials)
slope = vi.global_posterior_.mean["coefficients"][0]
sd = vi.global_posterior_.corrected_sd["coefficients"][0]
print(f"{slope:.3f} (sd {sd:.3f}) a degree")
GlobalsDisplay.from_estimator(vi)
