"""Every test runs on one thread and leaves the process-wide state as it found it."""

import os

# Before torch is imported, so that it also holds in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)

# The same examples each time, and no limit on the time of the first call into torch.
hypothesis.settings.register_profile("skavi", deadline=None, derandomize=True)
hypothesis.settings.load_profile("skavi")


# What no call into skavi may change: how to read it and how to put it back.
PROCESS_STATE = {
    "python's random state": (random.getstate, random.setstate),
    "numpy's random state": (np.random.get_state, np.random.set_state),
    "torch's random state": (torch.get_rng_state, torch.set_rng_state),
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's thread count": (torch.get_num_threads, torch.set_num_threads),
}


@pytest.fixture(autouse=True)
def process_state_unchanged(request):
    """Put back what a test changed, and fail it unless it is marked ``changes_globals``."""
    before = {name: read() for name, (read, _) in PROCESS_STATE.items()}
    overrides = torch._C._get_torch_function_state()
    yield
    # Once, in one of many runs, a worker was left without torch's function modes, and later tests
    # failed by it. torch's own tests put this state back after each test, too.
    torch._C._set_torch_function_state(overrides)
    changed = [
        name for name, (read, _) in PROCESS_STATE.items() if not _equal(before[name], read())
    ]
    for name in changed:
        PROCESS_STATE[name][1](before[name])
    if not request.node.get_closest_marker("changes_globals"):
        assert not changed, f"the test changed {', '.join(changed)}"


def _equal(one: object, other: object) -> bool:
    if isinstance(one, tuple):
        return all(map(_equal, one, other))
    return np.array_equal(one, other)
