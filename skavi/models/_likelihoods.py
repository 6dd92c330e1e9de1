"""Likelihoods of one cell given its predictor eta: an object each, shared by all models of cells.

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
from torch.distributions import (
    Bernoulli,
    Distribution,
    Exponential,
    Gamma,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
)
from torch.nn import functional as F

from skavi._data.missing_cells import Cells
from skavi._numerics.quadrature import hermite_rule
from skavi.families import LOG_2PI

#: Nodes of the rule for a normal eta: 1e-6 nats a cell for logistic kernels up to an sd of 1.
_N_NODES = 9
Globals = Mapping[str, Tensor]
Rule = tuple[np.ndarray, np.ndarray]
_LEAST_COUNT = 0.5  # of a column in all: less than one count
_SMALLEST_VARIANCE = 1e-300  # keeps the root's derivative finite where eta is known


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
    #: Nodes and weights against N(0, 1).
    rule: Rule = hermite_rule(_N_NODES)

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

    def with_rule(self, rule: Rule) -> Self:
        """Return the likelihood with another rule of quadrature, where it needs one."""
        other = copy.copy(self)
        other.rule = rule
        return other

    def expected_kernel(self, x, mean, variance, theta):
        """E kernel for a normal eta: by quadrature where it is not known."""
        sd = variance.clamp_min(_SMALLEST_VARIANCE).sqrt()
        total = torch.zeros_like(mean)
        for node, weight in zip(*(part.tolist() for part in self.rule), strict=True):
            total = total + weight * self.kernel(x, mean + node * sd, theta)
        return total


class NormalCells(Likelihood):
    """x ~ N(eta, noise_variance)."""

    conjugate = has_variance = has_noise = True

    def global_prior(self, shape, variance):
        return {} if variance is None else {"noise_variance": variance}

    def start(self, variance):
        return {"noise_variance": variance}

    def distribution(self, eta, theta):
        return Normal(eta, theta["noise_variance"].sqrt())

    def kernel(self, x, eta, theta):
        return -0.5 * (x - eta) ** 2 / theta["noise_variance"]

    def constant(self, x, theta):
        return (-0.5 * (theta["noise_variance"].log() + LOG_2PI)).expand(x.shape)

    def expected_kernel(self, x, mean, variance, theta):
        return -0.5 * ((x - mean) ** 2 + variance) / theta["noise_variance"]

    def log_rows(self, cells, eta, theta):
        """Written out: one pass over the cells there and one back."""
        variance, n_columns = theta["noise_variance"], eta.shape[-1:]
        squares = cells.masked(F.mse_loss(eta, cells.values, reduction="none"))
        whitened = squares @ (1 / variance) if variance.dim() else squares.sum(-1) / variance
        constants = cells.over_columns((variance.log() + LOG_2PI).expand(n_columns))
        return -0.5 * (whitened + constants)


class StudentTCells(Likelihood):
    """x ~ t_nu(eta, sqrt(noise_variance)): noise_variance is the squared scale.

    nu ~ Gamma(2, 0.1): Juarez & Steel (2010), "Model-based clustering of non-Gaussian panel data
    based on skew-t distributions".
    """

    has_variance = has_noise = True

    def global_prior(self, shape, variance):
        own = {"degrees_of_freedom": Gamma(torch.tensor(2.0), torch.tensor(0.1))}
        return own if variance is None else own | {"noise_variance": variance}

    def start(self, variance):
        return {"degrees_of_freedom": variance.new_tensor(5.0), "noise_variance": 0.6 * variance}

    def distribution(self, eta, theta):
        return StudentT(theta["degrees_of_freedom"], eta, theta["noise_variance"].sqrt())

    def mean(self, eta, theta):
        return eta  # the centre; a mean exists for nu > 1

    def kernel(self, x, eta, theta):
        nu = theta["degrees_of_freedom"]
        squared = (x - eta) ** 2 / (nu * theta["noise_variance"])
        return -0.5 * (nu + 1) * torch.log1p(squared)

    def constant(self, x, theta):
        nu, variance = theta["degrees_of_freedom"], theta["noise_variance"]
        log_norm = torch.lgamma(0.5 * (nu + 1)) - torch.lgamma(0.5 * nu)
        return (log_norm - 0.5 * (torch.pi * nu * variance).log()).expand(x.shape)


class BernoulliCells(Likelihood):
    """x ~ Bernoulli(sigmoid(eta)); cells between 0 and 1 count as that share of a success."""

    needs = "values from 0 to 1"

    def global_prior(self, shape, variance):
        return {}

    def start(self, variance):
        return {}

    def distribution(self, eta, theta):
        return Bernoulli(logits=eta)

    def kernel(self, x, eta, theta):
        return x * eta - F.softplus(eta)

    def constant(self, x, theta):
        return torch.zeros_like(x)

    def location(self, mean):
        return torch.logit(mean, eps=0.01)

    def pseudo(self, x):
        return 4 * x - 2

    def invalid(self, x):
        return [((x < 0) | (x > 1), "entries outside 0 to 1")]


class PoissonCells(Likelihood):
    """x ~ Poisson(exp(eta)); cells need not be whole numbers."""

    needs, counts = "counts >= 0", True
    log_linear = True
    largest_cell = 1e6  # Newton crawls along the walls of exp: minutes for 40 x 5, or one cell
    beyond = (
        "takes each as exact to 0.1 %, as hardly any counts are: use "
        "likelihood='negative_binomial', or log(X + 1) with likelihood='normal'"
    )
    refusal = "Negative values in data"

    def global_prior(self, shape, variance):
        return {}

    def start(self, variance):
        return {}

    def distribution(self, eta, theta):
        return Poisson(eta.exp())

    def kernel(self, x, eta, theta):
        return x * eta - eta.exp()

    def constant(self, x, theta):
        return -torch.lgamma(x + 1)

    def expected_kernel(self, x, mean, variance, theta):
        return x * mean - (mean + 0.5 * variance).exp()

    def location(self, mean):
        return mean.clamp_min(0.01 * mean.mean().clamp_min(1e-3)).log()

    def pseudo(self, x):
        return (x + 0.5).log()

    def invalid(self, x):
        return [(x < 0, "negative entries")]


class NegativeBinomialCells(PoissonCells):
    """Counts of mean exp(eta) and variance mean + dispersion * mean^2; dispersion ~ Exp(1)."""

    has_noise = needs_counts = True
    log_linear = False
    largest_cell = 1e7  # rounding of lgamma, 3e-8 nats a cell, then exceeds the usual tol of 1e-8
    beyond = (
        "computes with differences of log gamma functions, whose digits are lost there: use "
        "log(X + 1) with likelihood='normal'"
    )

    def global_prior(self, shape, variance):
        return {"dispersion": Exponential(torch.ones(shape))}

    def start(self, variance):
        return {"dispersion": torch.full_like(variance, 0.3)}

    def distribution(self, eta, theta):
        size = 1 / theta["dispersion"]
        return NegativeBinomial(size, logits=eta + theta["dispersion"].log())

    def kernel(self, x, eta, theta):
        logits = eta + theta["dispersion"].log()
        return x * logits - (x + 1 / theta["dispersion"]) * F.softplus(logits)

    def constant(self, x, theta):
        size = 1 / theta["dispersion"]
        return torch.lgamma(x + size) - torch.lgamma(size) - torch.lgamma(x + 1)

    expected_kernel = Likelihood.expected_kernel


LIKELIHOODS: dict[str, Likelihood] = {
    "normal": NormalCells(),
    "student_t": StudentTCells(),
    "bernoulli": BernoulliCells(),
    "poisson": PoissonCells(),
    "negative_binomial": NegativeBinomialCells(),
}
