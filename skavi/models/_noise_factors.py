"""Normal factors of the logs of a likelihood's own globals: a scale, degrees of freedom, ..."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from skavi._numerics.quadrature import hermite_rule

#: Nodes of the rule for the noise: 4e-8 nats a cell where the logs' sds are 0.5, 2e-4 where 1.
_N_NODES = 7
#: Nodes at least. Not measured.
_FEWEST_NODES = 3
#: What a rule for narrow noise may be off by, times the derivative of order 2 n that n nodes miss:
#: 2e5 cells then miss 2e-7 nats where that is 1, a five-hundredth of the usual tol.
_MISSED = 1e-12
_SMALLEST_VARIANCE = 1e-300  # keeps the root's derivative finite where a number is known


@dataclass(frozen=True)
class NoiseFactors:
    """Factors of the logs of what a column's noise has, for every column of X.

    Attributes
    ----------
    mean, sd : Tensor of shape (n_columns, h)
    n_nodes : int, default=7
        Of the rule for a column's noise.
    """

    mean: Tensor
    sd: Tensor
    n_nodes: int = _N_NODES

    @property
    def size(self) -> int:
        """Count a column's raw numbers: means, then log sds."""
        return 2 * self.mean.shape[-1]

    def raw(self) -> Tensor:
        """Return means and log sds, shape (n_columns, 2 h)."""
        return torch.cat([self.mean, self.sd.log()], -1)

    def of_raw(self, raw: Tensor) -> "NoiseFactors":
        """Return factors with other means and log sds."""
        mean, log_sd = raw.chunk(2, -1)
        return replace(self, mean=mean, sd=log_sd.exp())

    def with_enough_nodes(self) -> "NoiseFactors":
        """Return the same factors with as few nodes as are exact to rounding where noise is narrow.

        n nodes miss n! / (2 n)! sd^(2 n) times the derivative of order 2 n. Source: Davis &
        Rabinowitz (1984), "Methods of numerical integration", section 2.7, for N(0, 1).
        """
        widest = float(self.sd.detach().square().sum(-1).amax()) if self.sd.numel() else 0.0
        for n in range(_FEWEST_NODES, self.n_nodes):
            if math.factorial(n) / math.factorial(2 * n) * widest**n <= _MISSED:
                return replace(self, n_nodes=n)
        return self

    def rule(self) -> tuple[np.ndarray, np.ndarray]:
        """Return nodes and weights against N(0, 1): one where there is no noise."""
        return hermite_rule(self.n_nodes if self.size else 1)

    def at_nodes(self, mean: Tensor, sd: Tensor) -> Tensor:
        """Return numbers of the columns at all nodes, shape (n_nodes, n_columns)."""
        return mean + torch.as_tensor(self.rule()[0]).to(mean).unsqueeze(-1) * sd


@dataclass(frozen=True)
class Bent:
    """Derivatives of a likelihood's bend, a number a cell and node.

    Attributes
    ----------
    eta, eta_eta, level, eta_level, level_level : Tensor
    """

    eta: Tensor
    eta_eta: Tensor
    level: Tensor
    eta_level: Tensor
    level_level: Tensor


def root_of(variance: Tensor) -> Tensor:
    """Return the sd, with a finite derivative where a number is known."""
    return variance.clamp_min(_SMALLEST_VARIANCE).sqrt()


@dataclass(frozen=True)
class Levels:
    """Levels at which a likelihood's bend stands for the expectation over the noise.

    Attributes
    ----------
    level : Tensor of shape (n_levels, n_columns)
    shares : list of float
        What the share of each level's bend is multiplied by.
    factors : Tensor of shape (n_levels, n_columns)
        What is added to it.
    variance : Tensor of shape (n_columns,), or float
        To be added to the predictor's.
    """

    level: Tensor
    shares: list[float]
    factors: Tensor
    variance: Tensor | float = 0.0
