"""
A Bayesian decoder of digits
============================

The paper's fourth model, small: a neural network decodes each row's latents, and its weights have a
posterior too. Amortized, this is a variational autoencoder with a posterior over the decoder. Here
two latents, 8 by 8 digits, and 200 steps.
"""

import warnings

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from skavi import AmortizedVI
from skavi.displays import LatentPosteriorDisplay
from skavi.inference_functions import MLP
from skavi.models import BayesianDecoder

X, y = load_digits(n_class=4, return_X_y=True)
X, y = X[:200] / 16, y[:200]

vi = AmortizedVI(BayesianDecoder(2, (16,)), MLP((32,)), max_iter=200, random_state=0)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # stopped early, to be quick
    vi.fit(X)

# %%
# Labels were not used; they only colour the map:

LatentPosteriorDisplay.from_estimator(vi, X, y)
plt.show()

# %%
# Rows, and what the decoder makes of their latents:

decoded = vi.inverse_transform(vi.transform(X))
figure, axes = plt.subplots(2, 8, figsize=(8, 2.2))
for i in range(8):
    axes[0, i].imshow(X[i].reshape(8, 8), cmap="gray_r")
    axes[1, i].imshow(decoded[i].reshape(8, 8), cmap="gray_r")
for ax in axes.flat:
    ax.axis("off")
plt.show()
