"""
When did the regime change? What no window tells
================================================

A chain of two hidden states. Rows 49 and 50 are equal, halfway between the states' centres, and the
series changes its state there. A function of a row gives equal rows equal factors, however rich it
is; wider windows come nearer to factors of one's own, and never all the way.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.distributions import Categorical, Normal

from skavi import AmortizedVI, FactorizedVI, families
from skavi.diagnostics import AmortizationWarning
from skavi.inference_functions import Polynomial
from skavi.models import MarkovModel


class Switching(MarkovModel):
    n_latents = 1

    def global_prior(self, n_features):
        return {}

    def initial_prior(self, theta):
        return Categorical(torch.full((2,), 0.5))

    def transition(self, z_previous, theta):
        stays = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
        return Categorical(stays[z_previous[:, 0].long()])

    def likelihood(self, z, theta):
        return Normal(2.0 * z - 1.0, 1.0)


rng = np.random.default_rng(3)
states = np.cumsum(rng.random(100) < 0.1) % 2
states[42:50], states[50:58] = 0, 1
X = (2.0 * states - 1 + rng.normal(size=100))[:, np.newaxis]
X[49:51] = 0.0

independent = FactorizedVI(Switching(), family=families.Categorical()).fit(X)
chain = FactorizedVI(Switching()).fit(X)  # the default family, Chain(): exact given theta
widths, amortized = (0, 1, 2, 4, 7, 10), []
for width in widths:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmortizationWarning)  # the point of this example
        vi = AmortizedVI(Switching(), Polynomial(1, context=(width, width)), random_state=0)
        amortized.append(vi.fit(X))
for name, vi in (("chain", chain), ("independent", independent), ("row alone", amortized[0])):
    print(name, vi.transform(X)[[49, 50], 1].round(2), f"ELBO {vi.elbo_:.2f}")

# %%

_, (gap, chances) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
gap.plot(widths, [independent.elbo_ - vi.elbo_ for vi in amortized], "o-")
gap.set(xlabel="rows read before and after", ylabel="gap, nats", yscale="log")
rows = np.arange(38, 63)
for name, vi in (("chain", chain), ("independent", independent), ("row alone", amortized[0])):
    chances.plot(rows, vi.transform(X)[rows, 1], ".-", label=name)
chances.step(rows, states[rows], where="mid", color="0.7", zorder=0, label="true")
chances.axvspan(48.5, 50.5, color="0.92", zorder=-1)
chances.set(xlabel="row", ylabel="probability of state 1", ylim=(-0.05, 1.45))
chances.legend(fontsize="small", ncols=2, loc="upper center")
plt.show()
