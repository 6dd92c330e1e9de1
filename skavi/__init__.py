"""Variational inference for latent variable models in scikit-learn, factorized or amortized."""

from skavi._estimators import AmortizedVI, FactorizedVI
from skavi.closability import can_close_gap
from skavi.diagnostics.gap import amortization_gap

__version__ = "0.1.0"

__all__ = ["AmortizedVI", "FactorizedVI", "amortization_gap", "can_close_gap"]
