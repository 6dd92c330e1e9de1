"""Random state: a generator of one's own, so that the process-wide one is never touched."""

import numpy as np
from sklearn.utils import check_random_state


def private_state(random_state: int | np.random.RandomState | None) -> np.random.RandomState:
    """Return the generator that `random_state` stands for; for None a fresh, unseeded one.

    scikit-learn's `check_random_state(None)` is numpy's global generator, and drawing from it
    would change what the caller's own code draws next.
    """
    return np.random.RandomState() if random_state is None else check_random_state(random_state)


def drawn_seed(state: np.random.RandomState) -> int:
    """Draw a seed, for a generator of torch or for another estimator."""
    return int(state.randint(2**31 - 1))
