"""Models to subclass and models to use: one latent vector a row."""

from skavi.models._base import HierarchicalModel, LatentVariableModel
from skavi.models._factor_analysis import FactorAnalysis
from skavi.models._paper import LinearModel, NonlinearModel
from skavi.models._random_effects import RandomEffects

__all__ = [
    "FactorAnalysis",
    "HierarchicalModel",
    "LatentVariableModel",
    "LinearModel",
    "NonlinearModel",
    "RandomEffects",
]
