"""Groups: closable by a function of the set of rows, unless their order counts."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.distributions import Bernoulli, Normal, Poisson

from skavi import can_close_gap
from skavi.models import GroupedModel


class Level(GroupedModel):
    """A level for each group, and normal rows around it."""

    groups = "g"
    n_latents = 1

    def global_prior(self, n_features):
        return {"sd": Normal(0.0, 1.0)}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta):
        return Normal(z, torch.exp(theta["sd"]))


class Slope(Level):
    covariates = ("x",)

    def likelihood(self, z, theta, covariates):
        return Normal(z * covariates, 1.0)


class Upper(Level):
    group_covariates = ("x",)

    def local_prior(self, theta, group_covariates):
        return Normal(theta["sd"] * group_covariates, 1.0)


class Rate(Level):
    def likelihood(self, z, theta):
        return Poisson(torch.exp(z))


class Answer(Level):
    def likelihood(self, z, theta):
        return Bernoulli(logits=z + theta["sd"])


class State(Level):
    """Which of two kinds a group is of."""

    def local_prior(self, theta):
        return Bernoulli(0.3)


class Steps(Level):
    """Each row is near the row before it: order within a group counts."""

    def log_likelihood(self, theta, z, X):
        y = self.explained(X)[:, 0]
        before = torch.cat([torch.zeros(1), y[:-1]])
        return Normal(z[:, 0] + 0.5 * before, 1.0).log_prob(y)


class Trend(Level):
    """Rows rise with their number: order within a group counts."""

    def log_likelihood(self, theta, z, X):
        y = self.explained(X)[:, 0]
        return Normal(z[:, 0] * torch.arange(len(y)), 1.0).log_prob(y)


class Sized(Level):
    """The sum of a group's rows has a variance of their number."""

    def log_local(self, theta, z, X):
        total = X.over_units(self.explained(X)[:, 0])
        return self.log_prior(theta, z, X) + Normal(z[:, 0], X.sizes**0.5).log_prob(total)


class Ranked(Level):
    """Each group has a mean by its place among the groups."""

    def local_prior(self, theta, group_covariates):
        return Normal(torch.arange(len(group_covariates))[:, None], 1.0)


@pytest.mark.parametrize("model", [Level, Slope, Upper, Rate, Answer, State, Sized])
def test_sets_of_rows_are_enough_where_order_does_not_count(model):
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(12), rng.integers(1, 5, 12))
    X = pd.DataFrame({"y": rng.poisson(0.5, len(g)) > 0, "g": g.astype(str)}).astype({"y": float})
    if model in (Slope, Upper):
        X["x"] = rng.normal(size=12)[g]
    for table in (X, None):
        verdict = can_close_gap(model(), table, random_state=0)
        assert verdict.closable, verdict.reason
        assert verdict.context == (0, 0)


@pytest.mark.parametrize(
    ("model", "words"),
    [(Steps, "rows change places"), (Trend, "rows change places"), (Ranked, "whole groups")],
)
def test_an_order_is_seen(model, words):
    verdict = can_close_gap(model(), random_state=0)
    assert not verdict.closable
    assert words in verdict.reason
