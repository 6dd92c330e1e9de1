"""Nodes of the noise: fewer where its factors are narrow."""

import pytest
import torch

from skavi._numerics.quadrature import hermite_rule
from skavi.models._noise_factors import NoiseFactors


@pytest.mark.parametrize(("sd", "n_nodes"), [(0.02, 3), (0.07, 4), (0.15, 5), (0.5, 7)])
def test_narrow_noise_has_fewer_nodes_and_loses_nothing(sd, n_nodes):
    """Against 20 nodes of log(1 + exp(l)), l ~ N(.3, sd^2): derivatives of order 2 n are below 1.

    With one node fewer the rules would miss up to a hundred times as much as is allowed.
    """
    own = NoiseFactors(torch.full((1, 1), 0.3), torch.full((1, 1), sd)).with_enough_nodes()
    assert own.n_nodes == n_nodes

    def mean(rule):
        nodes, weights = (torch.as_tensor(each) for each in rule)
        return float(weights @ torch.nn.functional.softplus(0.3 + sd * nodes))

    off = abs(mean(own.rule()) - mean(hermite_rule(20)))
    assert off < (1e-12 if n_nodes < 7 else 4e-8)  # rounding; `_N_NODES`


def test_the_widest_column_counts_and_noise_that_is_none_has_none():
    both = NoiseFactors(torch.zeros(2, 2), torch.tensor([[1e-3, 1e-3], [0.4, 0.3]]))
    assert both.with_enough_nodes().n_nodes == 7  # 0.5 together
    none = NoiseFactors(torch.zeros(2, 0), torch.zeros(2, 0))
    assert len(none.with_enough_nodes().rule()[1]) == 1
