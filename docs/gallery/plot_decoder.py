"""
A neural decoder of digits
==========================

The paper's fourth model, small: a neural network decodes each row's latents. Two simplifications
make it quick: the decoder's weights are a point (``global_family=Point()``, a variational
autoencoder; leave it out for a posterior over the weights), and 800 steps, far from convergence.
"""

import warnings

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from skavi import AmortizedVI
from skavi.displays import LatentPosteriorDisplay
from skavi.families import Point
from skavi.inference_functions import MLP
from skavi.models import BayesianDecoder
from skavi.noise import MonteCarlo
from skavi.solvers import Adam

X, y = load_digits(n_class=4, return_X_y=True)
X, y = X[:200] / 4, y[:200]

vi = AmortizedVI(
    BayesianDecoder(2, (32,)),
    MLP((32,)),
    global_family=Point(),
    noise=MonteCarlo(),
    solver=Adam(learning_rate=0.03),
    max_iter=800,
    random_state=0,
)
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
    for row, image in enumerate((X[i], decoded[i])):
        axes[row, i].imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=4)
for ax in axes.flat:
    ax.axis("off")
plt.show()
