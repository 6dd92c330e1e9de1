"""Variational families: the possible shapes of a factor q(z_n), or of q(theta)."""

from skavi.families._categorical import Categorical, CategoricalFactors
from skavi.families._chain import Chain, ChainFactors
from skavi.families._chained_states import ChainedStates
from skavi.families._normal import (
    LOG_2PI,
    DiagonalFactors,
    DiagonalNormal,
    Family,
    FullFactors,
    FullNormal,
    NormalFactors,
    Point,
    PointFactors,
)

__all__ = [
    "LOG_2PI",
    "Categorical",
    "CategoricalFactors",
    "Chain",
    "ChainFactors",
    "ChainedStates",
    "DiagonalFactors",
    "DiagonalNormal",
    "Family",
    "FullFactors",
    "FullNormal",
    "NormalFactors",
    "Point",
    "PointFactors",
]
