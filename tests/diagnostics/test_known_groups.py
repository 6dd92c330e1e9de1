"""The score of new rows of known groups, against the density it estimates."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm
from torch.distributions import Normal

from skavi import FactorizedVI
from skavi.diagnostics import score_known_groups
from skavi.models import GroupedModel, LinearModel


class Levels(GroupedModel):
    """Levels of groups, z ~ N(0, 2^2), and rows around them with sd 1."""

    groups = "g"
    n_latents = 1

    def global_prior(self, n_features):
        return {}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 2.0)

    def likelihood(self, z, theta):
        return Normal(z, 1.0)


def test_known_groups_are_predicted_by_their_factors_and_new_ones_by_the_prior():
    X = pd.DataFrame({"g": list("aabbb"), "y": [1.0, 2.0, -1.0, -2.0, 0.0]})
    vi = FactorizedVI(Levels()).fit(X)
    new = pd.DataFrame({"g": list("abc"), "y": [3.0, 0.5, 1.0]})
    precision = np.array([2, 3, 0]) + 0.25
    mean = np.array([3.0, -3.0, 0.0]) / precision
    exact = norm(mean, np.sqrt(1 / precision + 1)).logpdf(new["y"]).mean()
    assert score_known_groups(vi, new) == pytest.approx(exact, abs=5e-3)


def test_a_model_without_groups_is_refused():
    vi = FactorizedVI(LinearModel()).fit([[0.0], [1.0]])
    with pytest.raises(TypeError, match="LinearModel has no groups"):
        score_known_groups(vi, [[0.0]])
