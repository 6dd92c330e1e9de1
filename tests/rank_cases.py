"""Fits that one process and several ranks must agree on: `torchrun rank_cases.py FOLDER [NAME...]`.

Each rank fits its own shard of the cases' rows, and writes what came out to FOLDER.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch.distributions import HalfNormal, Normal

from skavi import AmortizedVI, FactorizedVI
from skavi.distributed import shard
from skavi.inference_functions import MLP, Polynomial
from skavi.models import (
    BayesianDecoder,
    FactorAnalysis,
    GroupedModel,
    LinearModel,
    MixedEffects,
    NonlinearModel,
    RandomEffects,
)
from skavi.noise import GaussHermite, MonteCarlo, QuasiMonteCarlo
from skavi.solvers import LBFGS, Adam, CoordinateAscent, Newton


def _wave(n):
    return np.random.default_rng(0).normal(2.0, 2.0, size=(n, 1))


def _plane(n, holes=False):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n, 2)) @ rng.normal(size=(2, 5)) + 0.5 * rng.normal(size=(n, 5))
    if holes:
        X[rng.random(X.shape) < 0.1] = np.nan
        X[: n // 2, 0] = np.random.default_rng(2).normal(size=n // 2)  # none there on rank 0
    return X


def _counts(n):
    return np.random.default_rng(3).poisson(np.exp(_plane(n) / 3)).astype(float)


def _studies(n):
    rng = np.random.default_rng(4)
    se = rng.uniform(0.5, 2.0, size=n)
    return np.column_stack([1.0 + rng.normal(size=n) + se * rng.normal(size=n), se])


def _pupils(n_groups):
    """Scattered rows of groups: response, label (of one to four digits), covariate."""
    rng = np.random.default_rng(6)
    g = rng.permutation(np.repeat(np.arange(n_groups), rng.integers(1, 6, n_groups)))
    x = rng.normal(size=len(g))
    y = 300 + 0.5 * x + rng.normal(size=n_groups)[g] + 0.5 * rng.normal(size=len(g))
    return np.column_stack([y + 20 * (g > n_groups / 2), 7 * g, x])  # ranks' means differ


class Levels(GroupedModel):
    """A level for each group, around a mean whose start is searched for."""

    groups, covariates, n_latents = 1, 2, 1

    def global_prior(self, n_features):
        return {"mean": Normal(0.0, 1000.0), "sd": HalfNormal(100.0)}

    def local_prior(self, theta):
        return Normal(theta["mean"].reshape(1), theta["sd"].reshape(1))

    def likelihood(self, z, theta):
        return Normal(z, 0.7)


def _quick(Estimator, *args, **kwargs):
    return Estimator(*args, random_state=0, **kwargs)


#: Name: (rows, estimator, whether rows have weights).
CASES = {
    "table, Newton": (_wave(230), _quick(FactorizedVI, NonlinearModel()), True),
    "table, equal rows": (
        np.concatenate([_wave(90), _wave(230).round()]),  # none repeat on rank 0
        _quick(FactorizedVI, LinearModel(), noise=GaussHermite(3)),
        True,
    ),
    "table, two globals": (
        _studies(120),
        _quick(FactorizedVI, RandomEffects(centred=False)),
        False,
    ),
    "table, coordinate ascent": (_plane(150), _quick(FactorizedVI), True),
    "table, missing cells": (_plane(150, True), _quick(FactorizedVI, FactorAnalysis(2)), False),
    "table, LBFGS": (
        _counts(60),
        _quick(
            FactorizedVI,
            FactorAnalysis(1, likelihood="poisson"),
            noise=QuasiMonteCarlo(16),
            solver=LBFGS(),
            tol=1e-6,
        ),
        False,
    ),
    "table, steps of counts": (
        _counts(60),
        _quick(FactorizedVI, FactorAnalysis(1, likelihood="poisson"), tol=1e-10),
        False,
    ),
    "table, Adam": (
        _wave(90),
        _quick(FactorizedVI, NonlinearModel(), noise=MonteCarlo(2), solver=Adam(), max_iter=30),
        True,
    ),
    "table, Adam in batches": (
        _wave(90),
        _quick(
            FactorizedVI, LinearModel(), noise=MonteCarlo(2), solver=Adam(batch_size=2), max_iter=40
        ),
        False,
    ),
    "groups, mixed effects": (
        _pupils(60),
        _quick(FactorizedVI, MixedEffects(0, 1, [2], [2])),
        True,
    ),
    "groups, searched starts": (_pupils(40), _quick(FactorizedVI, Levels()), False),
    "groups, represented": (_pupils(2100), _quick(FactorizedVI, Levels(), max_iter=5), False),
    "groups, function": (
        _pupils(60),
        _quick(AmortizedVI, MixedEffects(0, 1, [2], centred=False), Polynomial(1)),
        False,
    ),
    "polynomial, Newton": (_wave(230), _quick(AmortizedVI, NonlinearModel(), Polynomial(2)), True),
    "network, Gauss-Newton": (
        _wave(2100),
        _quick(AmortizedVI, NonlinearModel(), MLP((6,), "tanh"), noise=GaussHermite(5), max_iter=6),
        False,
    ),
    "network, LBFGS": (
        _plane(80),
        _quick(AmortizedVI, FactorAnalysis(1), MLP((4,), "tanh"), solver=LBFGS(), max_iter=8),
        False,
    ),
    # Some seeds' starts are chosen between all but equal ones, by rounding: not this one's.
    "network, holes": (
        _plane(80, True),
        AmortizedVI(
            FactorAnalysis(1), MLP((4,), "tanh"), solver=LBFGS(), max_iter=10, random_state=1
        ),
        False,
    ),
    "network, decoder": (
        _plane(60),
        _quick(
            AmortizedVI,
            BayesianDecoder(1, (4,)),
            MLP((6,)),
            noise=MonteCarlo(1),
            solver=Adam(batch_size=16),
            max_iter=20,
        ),
        False,
    ),
    "network, Adam in batches": (
        _plane(150),
        _quick(
            AmortizedVI,
            FactorAnalysis(2),
            MLP((8,), "tanh"),
            noise=MonteCarlo(1),
            solver=Adam(batch_size=20),
            max_iter=40,
        ),
        True,
    ),
}


def _short(model, solver, function=None, **arguments):
    given = {"solver": solver, "max_iter": 3} | arguments
    if function is None:
        return _quick(FactorizedVI, model, **given)
    return _quick(AmortizedVI, model, function, **given)


#: Fits that stop far from the optimum, where what they tell of it is more than rounding.
SHORT = {
    "short, Newton": (_studies(120), _short(RandomEffects(centred=False), Newton()), True),
    "short, LBFGS": (_studies(120), _short(RandomEffects(centred=False), LBFGS()), True),
    "short, coordinate ascent": (
        _plane(150, True),
        _short(FactorAnalysis(2, "diagonal"), CoordinateAscent()),
        True,
    ),
    "short, Adam": (
        _studies(120),
        _short(RandomEffects(centred=False), Adam(), noise=MonteCarlo(2)),
        True,
    ),
    "short, batches": (
        _studies(120),
        _short(RandomEffects(centred=False), Adam(batch_size=20), noise=MonteCarlo(2)),
        True,
    ),
    "short, polynomial": (_wave(230), _short(NonlinearModel(), Newton(), Polynomial(2)), True),
    "short, network": (
        _wave(230),
        _short(NonlinearModel(), Adam(), MLP((4,), "tanh"), noise=MonteCarlo(2)),
        True,
    ),
}


def weights_of(X, weighted):
    """Return the weights of a case's rows, or None."""
    return np.random.default_rng(5).integers(1, 4, size=len(X)) * 1.0 if weighted else None


