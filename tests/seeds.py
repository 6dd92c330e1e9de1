"""Seeds of tests, and other cases like one another: the first runs in CI, others every night."""

import pytest


def seeds(in_ci, *nightly):
    """Return the values to parametrise a test with."""
    return [in_ci, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in nightly)]
