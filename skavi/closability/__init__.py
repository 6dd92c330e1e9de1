"""Can amortized VI match factorized VI for a model at all? A verdict from the log joint alone."""

from skavi.closability._verdict import AmortizationWarning, GapEvidence, GapVerdict, can_close_gap

__all__ = ["AmortizationWarning", "GapEvidence", "GapVerdict", "can_close_gap"]
