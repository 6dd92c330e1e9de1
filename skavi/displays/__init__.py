"""Plots of fits, with scikit-learn's interface: ``SomeDisplay.from_estimator(..., ax=None)``.

Every display keeps its axes as ``ax_`` and its figure as ``figure_``. matplotlib is imported when a
plot is drawn: ``pip install "skavi[plot]"``. Colours are those of Okabe and Ito, which people with
any colour vision can distinguish.
"""

from skavi.displays._calibration import CalibrationDisplay
from skavi.displays._elbo_curve import ElboCurveDisplay
from skavi.displays._gap import AmortizationGapDisplay
from skavi.displays._globals import GlobalsDisplay
from skavi.displays._group_effects import GroupEffectsDisplay
from skavi.displays._imputation import ImputationDisplay
from skavi.displays._inference_function import InferenceFunctionDisplay
from skavi.displays._inference_gap import InferenceGapDisplay
from skavi.displays._latent_posterior import LatentPosteriorDisplay
from skavi.displays._loadings import LoadingsDisplay
from skavi.displays._mixture import MixtureDisplay
from skavi.displays._predictive_check import PredictiveCheckDisplay
from skavi.displays._topic_words import TopicWordsDisplay

__all__ = [
    "AmortizationGapDisplay",
    "CalibrationDisplay",
    "ElboCurveDisplay",
    "GlobalsDisplay",
    "GroupEffectsDisplay",
    "ImputationDisplay",
    "InferenceFunctionDisplay",
    "InferenceGapDisplay",
    "LatentPosteriorDisplay",
    "LoadingsDisplay",
    "MixtureDisplay",
    "PredictiveCheckDisplay",
    "TopicWordsDisplay",
]
