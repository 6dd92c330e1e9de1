"""benchmarks/mixtures.py: what it compares, on few rows."""

import numpy as np
import pytest

from benchmarks.mixtures import measure


@pytest.mark.slow
def test_clusters_apart_are_found_by_both_methods():
    """Held-out log likelihoods of the same two clusters differ by little, with holes or not."""
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(0, 1, (40, 2)), rng.normal(8, 1, (30, 2))])
    figures = measure(X, np.repeat([0, 1], [40, 30]), 2, "tied")
    assert figures["skavi"]["ari"] == figures["scikit-learn"]["ari"] == 1
    assert figures["skavi"]["held_out"] == pytest.approx(
        figures["scikit-learn"]["held_out"], abs=0.3
    )
    holes = figures["with_holes"]
    assert holes["skavi"] == pytest.approx(figures["skavi"]["held_out"], abs=0.3)
    assert holes["means"] < holes["skavi"]
