"""Variational inference for latent variable models in scikit-learn, factorized or amortized."""

from skavi import distributed
from skavi._estimators.amortized import AmortizedVI
from skavi._estimators.factorized import FactorizedVI
from skavi._platform.version import __version__
from skavi.closability import can_close_gap
from skavi.diagnostics.gap import amortization_gap
from skavi.persistence import load, save

__all__ = [
    "AmortizedVI",
    "FactorizedVI",
    "__version__",
    "amortization_gap",
    "can_close_gap",
    "distributed",
    "load",
    "save",
]
