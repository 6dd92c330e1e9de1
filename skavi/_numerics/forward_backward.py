"""Forward-backward over finitely many states, in log n passes over the rows and not in n.

Inside, rows come last: sums over a few states are then sums of long vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import solve_banded
from torch import Tensor

from skavi._numerics.aligned import aligned

#: Nats between a column's largest and smallest entry up to which sums of products of shares lose
#: nothing: the product of the least two is exp(-600), and exp underflows at -745.
_NARROW = 300.0
#: Stands for shares that underflow: with a row's other entries it adds exp(-390) at most.
_LEAST = 1e-300
#: Rows whose pairs of states are held at once. Not measured: order of magnitude.
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Messages:
    """What the rows before and after tell of each row's step.

    Attributes
    ----------
    steps : Tensor of shape (K, K, n)
        Log potentials of state j of a row after state i of the row before; equal for all i where a
        series begins.
    before, after : Tensor of shape (K, n)
        Log messages, each but for a constant a row: of the rows before, at the state of the row
        before; of the rows after, at the row's own state.
    onward : Tensor of shape (K, n)
        Logs of the sums over a row's own state, at that of the row before.
    """

    steps: Tensor
    before: Tensor
    after: Tensor
    onward: Tensor

    def log_conditionals(self) -> Tensor:
        """Return log p(s_n = j | s_{n-1} = i), shape (n, K, K)."""
        return (self.steps + self.after - self.onward.unsqueeze(1)).movedim(-1, 0)

    def log_states(self) -> Tensor:
        """Return log p(s_n = j), shape (n, K)."""
        joint = _log_sum(self.steps + self.before.unsqueeze(1), 0) + self.after
        return (joint - _log_sum(joint, 0)).mT

    def log_pairs(self) -> Tensor:
        """Return log p(s_{n-1} = i, s_n = j), shape (n, K, K)."""
        joint = self.before.unsqueeze(1) + self.steps + self.after
        return (joint - _log_sum(joint, (0, 1))).movedim(-1, 0)

    def terms(self) -> Tensor:
        """Return what each row adds to the log of the sum over all paths, shape (n,).

        That is the expectation of its step's log potential, plus the entropy of its state given
        the state before.
        """
        own = self.log_states().mT
        joint = self.before + self.onward
        earlier = joint - _log_sum(joint, 0)
        return (earlier.exp() * self.onward).sum(0) - (own.exp() * self.after).sum(0)


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
    steps = steps.movedim(0, -1).contiguous()
    kind = _Shares if _is_narrow(steps.detach()) else _Logs
    levels = [kind.of(steps)]
    while levels[-1].shape[-1] > 1:
        left, right, odd = _paired(levels[-1])
        levels.append(torch.cat([kind.scaled(kind.product(left, right), (0, 1)), odd], -1))
    before = after = kind.of(steps.new_zeros(steps.shape[0], 1))
    for level in reversed(levels[:-1]):
        left, right, odd = _paired(level)
        n, k = left.shape[-1], len(level)
        onward = kind.scaled(kind.along(before[:, :n], left), 0)
        back = kind.scaled(kind.against(right, after[:, :n]), 0)
        own_before = torch.stack([before[:, :n], onward], -1).reshape(k, 2 * n)
        own_after = torch.stack([back, after[:, :n]], -1).reshape(k, 2 * n)
        before = torch.cat([own_before, before[:, n:]], -1)
        after = torch.cat([own_after, after[:, n:]], -1)
    before, after = kind.logs(before), kind.logs(after)
    return Messages(steps, before, after, _log_sum(steps + after, 1))


def _paired(level):
    """Return every first and second of two neighbours, and what is left without one."""
    paired = level.shape[-1] // 2 * 2
    halves = (level[..., first:paired:2].contiguous() for first in (0, 1))
    return *halves, level[..., paired:]


def _is_narrow(steps):
    try:
        return bool((steps.amax(0) - steps.amin(0)).max() <= _NARROW)
    except RuntimeError:  # vmap allows no decision
        return False


def _log_sum(logs, dims):
    """Return logs of sums of exponentials: several times faster than torch's over few numbers."""
    top = logs.detach().amax(dims, keepdim=True)
    return (logs - top).exp().sum(dims, keepdim=True).log().add(top).squeeze(dims)


