"""Diagnostics of a fit: how far its results can be trusted."""

from skavi._data.validated_tables import SampleWeightWarning
from skavi._estimators.reporting import SeveralOptimaWarning
from skavi.closability import AmortizationWarning, GapEvidence, GapVerdict, can_close_gap
from skavi.diagnostics.gap import AmortizationGap, amortization_gap
from skavi.diagnostics.gap_parts import InferenceGap, inference_gap
from skavi.diagnostics.khat import PSISKHat, psis_khat
from skavi.diagnostics.known_groups import score_known_groups
from skavi.diagnostics.response import LinearResponse, linear_response
from skavi.diagnostics.reweighting import (
    ImportanceWeightsWarning,
    ReweightedPosterior,
    reweighted,
)
from skavi.diagnostics.simulation_based_calibration import Calibration, calibration
from skavi.diagnostics.topics import held_out_perplexity

__all__ = [
    "AmortizationGap",
    "AmortizationWarning",
    "Calibration",
    "GapEvidence",
    "GapVerdict",
    "ImportanceWeightsWarning",
    "InferenceGap",
    "LinearResponse",
    "PSISKHat",
    "ReweightedPosterior",
    "SampleWeightWarning",
    "SeveralOptimaWarning",
    "amortization_gap",
    "calibration",
    "can_close_gap",
    "held_out_perplexity",
    "inference_gap",
    "linear_response",
    "psis_khat",
    "reweighted",
    "score_known_groups",
]
