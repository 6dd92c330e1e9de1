"""Random generators that leave numpy's global generator unchanged."""

import numpy as np
from sklearn.utils import check_random_state


def private_state(random_state: int | np.random.RandomState | None) -> np.random.RandomState:
    """Return the generator of `random_state`; for None a new, unseeded one.

    scikit-learn's `check_random_state(None)` is numpy's global generator, and draws from it would
    change the caller's later draws.
    """
    return np.random.RandomState() if random_state is None else check_random_state(random_state)


def drawn_seed(state: np.random.RandomState) -> int:
    """Draw a seed, for a generator of torch or for another estimator."""
    return int(state.randint(2**31 - 1))
