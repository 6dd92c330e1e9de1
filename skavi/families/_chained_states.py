"""Factors over finitely many states in a chain: q(s) = q(s_1) prod_n q(s_n | s_{n-1})."""

from dataclasses import dataclass

import torch
from torch import Tensor

from skavi._numerics.forward_backward import messages
from skavi.families._categorical import LARGEST_LOGIT, CategoricalFactors


@dataclass(frozen=True)
class ChainedStates(CategoricalFactors):
    """Distributions of rows' states given the state of the row before.

    Attributes
    ----------
    log_conditionals : Tensor of shape (n_rows, n_states, n_states)
        Entry (n, i, j): of state j of row n given state i of row n - 1; equal for all i where a
        series begins. `log_probabilities` are the marginals that follow.

    Examples
    --------
    >>> import torch
    >>> from skavi.families import ChainedStates
    >>> first, stays = torch.full((2, 2), 0.5), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    >>> factors = ChainedStates.of(torch.stack([first, stays]).log(), torch.tensor([[0], [1]]))
    >>> factors.mean, factors.entropy()  # of the second row given the first
    (tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]]), tensor([0.6931, 0.3251]))
    """

    log_conditionals: Tensor

    @classmethod
    def of(cls, log_conditionals: Tensor, atoms: Tensor) -> "ChainedStates":
        """Return the factors with these conditional distributions."""
        return cls(messages(log_conditionals).log_states(), atoms, log_conditionals)

    @classmethod
    def apart(cls, factors: CategoricalFactors) -> "ChainedStates":
        """Return independent factors as a chain."""
        if isinstance(factors, ChainedStates):
            return factors
        logs = factors.log_probabilities
        k = logs.shape[-1]
        return cls(logs, factors.atoms, logs.unsqueeze(1).expand(-1, k, k))

    def entropy(self):
        """Entropy of each row's state given that of the row before, in nats, shape (n_rows,)."""
        own = (self.log_conditionals.exp() * self.log_conditionals).sum(-1)
        return -(self.pairs().sum(-1) * own).sum(-1)

    def pairs(self) -> Tensor:
        """Return probabilities of states i of the row before and j of each row, (n, K, K).

        The row before the first one is none: any distribution of its state serves.
        """
        logs = self.log_probabilities
        before = torch.cat([torch.log_softmax(torch.zeros_like(logs[:1]), -1), logs[:-1]])
        return (before.unsqueeze(-1) + self.log_conditionals).exp()

    # --- raw parameters -------------------------------------------------------------------------

    @staticmethod
    def n_parameters(n_states: int) -> int:
        """Count the numbers that describe the factor of one row."""
        return n_states * (n_states - 1)

    @classmethod
    def of_logits(cls, raw: Tensor, atoms: Tensor) -> "ChainedStates":
        """Read logits (n_rows, K (K - 1)): for each state before, to the first state."""
        k = len(atoms)
        logits = raw.reshape(len(raw), k, k - 1)
        return cls.of(torch.log_softmax(torch.nn.functional.pad(logits, (1, 0)), -1), atoms)

    def raw(self) -> Tensor:
        """Return the logits, shape (n_rows, K (K - 1))."""
        logs = self.log_conditionals
        ratios = (logs[..., 1:] - logs[..., :1]).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        return ratios.flatten(1)
