"""Pictures of fits, in scikit-learn's manner: ``SomeDisplay.from_estimator(..., ax=None)``.

Every display keeps its axes as ``ax_`` and its figure as ``figure_``. matplotlib is imported when
one is drawn: ``pip install "skavi[plot]"``. Colours are Okabe and Ito's, which people of every
colour vision tell apart.
"""

from skavi.displays._calibration import CalibrationDisplay
from skavi.displays._elbo_curve import ElboCurveDisplay
from skavi.displays._gap import AmortizationGapDisplay
from skavi.displays._inference_function import InferenceFunctionDisplay
from skavi.displays._latent_posterior import LatentPosteriorDisplay

__all__ = [
    "AmortizationGapDisplay",
    "CalibrationDisplay",
    "ElboCurveDisplay",
    "InferenceFunctionDisplay",
    "LatentPosteriorDisplay",
]
