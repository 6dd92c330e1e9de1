"""One exact evaluator for everyone: published -ELBO of factors, times to marks, the best rate."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from skavi.families import DiagonalFactors, DiagonalNormal
from skavi.objective import bind

from .task import Factors, Run

MARKS = (1e-2, 1e-3, 1e-6)


class Evaluator:
    """The published -ELBO of any factors, by the problem's own quadrature."""

    def __init__(self, problem, X):
        self.problem, self.X = problem, torch.as_tensor(X)
        family = DiagonalNormal()
        self.objective = bind(problem.model(), family, family, self.X)
        self.weights = torch.ones(len(X), dtype=torch.float64)
        space, k = self.objective.space, self.objective.n_latents
        self.nodes = problem.noise.nodes(space.size, k, 1, None)

    def loss(self, factors: Factors) -> float:
        """Return the problem's -ELBO, infinite where it is no number."""
        tensors = {name: torch.as_tensor(value) for name, value in vars(factors).items()}
        family = self.objective.family
        raw = family.raw(DiagonalFactors(tensors["z_mean"], tensors["z_sd"]))
        globals_ = family.raw(DiagonalFactors(tensors["theta_mean"], tensors["theta_sd"]))
        with torch.no_grad():
            terms = self.objective.row_terms(raw, globals_, self.X, self.nodes)
            elbo = float(self.objective.summed(terms, globals_, self.weights))
        loss = self.problem.loss(elbo, len(self.X))
        return loss if math.isfinite(loss) else math.inf

    def trace(self, run: Run) -> "Trace":
        """Return the losses of a run's snapshots."""
        losses = np.array([self.loss(snapshot) for snapshot in run.snapshots])
        return Trace(run.cold, np.array(run.times), losses, run.n_steps, np.array(run.warm))


@dataclass(frozen=True)
class Trace:
    """Losses against seconds of stepping, after `cold` seconds of set-up and compilation.

    `warm` are the seconds at which a second run in the same process was where the first was.
    """

    cold: float
    times: np.ndarray
    losses: np.ndarray
    n_steps: int
    warm: np.ndarray

    @property
    def best(self) -> float:
        """Lowest loss of any snapshot."""
        return float(self.losses.min(initial=math.inf))

    @property
    def final(self) -> float:
        """Loss of the last snapshot."""
        return float(self.losses[-1]) if len(self.losses) else math.inf

    @property
    def step_ms(self) -> float:
        """Milliseconds a step."""
        return 1e3 * self.times[-1] / self.n_steps if self.n_steps else math.nan

    def seconds_to(self, loss: float, times=None) -> float:
        """Return the seconds of stepping until the loss is first that low, or inf.

        Between two snapshots the excess over the mark's own distance is read off a line: generous
        to rivals, who are looked at every 20% of the time, and idle for skavi, whose iterates are
        all seen.
        """
        times = self.times if times is None else times
        arrived = np.flatnonzero(self.losses[: len(times)] <= loss)
        if not len(arrived):
            return math.inf
        i = arrived[0]
        if i == 0 or not math.isfinite(self.losses[i - 1]) or self.exact_steps:
            return float(times[i])
        before, after = self.losses[i - 1], self.losses[i]
        share = (before - loss) / max(before - after, 1e-300)
        return float(times[i - 1] + share * (times[i] - times[i - 1]))

    @property
    def exact_steps(self) -> bool:
        """Whether every iterate is a snapshot: then nothing happens between two of them."""
        return len(self.times) >= self.n_steps

    def seconds_to_warm(self, loss: float) -> float:
        """Return the same in the second run of the process."""
        return self.seconds_to(loss, self.warm)
