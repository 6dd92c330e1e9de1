"""What a likelihood of one cell given its predictor eta is: the class of all of them.

Every formula works on cells: x, eta and the result have shape (n_rows, n_features). A log density
is a kernel, which depends on eta, plus a constant, which does not: an expectation over a normal eta
then costs one kernel a quadrature node, or nothing where it is known in closed form.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from skavi._data.missing_cells import Cells
from skavi._numerics.quadrature import hermite_rule
from skavi.models._noise_factors import Bent, Levels, NoiseFactors, root_of

#: Nodes of the rule for a normal eta: 1e-6 nats a cell for logistic kernels up to an sd of 1.
_N_NODES = 9
#: Nodes of eta and of the noise for second derivatives of `skavi.models._predictor_nodes`' rule,
#: which has five: of 40 rows of answers and counts they are as near with these as with 9 and 7.
_FEW_NODES, _FEW_NOISE_NODES = 5, 3
#: Nodes of eta given narrow loadings and the latents: of a variance V they miss V^2 of the sixth
#: derivative in second ones.
_THIN_NODES = 3
Globals = Mapping[str, Tensor]
Rule = tuple[np.ndarray, np.ndarray]
_LEAST_COUNT = 0.5  # of a column in all: less than one count


class Likelihood(ABC):
    """p(x | eta, theta) of a cell."""

    #: What X must hold, as said in the error.
    needs: str = "finite numbers"
    #: How the error begins; scikit-learn looks for these very words where counts are needed.
    refusal: str = "Values outside the likelihood's support"
    #: Whether eta is the log of a rate, so that a row's exposure is an offset.
    counts: bool = False
    #: Largest cell that a fit takes, and what to do with larger ones.
    largest_cell: float = math.inf
    beyond: str = ""
    #: Whether a column of zeros tells nothing of the likelihood's own globals.
    needs_counts: bool = False
    #: Whether normal factors of a linear eta have closed-form expectations and optima.
    conjugate: bool = False
    #: Whether E log p(x | eta) needs E exp(eta) alone, which factors of a linear eta have.
    log_linear: bool = False
    #: Whether theta holds "noise_variance", in squared units of X.
    has_variance: bool = False
    #: Whether theta holds a parameter that there may be one of for each column.
    has_noise: bool = False
    #: Its own globals, in the order of `global_prior`, where factors of their logs are integrated
    #: cell by cell, as `skavi.models._expected_cells` has it.
    own_globals: tuple[str, ...] = ()
    #: Nodes of the rule for them.
    n_noise_nodes: int = 7
    #: Whether `bend` may turn within less than a unit of eta.
    narrow: bool = False
    #: Whether `bend` and the rest are known.
    bends: bool = False
    #: Nodes and weights against N(0, 1).
    rule: Rule = hermite_rule(_N_NODES)
    #: Adam's first rate where rows and latents pass networks. At 0.02 fits of digits fall by 10
    #: nats a row on the way: those times 1, 16 and 1,000 get 34.9, 29.8 and 26.5, and 34.7 and 35.2
    #: (16 and 1,000) at 0.015.
    network_rate: float = 0.015

    @property
    def least_gain(self) -> float:
        """Nats a cell that 200 stochastic steps gain at least before their rate falls.

        Cells of two or more levels hold few nats, so a window's gain is small as well. Of 1,011
        digits, 337 held out, two values get -17.06 nats with 0.003, -16.83 with 0.001; numbers 31.6
        with 0.006, 29.9 with 0.001, in 3,400 steps for 5,600 (posterior weights: 31.9 and 32.4).
        0.005 itself was not run on these.
        """
        return 0.005 if self.has_variance or self.counts else 0.001

    @abstractmethod
    def global_prior(self, shape: tuple, variance: Distribution | None) -> dict[str, Distribution]:
        """Return the priors of the likelihood's own globals.

        Parameters
        ----------
        shape : tuple
            () for one noise parameter, (n_features,) for one a column.
        variance : Distribution or None
            Prior of "noise_variance"; None where it is known.
        """

    @abstractmethod
    def start(self, variance: Tensor) -> dict[str, Tensor]:
        """Return values of its own globals to start from, given the cells' noise variance."""

    @abstractmethod
    def distribution(self, eta: Tensor, theta: Globals) -> Distribution:
        """Return the distribution of cells with predictor eta."""

    @abstractmethod
    def kernel(self, x: Tensor, eta: Tensor, theta: Globals) -> Tensor:
        """Return what depends on eta of the log density, a number a cell."""

    @abstractmethod
    def constant(self, x: Tensor, theta: Globals) -> Tensor:
        """Return the rest of the log density, a number a cell."""

    def mean(self, eta: Tensor, theta: Globals) -> Tensor:
        """Return E[x | eta]."""
        return self.distribution(eta, theta).mean

    def variance(self, eta: Tensor, theta: Globals) -> Tensor:
        """Return Var[x | eta]."""
        return self.distribution(eta, theta).variance

    def location(self, mean: Tensor) -> Tensor:
        """Return the eta of cells with that mean."""
        return mean

    def pseudo(self, x: Tensor) -> Tensor:
        """Return cells on the scale of eta, roughly normal: what a start is computed from."""
        return x

    def pseudo_cells(self, cells: Cells) -> Cells:
        """Return `pseudo` of a table's cells."""
        return Cells(self.pseudo(cells.values), cells.observed)

    def invalid(self, x: Tensor) -> list[tuple[Tensor, str]]:
        """Return (cells, what they are) for every way in which a cell may be no observation."""
        return []

    def require_valid(self, x: Tensor, asked_by: str, first_column: int = 0) -> None:
        """Refuse columns of X, from `first_column` on, with cells that are no observations."""
        for bad, what in self.invalid(x):
            where = bad.nonzero()
            if len(where):
                row, column = where[0].tolist()
                raise ValueError(
                    f"{self.refusal}: X has {len(where)} {what} (first at row {row}, column "
                    f"{first_column + column}), but {asked_by} needs {self.needs}."
                )

    def require_reach(self, cells: Cells, weights: Tensor, asked_by: str) -> None:
        """Refuse to fit columns that the likelihood cannot explain, or that tell it nothing."""
        totals = cells.over_rows(weights, cells.values).sum(0)  # of all ranks: first
        large = (cells.values >= self.largest_cell).nonzero()
        if len(large):
            row, column = large[0].tolist()
            raise ValueError(
                f"X has {len(large)} counts of {self.largest_cell:g} or more (first at row {row}, "
                f"column {column}), but {asked_by} {self.beyond}."
            )
        if not self.needs_counts:
            return
        empty = (totals < _LEAST_COUNT).nonzero()
        if len(empty):
            raise ValueError(
                f"X has {len(empty)} columns of zeros (first column {int(empty[0, 0])}), which "
                f"tell {asked_by} nothing of their dispersion: leave them out, or use "
                "likelihood='poisson'."
            )

    def log_rows(self, cells: Cells, eta: Tensor, theta: Globals) -> Tensor:
        """Return the log density of every row's observed cells, shape (n_rows,)."""
        x = cells.values
        return cells.masked(self.kernel(x, eta, theta) + self.constant(x, theta)).sum(-1)

    def expected_log_rows(self, cells: Cells, mean: Tensor, variance: Tensor, theta: Globals):
        """Return the expectation of `log_rows` under eta ~ N(mean, variance), cell by cell."""
        x = cells.values
        expected = self.expected_kernel(x, mean, variance, theta)
        return cells.masked(expected + self.constant(x, theta)).sum(-1)

    # --- the kernel slope(x) eta - (share(x) + factor) bend(x, eta, level), and the rest ----------

    def slope(self, x: Tensor) -> Tensor | float:
        """Return the kernel's part that is linear in eta."""
        return x

    def share(self, x: Tensor) -> Tensor | float:
        """Return how often the bend counts, beside its factor."""
        return 1.0

    def levels(self, noise: NoiseFactors) -> tuple[Tensor, Tensor]:
        """Return level and expected factor at the nodes of the noise, (n_nodes, n_columns)."""
        zeros = noise.mean.new_zeros(1, len(noise.mean))
        return zeros, zeros

    def levels_at_nodes(self, noise: NoiseFactors) -> Levels:
        """Return the same as the levels of an expectation: each node's, by its weight."""
        level, factors = self.levels(noise)
        weights = noise.rule()[1]
        return Levels(
            level, weights.tolist(), torch.as_tensor(weights).to(level)[:, None] * factors
        )

    def levels_along(self, noise: NoiseFactors) -> Levels:
        """Return the fewest levels for predictors that may be given more variance."""
        return self.levels_at_nodes(noise)

    def width(self, levels: Levels) -> Tensor | float:
        """Return the distance of eta within which `bend` turns, a column's or all columns'."""
        return 1.0

    def bend(self, x: Tensor, eta: Tensor, level: Tensor | float) -> Tensor:
        """Return what is not linear in eta: by default log(1 + exp(eta + level))."""
        return -F.logsigmoid(-(eta + level))

    def bent(self, x: Tensor, eta: Tensor, level: Tensor) -> Bent:
        """Return the derivatives of `bend`."""
        first = torch.sigmoid(eta + level)
        second = first * (1 - first)
        return Bent(first, second, first, second, second)

    def rest(self, x: Tensor, noise: NoiseFactors) -> Tensor:
        """Return the expectation of what does not depend on eta."""
        return torch.zeros_like(x)

    def expected_rows_over_noise(self, cells: Cells, mean: Tensor, variance: Tensor, noise):
        """Return `expected_log_rows` under normal logs of the noise as well."""
        return cells.masked(self.expected_over_noise(cells.values, mean, variance, noise)).sum(-1)

    def expected_over_noise(self, x: Tensor, mean: Tensor, variance: Tensor, noise) -> Tensor:
        """Return the same of every cell x, whose mean and variance of eta may be its column's."""
        root = root_of(variance)
        one = mean.new_ones([1] * (1 + max(x.ndim, mean.ndim)))  # dimension 0 is that of nodes
        rule = zip(*(part.tolist() for part in self.rule), strict=True)
        nodes, levels = ((w, mean + e * one * root) for e, w in rule), self.levels_at_nodes(noise)
        return self.expected_at(x, mean, nodes, noise, levels)

    def expected_at(self, x, mean: Tensor, nodes, noise: NoiseFactors, levels: Levels) -> Tensor:
        """Return every cell's expected log density by nodes of its predictor.

        Parameters
        ----------
        x : Tensor of shape (n_rows, n_columns)
        mean : Tensor
            Of eta: a cell's, or its column's.
        nodes : iterable of (float or Tensor, Tensor)
            Weights and values of eta, at one node or several along dimension 0.
        noise : NoiseFactors
        levels : Levels
        """
        bends = [torch.zeros_like(mean)] * len(levels.level)
        for weight, eta in nodes:
            bends = [
                bend + (weight * self.bend(x, eta, level)).sum(0)
                for bend, level in zip(bends, levels.level, strict=True)
            ]
        total = self.slope(x) * mean + self.rest(x, noise)
        for share, factor, bend in zip(levels.shares, levels.factors, bends, strict=True):
            total = total - (share * self.share(x) + factor) * bend
        return total

    def with_rule(self, rule: Rule) -> Self:
        """Return the likelihood with another rule of quadrature, where it needs one."""
        other = copy.copy(self)
        other.rule = rule
        return other

    def with_few_nodes(self, thin: bool = False) -> Self:
        """Return the likelihood with rules of few nodes, for second derivatives.

        `thin`: whether predictors vary little within them.
        """
        few = min(len(self.rule[0]), _THIN_NODES if thin else _FEW_NODES)
        other = self.with_rule(hermite_rule(few))
        other.n_noise_nodes = min(self.n_noise_nodes, _FEW_NOISE_NODES)
        return other

    def expected_kernel(self, x, mean, variance, theta):
        """E kernel for a normal eta: by quadrature where it is not known."""
        sd = root_of(variance)
        total = torch.zeros_like(mean)
        for node, weight in zip(*(part.tolist() for part in self.rule), strict=True):
            total = total + weight * self.kernel(x, mean + node * sd, theta)
        return total
