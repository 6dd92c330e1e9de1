"""Gauss-Newton on networks: where rectified units turn, it goes on along the kink."""

import numpy as np
import pytest
import torch

from skavi import AmortizedVI
from skavi.inference_functions import MLP
from skavi.models import NonlinearModel
from skavi.solvers import Newton
from skavi.solvers._newton_network import _find_shortest_mean, _gram


@pytest.mark.parametrize(
    ("vectors", "weights"),
    [
        ([[2.0, 0.0]], [1.0]),
        ([[1.0, 0.0], [0.0, 2.0]], [0.8, 0.2]),  # |w, 2 (1 - w)|^2 = 5 w^2 - 8 w + 4
        ([[1.0, 1.0], [1.0, -3.0]], [0.75, 0.25]),  # where the segment meets the axis
        ([[1.0, 0.0], [2.0, 1.0]], [1.0, 0.0]),  # the second leads nowhere shorter
        ([[1.0, 0.0], [-1.0, 0.0], [5.0, 5.0]], [0.5, 0.5, 0.0]),  # at the top of a ridge
        ([[0.0, 0.0], [1.0, 0.0]], [1.0, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [1.0, 0.0]),
        ([[1.0, 0.0], [np.inf, 0.0]], [1.0, 0.0]),
    ],
)
def test_the_shortest_mixture_of_slopes(vectors, weights):
    found = _find_shortest_mean(torch.tensor(vectors, dtype=torch.float64).mT)
    np.testing.assert_allclose(found, weights, atol=1e-12)  # rounding


@pytest.mark.parametrize("mixtures", range(5))
def test_the_shortest_mixture_is_no_longer_than_any_other(mixtures):
    """Its square is at most its product with every vector: the optimality condition."""
    rng = np.random.default_rng(mixtures)
    vectors = torch.tensor(rng.normal(size=(8, 5 + 3 * mixtures)) + 0.3)
    weights = _find_shortest_mean(vectors)
    mean = vectors @ weights
    assert float(weights.min()) >= 0 and float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float((mean @ vectors).min()) >= float(mean @ mean) - 1e-9


def test_strips_make_the_same_product(monkeypatch):
    rows = torch.tensor(np.random.default_rng(0).normal(size=(50, 23)))
    for strip, n_strips in ((64, 8), (4, 3), (5, 100)):
        monkeypatch.setattr("skavi.solvers._newton_network._STRIP", strip)
        monkeypatch.setattr("skavi.solvers._newton_network._STRIPS", n_strips)
        torch.testing.assert_close(_gram(rows), rows.mT @ rows)


@pytest.mark.parametrize(("width", "seed"), [(4, 7), (8, 0), (8, 6)])
def test_rectified_networks_converge_on_their_kinks(width, seed):
    """Damping alone ends these climbs 2e-5, 6e-4 and 3e-4 nats short by its own account."""
    rng = np.random.default_rng(1)
    z = 5 * rng.normal(size=(100, 1))
    X = 2 + z * np.sin(z) + z + np.exp(np.cos(z)) * rng.normal(size=(100, 1))
    vi = AmortizedVI(NonlinearModel(), MLP((width, width)), solver=Newton(), random_state=seed)
    assert vi.fit(X).converged_  # and a ConvergenceWarning would be an error
