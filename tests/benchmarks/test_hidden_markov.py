"""benchmarks/hidden_markov.py: what it compares, on few rows; hmmlearn may be missing."""

import pytest

pytest.importorskip("hmmlearn")

from benchmarks.hidden_markov import measure


def test_states_apart_are_found_by_both_methods():
    """Centres six sds apart: the same held-out log likelihood, and states without an error."""
    figures = measure(300, k=2, n_features=1, apart=6.0)
    assert figures["skavi"]["ari"] == figures["hmmlearn"]["ari"] == 1
    assert figures["skavi"]["held_out"] == pytest.approx(figures["hmmlearn"]["held_out"], abs=0.02)
