"""Forward-backward over finitely many states, in log n passes over the rows and not in n."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: Nats between a column's largest and smallest entry, up to which products of exponentials lose
#: nothing: exp underflows at -745, and the largest product of a sum is no smaller than exp(-600).
_NARROW = 600.0


@dataclass(frozen=True)
class Messages:
    """What the rows before and after tell of each row's step.

    Attributes
    ----------
    steps : Tensor of shape (n, K, K)
        Log potentials of state j of a row after state i of the row before; equal for all i where a
        series begins.
    before, after : Tensor of shape (n, K)
        Log messages, each but for a constant a row: of the rows before, at the state of the row
        before; of the rows after, at the row's own state.
    """

    steps: Tensor
    before: Tensor
    after: Tensor

    @property
    def onward(self) -> Tensor:
        """Logs of the sums over a row's own state, at that of the row before, (n, K)."""
        return torch.logsumexp(self.steps + self.after.unsqueeze(-2), -1)

    def log_conditionals(self) -> Tensor:
        """Return log p(s_n = j | s_{n-1} = i), shape (n, K, K)."""
        return self.steps + self.after.unsqueeze(-2) - self.onward.unsqueeze(-1)

    def log_pairs(self) -> Tensor:
        """Return log p(s_{n-1} = i, s_n = j), shape (n, K, K)."""
        joint = self.before.unsqueeze(-1) + self.steps + self.after.unsqueeze(-2)
        return joint - torch.logsumexp(joint.flatten(1), 1)[:, None, None]

    def terms(self) -> Tensor:
        """Return what each row adds to the log of the sum over all paths, shape (n,).

        That is the expectation of its step's log potential, plus the entropy of its state given
        the state before.
        """
        pairs = self.log_pairs().exp()
        return (pairs.sum(-1) * self.onward).sum(-1) - (pairs.sum(-2) * self.after).sum(-1)


def messages(steps: Tensor) -> Messages:
    """Multiply the steps along a binary tree, and pass messages down from its root.

    The same sums as forward and backward recursions, in another order: each level of the tree is
    one operation on all its nodes. Source: Hassan, Sarkka & Garcia-Fernandez (2021), "Temporal
    parallelization of inference in hidden Markov models", with one pass for both directions.

    Parameters
    ----------
    steps : Tensor of shape (n, K, K)
        The first row's potentials must be equal for all states before.
    """
    product = _narrow_product if _is_narrow(steps.detach()) else _product
    levels = [steps]
    while len(levels[-1]) > 1:
        level = levels[-1]
        paired = len(level) // 2 * 2
        products = product(level[0:paired:2], level[1:paired:2])
        levels.append(torch.cat([products, level[paired:]]))
    before = after = steps.new_zeros(1, steps.shape[-1])
    for level in reversed(levels[:-1]):
        paired = len(level) // 2 * 2
        n, k = paired // 2, level.shape[-1]
        onward = torch.logsumexp(before[:n].unsqueeze(-1) + level[0:paired:2], -2)
        back = torch.logsumexp(level[1:paired:2] + after[:n].unsqueeze(-2), -1)
        own_before = torch.stack([before[:n], _scaled(onward, -1)], 1).reshape(paired, k)
        own_after = torch.stack([_scaled(back, -1), after[:n]], 1).reshape(paired, k)
        before = torch.cat([own_before, before[n:]])
        after = torch.cat([own_after, after[n:]])
    return Messages(steps, before, after)


def _is_narrow(steps):
    try:
        return bool((steps.amax(-2) - steps.amin(-2)).max() <= _NARROW)
    except RuntimeError:  # vmap allows no decision
        return False


def _scaled(logs, dims):
    """Subtract the largest entry, so that numbers stay small however long the series."""
    return logs - logs.detach().amax(dims, keepdim=True)


def _narrow_product(left, right):
    """Return logs of products of matrices whose logs are given, by products of exponentials."""
    a = left.detach().amax(-1, keepdim=True)
    b = right.detach().amax(-2, keepdim=True)
    return _scaled(((left - a).exp() @ (right - b).exp()).log() + a + b, (-2, -1))


def _product(left, right):
    """The same for any logs: sums of pairs."""
    total = left[..., :, :1] + right[..., :1, :]
    for k in range(1, left.shape[-1]):
        total = torch.logaddexp(total, left[..., :, k : k + 1] + right[..., k : k + 1, :])
    return _scaled(total, (-2, -1))


def most_probable_path(steps: Tensor) -> Tensor:
    """Return the states of the path of largest potential, shape (n,): Viterbi's algorithm."""
    logs = steps.detach().cpu().numpy()
    best, came_from = logs[0, 0], np.zeros(logs.shape[:2], dtype=np.int64)
    for n, step in enumerate(logs[1:], 1):
        reached = best[:, np.newaxis] + step
        came_from[n] = reached.argmax(0)
        best = reached.max(0)
    path = np.empty(len(logs), dtype=np.int64)
    path[-1] = best.argmax()
    for n in range(len(logs) - 1, 0, -1):
        path[n - 1] = came_from[n, path[n]]
    return torch.as_tensor(path, device=steps.device)
