"""
How do I fit a variational autoencoder?
=======================================

The paper's fourth model, small: a neural network decodes each row's latents. The decoder's weights
are a point (``weights="point"``, a variational autoencoder; leave it out for a posterior over the
weights), and its noise is learned.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

from skavi import AmortizedVI
from skavi.displays import LatentPosteriorDisplay
from skavi.models import BayesianDecoder

X, y = load_digits(n_class=4, return_X_y=True)
X, y = X[:200] / 4, y[:200]

vi = AmortizedVI(BayesianDecoder(2, (32,), weights="point"), random_state=0).fit(X)

# %%
# Labels were not used; they only colour the map:

LatentPosteriorDisplay.from_estimator(vi, X, y)
plt.show()

# %%
# Rows, and what the decoder makes of their latents:

decoded = vi.inverse_transform(vi.transform(X))
figure, axes = plt.subplots(2, 8, figsize=(8, 2.2))
for i in range(8):
    for row, image in enumerate((X[i], decoded[i])):
        axes[row, i].imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=4)
for ax in axes.flat:
    ax.axis("off")
plt.show()
