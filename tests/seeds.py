"""Seeds of tests: the first runs in CI, the others every night."""

import pytest


def seeds(in_ci, *nightly):
    """Return the values to parametrise a test with."""
    return [in_ci, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in nightly)]
