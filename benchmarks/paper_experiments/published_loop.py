"""The paper's own optimisation, rewritten: plain Adam on the loss with constants dropped.

skavi's solvers differ from it on purpose (natural units, a start by regression, a falling learning
rate, a stop rule), so the published iteration counts can be compared only with such a loop. One
theta, one latent and one column a row; draws of theta and of every z_n, float32, no decay.
"""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

WINDOW, STRIDE, WITHIN = 20, 10, 0.01


@dataclass(frozen=True)
class Step:
    """What stays the same from run to run: how a step's loss is drawn.

    Parameters
    ----------
    log_joint : callable
        (theta (n_draws, 1), z (n_draws, n_rows)) -> (n_draws,), constants dropped.
    n_draws, n_iter : int
    """

    log_joint: Callable[[Tensor, Tensor], Tensor]
    n_draws: int
    n_iter: int
    #: Whether factors may have a leading axis of runs that take their steps together.
    batched: ClassVar[bool] = False

    def loss(self, theta_mean, theta_log_sd, mean, log_sd) -> Tensor:
        """Return the loss at fresh draws: (), or one for each of the runs that go together."""
        theta_noise = torch.randn(self.n_draws, 1)
        noise = torch.randn(self.n_draws, len(mean))
        z = torch.addcmul(mean, log_sd.exp(), noise)
        theta = theta_mean + theta_log_sd.exp() * theta_noise
        squares = ((noise**2).sum() + (theta_noise**2).sum()) / self.n_draws
        log_joint = self.log_joint(theta, z).mean()
        return self.log_q(theta_log_sd, log_sd, squares) - log_joint

    @staticmethod
    def log_q(theta_log_sd, log_sd, mean_square) -> Tensor:
        """Return the mean of log q at the draws, without its log(2 pi) / 2 a factor."""
        return -log_sd.sum(-1) - theta_log_sd.sum(-1) - 0.5 * mean_square


class FreeFactors(nn.Module):
    """F-VI: a free mean and log sd a row, started at ``draw(n_rows)`` each."""

    def __init__(self, n_rows, draw):
        super().__init__()
        self.mean, self.log_sd = nn.Parameter(draw(n_rows)), nn.Parameter(draw(n_rows))

    def forward(self):
        return self.mean, self.log_sd


class PolynomialFactors(nn.Module):
    """A-VI: the mean a polynomial of x, one log sd for all rows."""

    def __init__(self, x, degree):
        super().__init__()
        self.powers = torch.stack([x**d for d in range(1, degree + 1)], 1) if degree else None
        self.slope = nn.Linear(degree, 1) if degree else None
        self.level = nn.Parameter(torch.rand(1)) if not degree else None
        self.log_sd = nn.Parameter(torch.rand(1))
        self.n_rows = len(x)

    def forward(self):
        mean = self.level if self.slope is None else self.slope(self.powers)[:, 0]
        return mean.expand(self.n_rows), self.log_sd.expand(self.n_rows)


class TwoNetworks(nn.Module):
    """A-VI: one ReLU network for the mean and one for the log sd."""

    def __init__(self, inputs, width):
        super().__init__()
        self.inputs = inputs
        self.mean, self.log_sd = (
            nn.Sequential(_hidden(inputs.shape[1], width), nn.Linear(width, 1)) for _ in range(2)
        )

    def forward(self):
        return self.mean(self.inputs)[:, 0], self.log_sd(self.inputs)[:, 0]


class TwoHeads(nn.Module):
    """A-VI: one ReLU network with a head for the mean and one for the log sd."""

    def __init__(self, inputs, width):
        super().__init__()
        self.inputs = inputs
        self.network = nn.Sequential(_hidden(inputs.shape[1], width), nn.Linear(width, 2))

    def forward(self):
        return self.network(self.inputs).unbind(1)


def _hidden(n_inputs, width):
    return nn.Sequential(nn.Linear(n_inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())


def run(
    step: Step,
    factors: nn.Module,
    rate: float,
    target: float | np.ndarray = -math.inf,
    watch: Callable[[nn.Parameter, nn.Parameter, torch.optim.Adam], bool] = lambda *_: False,
) -> np.ndarray:
    """Return the loss of every iteration, (n_iter,) or (n_iter, n_runs).

    Draws come from torch's current generator. It ends when every run's windowed mean has been
    within 1% of its target or has left the numbers (NaN), and where `watch`, called after each
    iteration with theta's mean and log sd, returns True.
    """
    runs = factors()[0].shape[:-1]
    theta_mean, theta_log_sd = (nn.Parameter(torch.randn(*runs, 1)) for _ in range(2))
    adam = torch.optim.Adam([*factors.parameters(), theta_mean, theta_log_sd], lr=rate, fused=True)
    losses: list[np.ndarray] = []
    ended = np.zeros(tuple(runs), dtype=bool)
    while len(losses) < step.n_iter and not ended.all():
        adam.zero_grad()
        loss = step.loss(theta_mean, theta_log_sd, *factors())
        loss.sum().backward()
        adam.step()
        losses.append(loss.detach().numpy())
        if len(losses) >= WINDOW and len(losses) % STRIDE == 0:
            level = np.mean(losses[-WINDOW:], 0)
            ended = ended | ~np.isfinite(level) | (level <= (1 + WITHIN) * target)
        if watch(theta_mean, theta_log_sd, adam):
            break
    return np.array(losses, dtype=float)


def iterations_to(losses: np.ndarray, target: float) -> float:
    """Return the iteration at which the windowed mean is first within 1% of the target, or inf."""
    for end in range(WINDOW, len(losses) + 1, STRIDE):
        if losses[end - WINDOW : end].mean() <= (1 + WITHIN) * target:
            return float(end)
    return math.inf


def windowed(losses: np.ndarray, n_points: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Return iterations and windowed means of the loss, evenly spaced on a log axis."""
    ends = np.unique(np.geomspace(min(WINDOW, len(losses)), len(losses), n_points).astype(int))
    return ends, np.array([losses[max(0, end - WINDOW) : end].mean() for end in ends])


@contextmanager
def seeded(seed: int):
    """Let torch draw from this seed inside, and put its state back outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
