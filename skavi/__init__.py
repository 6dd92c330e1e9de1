"""Variational inference for latent variable models, factorized or amortized, as scikit-learn does it."""

from skavi._estimators import AmortizedVI, FactorizedVI

__version__ = "0.1.0"

__all__ = ["AmortizedVI", "FactorizedVI"]