def numbers(vi):
    """Return what a fit has found, as lists of numbers."""
    found = {**vi._parameters, "globals": vi._raw_globals, "elbo": vi.elbo_}
    if isinstance(vi.model_, GroupedModel):
        found["groups"] = vi.model_.group_factors_
    return {name: np.asarray(value, dtype=float).tolist() for name, value in found.items()}


def told(vi):
    """Return what a fit says of its course and of how far it has come."""
    names = ("elbo_curve_", "elbo_se_", "suboptimality_", "gradient_norm_", "n_iter_", "converged_")
    return {name: np.asarray(getattr(vi, name), dtype=float).tolist() for name in names}


def uneven(n, size):
    """Return shard sizes that differ: 1 : 2 : 3 ..."""
    shares = np.cumsum(np.arange(size + 1)) / (size * (size + 1) / 2)
    return np.diff((shares * n).astype(int)).tolist()


def main(folder, names):
    """Fit cases on this rank's rows, and write what it has found."""
    torch.set_num_threads(1)
    rank, size, results = os.environ["RANK"], int(os.environ["WORLD_SIZE"]), {}
    for name in names or CASES:
        X, vi, weighted = (CASES | SHORT)[name]
        path, cut = folder / f"{rank}.npy", (uneven(len(X), size), None)
        cut = (None, X[:, 1]) if name.startswith("groups") else cut
        np.save(path, X)
        weights = weights_of(X, weighted)
        own = None if weights is None else shard(weights, *cut)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            vi.fit(shard(path, *cut), sample_weight=own)
        results[name] = numbers(vi) | told(vi)
    (folder / f"rank-{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
