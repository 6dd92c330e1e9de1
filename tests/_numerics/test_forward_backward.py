"""Forward-backward along a tree: against sums over all paths, and the plain recursion."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from skavi._numerics.forward_backward import covariance_of_sums, messages


def random_steps(n, k, scale, seed=0):
    rng = np.random.default_rng(seed)
    steps = scale * rng.normal(size=(n, 1, k)) + rng.normal(size=(1, k, k))
    steps[0] = steps[0, :1]
    return steps


def forward(steps):
    """The forward algorithm: the log of the sum over all paths."""
    message = steps[0, 0]
    for step in steps[1:]:
        message = logsumexp(message[:, None] + step, axis=0)
    return logsumexp(message)


@pytest.mark.parametrize(("n", "k"), [(1, 3), (2, 2), (5, 3), (6, 2)])
def test_all_of_it_is_that_of_the_sum_over_all_paths(n, k):
    steps = random_steps(n, k, 1.0)
    paths = np.array(list(itertools.product(range(k), repeat=n)))
    logs = steps[0, 0, paths[:, 0]]
    for row in range(1, n):
        logs = logs + steps[row, paths[:, row - 1], paths[:, row]]
    chance = np.exp(logs - logsumexp(logs))
    found = messages(torch.as_tensor(steps))
    assert abs(float(found.terms().sum()) - logsumexp(logs)) < 1e-12 * n
    pairs = found.log_pairs().exp().numpy()
    for row in range(n):
        own = np.bincount(paths[:, row], chance, k)
        np.testing.assert_allclose(pairs[row].sum(0), own, atol=1e-13)
        if row:
            joint = np.zeros((k, k))
            np.add.at(joint, (paths[:, row - 1], paths[:, row]), chance)
            np.testing.assert_allclose(pairs[row], joint, atol=1e-13)
            given = np.exp(found.log_conditionals().numpy()[row])
            np.testing.assert_allclose(given, joint / joint.sum(1, keepdims=True), atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("n", [1000, 1023])
def test_long_series_agree_with_the_recursion(n, scale):
    """Also where one row's states are thousands of nats apart."""
    steps = random_steps(n, 4, scale)
    found = messages(torch.as_tensor(steps))
    exact = forward(steps)
    assert abs(float(found.terms().sum()) - exact) < 1e-12 * max(abs(exact), n)


def test_steps_that_cannot_be_taken_are_not_taken():
    """Two states that are never left; the data tell late, and by far, which of them it was."""
    never = -1e12
    move = torch.tensor([[0.0, never], [never, 0.0]], dtype=torch.float64)
    seen = torch.zeros(6, 2, dtype=torch.float64)
    seen[1, 1], seen[4, 0] = -800.0, -5000.0  # row 1 speaks for state 0, row 4 for state 1
    steps = move + seen.unsqueeze(1)
    steps[0] = np.log(0.5)
    found = messages(steps)
    assert abs(float(found.terms().sum()) - (np.log(0.5) - 800.0)) < 1e-9
    np.testing.assert_allclose(found.log_pairs().exp().sum(1)[:, 1], 1.0, atol=1e-12)


def test_its_derivatives_are_the_probabilities():
    """d log sum / d log potential is a probability: to rounding."""
    steps = torch.as_tensor(random_steps(9, 3, 2.0)).requires_grad_(True)
    found = messages(steps)
    (slope,) = torch.autograd.grad(found.terms().sum(), steps)
    torch.testing.assert_close(slope[1:], found.log_pairs().exp()[1:].detach())


def test_the_covariance_of_sums_is_that_over_all_paths():
    """Two numbers a step, of either state: their sums along all 81 paths of four rows."""
    n, k = 4, 3
    steps = random_steps(n, k, 1.0)
    numbers = np.random.default_rng(1).normal(size=(n, k, k, 2))
    numbers[0] = numbers[0, :1]
    paths = np.array(list(itertools.product(range(k), repeat=n)))
    before = np.column_stack([np.zeros(len(paths), int), paths[:, :-1]])
    logs = steps[np.arange(n), before, paths].sum(1)
    sums = numbers[np.arange(n), before, paths].sum(1)
    exact = np.cov(sums.T, aweights=np.exp(logs - logsumexp(logs)), bias=True)
    found = messages(torch.as_tensor(steps))
    covariance = covariance_of_sums(
        found.log_conditionals().exp(),
        found.log_pairs().exp(),
        lambda part: torch.as_tensor(numbers[part]),
    )
    np.testing.assert_allclose(covariance, exact, rtol=1e-12)
