"""
What does my encoder lose, and where?
=====================================

A small decoder of digits, fitted with factors of the rows' own (F-VI) and with functions of three
widths (A-VI). `inference_gap` splits what each ELBO is below the log likelihood: what the family of
factors loses, and what the function does, on fitted rows and on new ones.
"""

import warnings

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from skavi import AmortizedVI, FactorizedVI
from skavi.displays import InferenceGapDisplay
from skavi.inference_functions import MLP
from skavi.models import BayesianDecoder

X, y = load_digits(n_class=4, return_X_y=True)
X = (X > 7).astype(float)
X_train, X_test = X[:40], X[40:60]

# Single factors of two latents; the decoder's weights are a point, as in a variational autoencoder.
decoder = BayesianDecoder(2, (16,), likelihood="bernoulli", weights="point")
fits = {"F-VI": FactorizedVI(decoder, max_iter=300, random_state=0)}
for width in (2, 8, 32):
    function = MLP(hidden_layer_sizes=(width,))
    fits[f"A-VI, width {width}"] = AmortizedVI(decoder, function, max_iter=500, random_state=0)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # what is left is part of the amortization
    for vi in fits.values():
        vi.fit(X_train)

# %%
# A narrow function loses far more than the family does; a wide one about as much. On new rows the
# family loses what it did, since each row's best factor is sought anew: what grows is the part of
# the function, as Cremer, Li & Duvenaud (2018) found for larger decoders. The table by width and
# number of rows is in ``benchmarks/inference_gap.py``.

display = InferenceGapDisplay.from_estimators(fits, X_train, X_test, random_state=0)
plt.show()

# %%
# The same as a table:

for name, gap in display.gaps:
    print(name)
    print(gap.summary().round(2).to_string(index=False), "\n")

# %%
# Which digits a narrow function serves badly:

narrow = InferenceGapDisplay(display.gaps[1:2])
narrow.plot_feature(labels=y[:40])
plt.show()

# %%
# And the remedy, where the function cannot be refitted: `refine` solves rows that it misses.

vi = fits["A-VI, width 2"]
before = vi.score(X_test)
after = vi.set_params(refine=0.1).score(X_test)
print(f"{before:.2f} nats a new row by the function, {after:.2f} refined")
