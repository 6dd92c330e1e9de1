"""What a runner is asked to do and what it hands back; the clock and the learning rates."""

from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

_FIRST, _GROWTH = 1e-3, 1.2  # seconds to the first snapshot, and from one to the next
_FALL, _DECAY_STEPS = 1e-3, 6000


@dataclass(frozen=True)
class Rate:
    """A learning rate, constant or falling a thousandfold over 6,000 steps."""

    start: float
    decays: bool = False

    def at(self, step):
        """Return the rate at a step; `step` may be a traced number."""
        return self.start * self.factor(step)

    def factor(self, step):
        """Return the rate's fraction of its start."""
        return _FALL ** (step / _DECAY_STEPS) if self.decays else 1.0

    def __str__(self):
        return f"{self.start:g} falling" if self.decays else f"{self.start:g}"


@dataclass(frozen=True)
class Task:
    """One run: which model, F-VI or A-VI, on which data, how, and for how long.

    Attributes
    ----------
    model : str
        "linear", "saw", "nonlinear" or "factors".
    amortized : bool
    X : ndarray of shape (n_rows, n_features)
    inputs : ndarray of shape (n_rows, n_inputs)
        What an inference function reads, standardised.
    rate : Rate
    n_draws : int
        Draws a step.
    width : int
        Of both hidden layers of the inference function; 0 asks for a line.
    seconds : float
        Of stepping.
    constants : dict
        The model's numbers.
    start : ndarray of shape (2, n_globals)
        Means and log sds of q(theta) to start from, on the unconstrained scale.
    n_latents : int
        Latents a row.
    """

    model: str
    amortized: bool
    X: np.ndarray
    inputs: np.ndarray
    rate: Rate
    n_draws: int
    width: int
    seconds: float
    constants: dict
    start: np.ndarray
    n_latents: int = 1

    @property
    def cells(self):
        """X as the models read it: a vector where there is one feature."""
        return self.X[:, 0] if self.X.shape[1] == 1 else self.X

    @property
    def latents_shape(self):
        """Shape of z: a vector where there is one feature."""
        return (len(self.X),) if self.X.shape[1] == 1 else (len(self.X), self.n_latents)


@dataclass(frozen=True)
class Factors:
    """q(theta) on the unconstrained scale, shape (n_globals,), and q(z), shape (n_rows, k)."""

    theta_mean: np.ndarray
    theta_sd: np.ndarray
    z_mean: np.ndarray
    z_sd: np.ndarray


@dataclass
class Run:
    """Snapshots of one run.

    Attributes
    ----------
    cold : float
        Seconds of set-up and compilation before stepping began.
    times : list of float
        Seconds of stepping at each snapshot.
    snapshots : list of Factors
    n_steps : int
    warm : list of float
        Times of a second run in the same process, if there was one.
    """

    cold: float = 0.0
    times: list[float] = field(default_factory=list)
    snapshots: list[Factors] = field(default_factory=list)
    n_steps: int = 0
    warm: list[float] = field(default_factory=list)


class Clock:
    """Time stepping, and take a snapshot whenever one is due, with the clock stopped."""

    def __init__(self, seconds):
        self.seconds, self.run, self._due = seconds, Run(), _FIRST
        self._begin = perf_counter()

    def start(self):
        """End set-up, begin stepping."""
        now = perf_counter()
        self.run.cold, self._begin = now - self._begin, now

    def tick(self, read, n_steps=1):
        """Count steps; take a snapshot by `read()` if one is due; say whether the time is up."""
        now = perf_counter()
        elapsed = now - self._begin
        self.run.n_steps += n_steps
        over = elapsed >= self.seconds
        if elapsed >= self._due or over:
            self.run.times.append(elapsed)
            self.run.snapshots.append(read())
            self._due = max(elapsed, self._due) * _GROWTH
            self._begin += perf_counter() - now
        return over
