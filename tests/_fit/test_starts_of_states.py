"""A start where states are clusters of rows: near the optimum that points of the prior miss."""

import numpy as np
import torch

from skavi._data.rows import Rows
from skavi._fit.starts_of_states import start_from_clusters
from skavi.families import Chain, DiagonalNormal
from skavi.models import LinearModel
from skavi.objective import bind
from test_basketball import DRIVE, Drive


def test_rates_far_from_their_priors_are_found():
    """Of the drive: N(0, 1) and N(3, 1) densities of rates that are 0.03 and 0.08."""
    X = torch.tensor(DRIVE["rows"], dtype=torch.float64)
    X[5, 0] = torch.nan
    objective = bind(Drive(), Chain(), DiagonalNormal(), X)
    rows = Rows(X, torch.ones(len(X), dtype=torch.float64))
    centre = objective.space.start(torch.Generator().manual_seed(0))[0].double()
    (u,) = start_from_clusters(objective, rows, centre)
    theta = objective.space.constrain(u)
    exact = [DRIVE["globals"][f"{name}[{i}]"][0] for name in ("phi", "lambda") for i in (1, 2)]
    found = torch.cat([theta["phi"].cumsum(0), theta["lambda"].cumsum(0)])
    assert np.abs(np.log(found.numpy() / exact)).max() < np.log(2)  # clusters are not states


def test_other_latents_have_no_clusters():
    X = torch.zeros(4, 1, dtype=torch.float64)
    objective = bind(LinearModel(), None, DiagonalNormal(), X)
    assert start_from_clusters(objective, Rows(X, torch.ones(4)), torch.zeros(1)) == []
