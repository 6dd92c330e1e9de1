"""Solvers: how the ELBO is maximised."""

from skavi.solvers._adam import Adam
from skavi.solvers._base import Memory, Outcome, Progress, Run, Solver
from skavi.solvers._coordinate_ascent import CoordinateAscent
from skavi.solvers._lbfgs import LBFGS
from skavi.solvers._newton import Newton
from skavi.solvers._setting import Setting
from skavi.solvers._state import State

__all__ = [
    "LBFGS",
    "Adam",
    "CoordinateAscent",
    "Memory",
    "Newton",
    "Outcome",
    "Progress",
    "Run",
    "Setting",
    "Solver",
    "State",
]
