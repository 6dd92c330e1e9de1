"""The ELBO of a model: an objective for real latents, others for finite ones, and their choice."""

from skavi.objective._bind import bind
from skavi.objective._elbo import Objective
from skavi.objective._finite import FiniteObjective

__all__ = ["FiniteObjective", "Objective", "bind"]
