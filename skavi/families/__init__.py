"""Variational families: what a factor q(z_n), or the global factor q(theta), may look like."""

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
    "DiagonalFactors",
    "DiagonalNormal",
    "Family",
    "FullFactors",
    "FullNormal",
    "NormalFactors",
    "Point",
    "PointFactors",
]