class _Shares:
    """Matrices and messages as they are, the largest entry of each being 1."""

    @staticmethod
    def of(logs):
        return (logs - logs.detach().amax(tuple(range(logs.dim() - 1)), keepdim=True)).exp()

    @staticmethod
    def logs(shares):
        return shares.clamp_min(_LEAST).log()

    @staticmethod
    def scaled(shares, dims):
        return shares / shares.detach().amax(dims, keepdim=True)

    @staticmethod
    def product(left, right):
        return sum(left[:, i].unsqueeze(1) * right[i] for i in range(len(right)))

    @staticmethod
    def along(before, matrices):
        return (before.unsqueeze(1) * matrices).sum(0)

    @staticmethod
    def against(matrices, after):
        return (matrices * after).sum(1)


class _Logs:
    """Logs of them: for any potentials."""

    @staticmethod
    def of(logs):
        return logs

    @staticmethod
    def logs(logs):
        return logs

    @staticmethod
    def scaled(logs, dims):
        return logs - logs.detach().amax(dims, keepdim=True)

    @staticmethod
    def product(left, right):
        total = left[:, 0].unsqueeze(1) + right[0]
        for i in range(1, len(right)):
            total = torch.logaddexp(total, left[:, i].unsqueeze(1) + right[i])
        return total

    @staticmethod
    def along(before, matrices):
        return _log_sum(before.unsqueeze(1) + matrices, 0)

    @staticmethod
    def against(matrices, after):
        return _log_sum(matrices + after, 1)


def covariance_of_sums(
    conditionals: Tensor, pairs: Tensor, of_steps: Callable[[slice], Tensor]
) -> Tensor:
    """Return the covariance of sums over a path of Q numbers a step, shape (Q, Q).

    With r_n(i) the expected sums from row n on, given state i of the row before, the innovations
    ``number + r_{n+1}(j) - r_n(i)`` of different rows are uncorrelated: their products add up.

    Parameters
    ----------
    conditionals : Tensor of shape (n, K, K)
        Of state j of a row given state i of the row before.
    pairs : Tensor of shape (n, K, K)
        Probabilities of both; times a weight of the row's series, if it has one.
    of_steps : callable
        Return the numbers of steps of a slice of rows, shape (rows, K, K, Q).
    """
    n = len(conditionals)
    parts = [slice(first, first + _ROWS_AT_ONCE) for first in range(0, n, _ROWS_AT_ONCE)]
    own = [torch.einsum("nij,nijq->niq", conditionals[part], of_steps(part)) for part in parts]
    to_come = _expected_sums(conditionals, torch.cat(own))
    later = torch.cat([to_come[1:], torch.zeros_like(to_come[:1])])
    covariance = to_come.new_zeros(to_come.shape[-1], to_come.shape[-1])
    for part in parts:
        news = of_steps(part) + later[part].unsqueeze(1) - to_come[part].unsqueeze(2)
        weighted = (pairs[part].unsqueeze(-1) * news).flatten(0, 2)
        covariance += weighted.mT @ news.flatten(0, 2)
    return covariance


def _expected_sums(conditionals, own):
    """Solve ``r_n = own_n + conditionals_n @ r_{n+1}``, (n, K, Q): a band of a matrix."""
    n, k, _ = conditionals.shape
    moves, width = conditionals.cpu().numpy(), 2 * k - 1
    band = np.zeros((width + 1, n, k))
    band[width] = 1.0
    for i in range(k):
        for j in range(k):
            band[width - (k + j - i), 1:, j] = -moves[:-1, i, j]
    right = own.reshape(n * k, -1).cpu().numpy()
    solved = solve_banded((0, width), band.reshape(width + 1, n * k), right)
    return aligned(solved).to(own).reshape(own.shape)


def log_sum(steps: Tensor) -> Tensor:
    """Return the log of the sum over all paths of each of some chains, (...,): forward's answer.

    Parameters
    ----------
    steps : Tensor of shape (n, ..., K, K)
        As in `messages`.
    """
    while len(steps) > 1:
        paired = len(steps) // 2 * 2
        pairs = steps[0:paired:2].unsqueeze(-1) + steps[1:paired:2].unsqueeze(-3)
        steps = torch.cat([torch.logsumexp(pairs, -2), steps[paired:]])
    return torch.logsumexp(steps[0, ..., 0, :], -1)


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
