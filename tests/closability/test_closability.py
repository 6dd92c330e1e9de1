"""Rows given covariates: functions of (x, c) close the gap, and functions of x alone do not."""

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, Poisson

from skavi import AmortizedVI, amortization_gap, can_close_gap
from skavi.closability._probe import _rows_of
from skavi.inference_functions import Polynomial
from skavi.models import (
    BayesianDecoder,
    ConditionalModel,
    FactorAnalysis,
    LatentVariableModel,
    RandomEffects,
    TopicModel,
)

N = 120


class Given(ConditionalModel):
    """Columns x and c, one latent a row; subclasses say where c comes in."""

    covariates = (1,)
    n_latents = 1

    def global_prior(self, n_features):
        return {"slope": Normal(1.0, 0.5)}

    def local_prior(self, theta, covariates):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta, covariates):
        return Normal(z, 0.5)


class PriorMean(Given):
    def local_prior(self, theta, covariates):
        return Normal(theta["slope"] * covariates, 1.0)


class PriorSpread(Given):
    def local_prior(self, theta, covariates):
        return Normal(0.0, torch.exp(0.5 * theta["slope"] * covariates))


class Line(Given):
    def likelihood(self, z, theta, covariates):
        return Normal(z + theta["slope"] * covariates, 0.5)


class RandomSlope(Given):
    def likelihood(self, z, theta, covariates):
        return Normal(theta["slope"] + z * covariates, 0.5)


class Noise(Given):
    def likelihood(self, z, theta, covariates):
        return Normal(z, torch.exp(theta["slope"] * covariates))


class Rate(Given):
    def likelihood(self, z, theta, covariates):
        return Poisson(torch.exp(z + theta["slope"] * covariates))


class Answer(Given):
    def likelihood(self, z, theta, covariates):
        return Bernoulli(logits=z * theta["slope"] + torch.sin(covariates))


class Outside(LatentVariableModel):
    """A model whose covariates are kept beside X: what is read of a row is x alone."""

    def __init__(self, inside, c):
        self.inside, self.c = inside, c

    def n_latents(self, n_features):
        return self.inside.count_latents(n_features)

    def global_prior(self, n_features):
        return self.inside.global_prior(n_features)

    def log_joint(self, theta, z, X):
        whole = torch.cat([X, self.c[: len(X)].to(X)], 1)
        return self.inside.log_local(theta, z, whole).sum()


class OfFirstColumn(torch.nn.Module):
    """An affine function of x alone."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.affine = torch.nn.Linear(1, 2)

    def forward(self, rows):
        return self.affine(rows[:, :1])


def table(d, counts=False, binary=False, spread=False):
    """Return N rows of d explained columns, and a covariate after them."""
    rng = np.random.default_rng(0)
    x = rng.poisson(3.0, (N, d)) if counts else rng.normal(size=(N, d))
    x = (x > 0).astype(float) if binary else x
    x = np.column_stack([x, rng.uniform(0.5, 1, N)]) if spread else x
    return np.column_stack([x, rng.normal(size=N)]).astype(float)


COUNTS = {"likelihood": "poisson"}
#: name -> (model, its table)
CONDITIONAL = {
    "mean of the prior": (PriorMean(), table(1)),
    "spread of the prior": (PriorSpread(), table(1)),
    "mean of the rows": (Line(), table(1)),
    "slope of the latent": (RandomSlope(), table(1)),
    "noise of the rows": (Noise(), table(1)),
    "rates": (Rate(), table(1, counts=True)),
    "answers": (Answer(), table(1, binary=True)),
    "factors": (FactorAnalysis(2, covariates=[-1]), table(3)),
    "counts": (FactorAnalysis(1, covariates=[-1], **COUNTS), table(3, counts=True)),
    "offsets": (FactorAnalysis(1, offset=[-1], **COUNTS), table(3, counts=True)),
    "effects": (RandomEffects(covariates=[-1]), table(1, spread=True)),
    "topics": (TopicModel(2, covariates=[-1]), table(4, counts=True)),
    "decoder": (BayesianDecoder(1, (3,), covariates=[-1]), table(3)),
}


@pytest.mark.parametrize("name", CONDITIONAL)
def test_functions_of_x_and_c_close_the_gap_and_those_of_x_alone_do_not(name):
    """Kept beside X, covariates make a row's factor depend on where the row stands."""
    model, X = CONDITIONAL[name]
    verdict = can_close_gap(model, X, random_state=0)
    assert verdict.closable
    assert verdict.context == (0, 0)
    rows, inside = _rows_of(model, X)
    width = inside.n_explained(rows)
    alone = can_close_gap(Outside(inside, rows[:, width:]), X[:, :width], random_state=0)
    assert not alone.closable


def test_fits_agree_with_the_verdicts():
    """A line of x in c with known slope 1: E z_n = (x_n - c_n) / 1.25, linear in (x_n, c_n)."""

    class Known(Line):
        def global_prior(self, n_features):
            return {"slope": Normal(1.0, 1e-6)}

    X = table(1)
    inside = AmortizedVI(Known(), Polynomial(1)).fit(X)
    assert abs(amortization_gap(inside, X).total) < 1e-6
    np.testing.assert_allclose(inside.transform(X)[:, 0], (X[:, 0] - X[:, 1]) / 1.25, atol=1e-5)
    blind = AmortizedVI(Known(), OfFirstColumn(), random_state=0).fit(X)
    assert amortization_gap(blind, X).total > 10
