r"""
How volatile is a series, and for how long?
===========================================

The log variance :math:`h_n` of a series is an autoregression,
:math:`h_n \sim \mathrm{N}(\mu + \phi (h_{n-1} - \mu), \sigma^2)`, and its returns are
:math:`x_n \sim \mathrm{N}(0, e^{h_n})`. Half a year of daily returns: how persistent is it?
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.distributions import Beta, HalfNormal, Normal

from skavi import FactorizedVI
from skavi.displays import LatentPosteriorDisplay
from skavi.families import DiagonalNormal
from skavi.models import CouplingBiasWarning, MarkovModel


class StochasticVolatility(MarkovModel):
    n_latents = 1

    def global_prior(self, n_features):
        priors = {"mean": Normal(0.0, 2.0), "scale": HalfNormal(0.5)}
        return priors | {"persistence": Beta(20.0, 1.5)}

    def initial_prior(self, theta):
        return Normal(theta["mean"], theta["scale"] / torch.sqrt(1 - theta["persistence"] ** 2))

    def transition(self, z, theta):
        return Normal(theta["mean"] + theta["persistence"] * (z - theta["mean"]), theta["scale"])

    def likelihood(self, z, theta):
        return Normal(0.0, torch.exp(z / 2))


rng = np.random.default_rng(1)
log_variance = np.zeros(120)
for i in range(1, 120):
    log_variance[i] = 0.95 * log_variance[i - 1] + 0.3 * rng.normal()
X = (np.exp(log_variance / 2) * rng.normal(size=120))[:, None]

chain = FactorizedVI(StochasticVolatility()).fit(X)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", CouplingBiasWarning)
    independent = FactorizedVI(StochasticVolatility(), family=DiagonalNormal()).fit(X)
for name, vi in (("chain", chain), ("independent", independent)):
    print(f"{name}: persistence {float(vi.global_posterior_.mean['persistence']):.2f} (0.95)")

# %%
# Factors that know their neighbours find the slow wave; independent ones follow single days.

_, axes = plt.subplots(2, sharex=True, layout="constrained")
for ax, vi in zip(axes, (chain, independent), strict=True):
    LatentPosteriorDisplay(vi.posterior(X)).plot_series(ax=ax)
    ax.plot(log_variance, color="0.25", lw=1)
plt.show()

# %%
# Sds of the next ten days' returns:

mean, sd = chain.forecast(X, 10)
print(sd[:, 0].round(2))
