"""The counter-example with discrete states, and the setting of the authors' own script.

A hundred rows, of which rows 49 and 50 are equal: here halfway between the two states' centres, as
the state changes. Any f of the row alone gives both one factor; F-VI's lean either way.
"""

import numpy as np
import torch
from torch.distributions import Categorical as CategoricalDistribution
from torch.distributions import Normal

from skavi.families import Categorical, DiagonalNormal
from skavi.inference_functions import Polynomial
from skavi.models import LocalLevel, MarkovModel

from .fits import fit
from .report import Table

PLACES = (49, 50)
_N, _LEAVES = 100, 0.1


class Switching(MarkovModel):
    """Two states, left once in ten rows; rows are N(-1, 1) or N(1, 1)."""

    n_latents = 1

    def global_prior(self, n_features):
        return {}

    def initial_prior(self, theta):
        return CategoricalDistribution(torch.full((2,), 0.5))

    def transition(self, z_previous, theta):
        stays = torch.eye(2) * (1 - 2 * _LEAVES) + _LEAVES
        return CategoricalDistribution(stays[z_previous[:, 0].long()])

    def likelihood(self, z, theta):
        return Normal(2.0 * z - 1.0, 1.0)


def data():
    """Return a series of 100 rows, which changes its state between the two equal rows."""
    rng = np.random.default_rng(3)
    states = np.cumsum(rng.random(_N) < _LEAVES) % 2
    states[PLACES[0] - 7 : PLACES[0] + 1], states[PLACES[1] : PLACES[1] + 8] = 0, 1
    X = (2.0 * states - 1 + rng.normal(size=_N))[:, np.newaxis]
    X[list(PLACES)] = 0.0
    return X


def factors_of_equal_rows():
    """Return the table of both rows' means, of states and of a walk, under F-VI and a blind f."""
    X, rows = data(), []
    walk = LocalLevel(level_sd=0.5, noise_sd=1.0, initial_mean=0.0, initial_sd=1.0)
    for name, model, family in (
        ("states", Switching(), Categorical()),
        ("a walk", walk, DiagonalNormal()),
    ):
        fits = {"F-VI": fit(model, X, family=family), "A-VI": fit(model, X, blind())}
        for method, fitted in fits.items():
            pair = fitted.estimator.transform(X)[list(PLACES), -1]
            rows.append([f"{name}, {method}", *map(float, pair), bool(pair[0] == pair[1])])
    title = f"{_N} rows; rows {PLACES[0]} and {PLACES[1]} are equal, their neighbours are not"
    return Table(title, ["latents and method", "mean", "mean'", "equal"], rows)


def blind():
    """Return a function of the row alone."""
    return Polynomial(1, context=(0, 0))


def gaps(widest):
    """Return the table of the gap of a linear f, on the logit's scale, against its window."""
    X, rows = data(), []
    factorized = fit(Switching(), X, family=Categorical())
    for w in range(widest + 1):
        fitted = fit(Switching(), X, Polynomial(1, context=(w, w)))
        rows.append([w, factorized.elbo - fitted.elbo, fitted.seconds])
    return Table("Discrete states: gap of a linear f", ["window", "gap, nats", "seconds"], rows)
