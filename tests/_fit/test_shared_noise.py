"""Globals that share a dimension of noise: found where they never meet, and nowhere else."""

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, HalfNormal, Laplace, Normal, Poisson

from skavi import AmortizedVI, FactorizedVI
from skavi._data.rows import Rows
from skavi._estimators.fitted_estimator import position_on
from skavi._fit.shared_noise import with_shared_noise
from skavi.families import DiagonalNormal, FullNormal
from skavi.inference_functions import Polynomial
from skavi.models import HierarchicalModel
from skavi.noise import GaussHermite
from skavi.objective import bind

RNG = np.random.default_rng(0)


class Written(HierarchicalModel):
    """Numbers "a", one for each of four, and a scale "b"."""

    n_latents = 1

    def global_prior(self, n_features):
        return {"a": Normal(torch.zeros(4), 1.0), "b": HalfNormal(1.0)}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)


class Questions(Written):
    """A question's answer holds its own difficulty, the scale and the person's ability."""

    def likelihood(self, z, theta):
        return Bernoulli(logits=theta["b"] * z - theta["a"])


class InOneNumber(Questions):
    """The same, from which no columns can be read."""

    def log_likelihood(self, theta, z, X):
        return self.likelihood(z, theta).log_prob(X).sum(-1)


class Kinked(Written):
    """|x - z - a_1 - ... - a_4|, whose mixed derivatives are zero almost everywhere."""

    def log_likelihood(self, theta, z, X):
        loc = z + theta["a"].sum()
        return Laplace(loc, theta["b"]).log_prob(X).sum(-1)


class Selected(Written):
    """Each row names by its cells which numbers count: any two may meet in one."""

    n_latents = 0

    def log_likelihood(self, theta, z, X):
        return Poisson((X @ theta["a"] + theta["b"]).exp()).log_prob(torch.ones(len(X)))


ANSWERS = (RNG.random((40, 4)) < RNG.random((40, 1))).astype(float)


SELDOM = np.zeros((1000, 4))  # the rows looked at first hold one number each, the last row all
SELDOM[[0, 15, 30, 45], range(4)], SELDOM[-1] = 1.0, 1.0


def shared_by(model, X, global_family=None):
    X = torch.as_tensor(X)
    objective = bind(model, DiagonalNormal(), global_family or DiagonalNormal(), X)
    return with_shared_noise(objective, Rows(X, torch.ones(len(X)).double())).shared


@pytest.mark.parametrize("model", [Questions(), InOneNumber()], ids=repr)
def test_numbers_that_never_meet_share_a_dimension(model):
    assert shared_by(model, ANSWERS) == (0, 0, 0, 0, 1)


def test_the_elbo_is_that_of_nodes_of_their_own():
    """243 nodes a node of z in place of 9, at the same q."""
    vi = FactorizedVI(Questions(), noise=GaussHermite((6, 3), (0, 0, 0, 0, 1))).fit(ANSWERS)
    here = position_on(vi, ANSWERS)
    with torch.no_grad():
        own = here.problem.with_noise(GaussHermite((6, 3))).elbo_of(here.raw, here.raw_globals)
    assert vi.elbo_ == pytest.approx(float(own), abs=1e-10)


@pytest.mark.parametrize(
    ("model", "X", "family"),
    [
        (Kinked(), RNG.normal(size=(20, 4)), None),
        # No row holds two of the numbers, but a new one may; nor do the few rows looked at first.
        (Selected(), np.eye(4)[RNG.integers(4, size=30)], None),
        (Selected(), SELDOM, None),
        (Questions(), ANSWERS, FullNormal()),
    ],
    ids=["a kink", "rows to come", "one row of many", "a full covariance"],
)
def test_numbers_that_meet_do_not_share(model, X, family):
    shared = shared_by(model, X, family)
    assert shared is None or len(set(shared[:4])) == 4


def test_a_function_is_fitted_and_read_with_the_shared_nodes():
    vi = AmortizedVI(Questions(), Polynomial(1), random_state=0).fit(ANSWERS)
    assert vi.noise_.shared == (0, 0, 0, 0, 1)
    assert vi.score(ANSWERS) == pytest.approx(
        (vi.elbo_ - _global_term(vi)) / len(ANSWERS), abs=1e-9
    )


def _global_term(vi):
    fit = vi._fitted_model
    return float(fit.objective.global_term(torch.as_tensor(fit.raw_globals)))
