"""The ELBO of a model: an objective for real latents, one for finite ones, and their choice."""

from skavi.objective._elbo import Objective
from skavi.objective._finite import FiniteObjective, bind

__all__ = ["FiniteObjective", "Objective", "bind"]
