"""Solvers: how the ELBO is climbed."""

from skavi.solvers._adam import Adam
from skavi.solvers._base import Outcome, Progress, Solver, State
from skavi.solvers._coordinate_ascent import CoordinateAscent
from skavi.solvers._lbfgs import LBFGS
from skavi.solvers._newton import Newton

__all__ = ["LBFGS", "Adam", "CoordinateAscent", "Newton", "Outcome", "Progress", "Solver", "State"]
