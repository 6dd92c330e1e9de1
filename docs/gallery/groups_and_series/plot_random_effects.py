"""
What do thirteen trials say together?
=====================================

Log risk ratios of tuberculosis with and without a vaccine, in thirteen trials (Colditz et al.
1994), and their standard errors. Trials differ; how large is the mean effect, and how sure is it?
"""

import matplotlib.pyplot as plt
import numpy as np

from skavi import FactorizedVI
from skavi.diagnostics import reweighted
from skavi.displays import LatentPosteriorDisplay
from skavi.models import RandomEffects

y = [-0.8893, -1.5854, -1.3481, -1.4416, -0.2175, -0.7861, -1.6209, 0.0120, -0.4694, -1.3713]
y += [-0.3394, 0.4459, -0.0173]
v = [0.3256, 0.1946, 0.4154, 0.0200, 0.0512, 0.0069, 0.2230, 0.0040, 0.0564, 0.0730]
v += [0.0124, 0.5325, 0.0714]
X = np.column_stack([y, np.sqrt(v)])

vi = FactorizedVI(RandomEffects(), random_state=0).fit(X)
LatentPosteriorDisplay.from_estimator(vi, X)

# %%
# The mean effect. Mean field's interval is too narrow; linear response mends its sd, and
# ``reweighted`` draws have every trial's effect integrated out:

exact = reweighted(vi, X, random_state=0)
ends = {
    "q": vi.global_posterior_.quantile([0.05, 0.95])["mu"],
    "corrected": vi.global_posterior_.quantile([0.05, 0.95], corrected=True)["mu"],
    "reweighted": exact.quantile([0.05, 0.95])["mu"],
}
figure, ax = plt.subplots(figsize=(6.4, 2.2), layout="constrained")
for place, (low, high) in enumerate(ends.values()):
    ax.plot([low, high], [place, place], lw=4)
ax.set_yticks(range(3), ends)
ax.set(xlabel="mean log risk ratio, 90 % interval", ylim=(2.6, -0.6))
ax.grid(alpha=0.25, axis="x")
