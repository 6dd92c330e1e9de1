"""Moves of rows' latents, and how a log joint answers: derivatives, or differences over states."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Rows that are moved at once, each with a copy of all rows. Not measured.
_CHUNK = 64


@dataclass(frozen=True)
class RealLatents:
    """Real latents around the centre of their prior.

    Attributes
    ----------
    centre, sd : Tensor of shape (n_rows, n_latents)
    """

    centre: Tensor
    sd: Tensor

    def draw(self, spread: float, generator) -> Tensor:
        """Draw all rows' latents, at most some `spread` prior sds from the centre."""
        return self.moved(self.centre, spread, generator)

    def moved(self, z: Tensor, factor: float, generator) -> Tensor:
        """Move all rows' latents by about `factor` prior sds."""
        return z + factor * self.sd * torch.randn(z.shape, generator=generator, dtype=z.dtype)

    def score(self, log_joint: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """d log p / d z, shape (n_rows, n_latents)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            value = log_joint(z)
            if not value.requires_grad:
                return torch.zeros_like(z)
            (gradient,) = torch.autograd.grad(value, z, allow_unused=True)
        return torch.zeros_like(z) if gradient is None else gradient


@dataclass(frozen=True)
class FiniteLatents:
    """Latents that take finitely many values.

    Attributes
    ----------
    atoms : Tensor of shape (n_states, n_latents)
    n_rows : int
    """

    atoms: Tensor
    n_rows: int

    def draw(self, spread, generator):
        """Draw all rows' states, evenly."""
        return self.atoms[torch.randint(len(self.atoms), (self.n_rows,), generator=generator)]

    def moved(self, z, factor, generator):
        """Give every row the next one of the states, whatever `factor` is."""
        here = (z.unsqueeze(1) == self.atoms).all(-1).to(torch.uint8).argmax(1)
        return self.atoms[(here + 1) % len(self.atoms)]

    def score(self, log_joint, z):
        """Return the change of log p as each row goes to its next state, (n_rows, 1)."""
        there, n = self.moved(z, 1.0, None), torch.arange(self.n_rows)
        one = z.expand(self.n_rows, *z.shape).clone()
        one[n, n] = there
        return (_values(log_joint, one) - log_joint(z)).unsqueeze(-1)


def _values(function, points):
    """Return a function of each point, at once where it works under vmap."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of speed, by torch
        try:
            return torch.func.vmap(function, chunk_size=_CHUNK)(points)
        except RuntimeError:
            return torch.stack([function(point) for point in points])
