"""The reference problems of `certificate.py`: models, and small data sets drawn from a seed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.distributions import Bernoulli, HalfNormal, Normal, Poisson

from closed_forms import linear_factorized, saw_factorized
from skavi.inference_functions import MLP, Constant, Polynomial
from skavi.models import (
    FactorAnalysis,
    GaussianProcess,
    HierarchicalModel,
    LinearModel,
    LocalLevel,
    NonlinearModel,
    RandomEffects,
    SawTimeSeries,
)
from skavi.noise import ClosedForm, GaussHermite, Noise, QuasiMonteCarlo

SCHOOL_ERRORS = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


@dataclass(frozen=True)
class Problem:
    """A model, how its data are drawn, and the noise rule that counts as exact.

    Attributes
    ----------
    name : str
    draw : callable
        Map a numpy generator to X.
    model : LatentVariableModel
    reference : Noise
    function : InferenceFunction or None
        None for factorized VI.
    local : bool
        Whether the optimum is that of the fit's own basin: a network's best one cannot be known.
    closed_form : callable or None
        Map X to the optimal ELBO.
    """

    name: str
    draw: Callable
    model: HierarchicalModel
    reference: Noise
    function: object = None
    local: bool = False
    closed_form: Callable | None = None


class PoissonCounts(HierarchicalModel):
    """x_n ~ Poisson(exp(level + spread z_n))."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {"level": Normal(0.0, 2.0), "spread": HalfNormal(1.0)}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta):
        return Poisson(torch.exp(theta["level"] + theta["spread"] * z))


class BernoulliItems(HierarchicalModel):
    """x_nd ~ Bernoulli(logit = easiness_d + slope_d z_n): a two-parameter item response model."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        one = torch.ones(n_features)
        return {"easiness": Normal(0 * one, 1.5 * one), "slope": Normal(one, 0.5 * one)}

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    def likelihood(self, z, theta):
        return Bernoulli(logits=theta["easiness"] + theta["slope"] * z)


class TwoLatents(HierarchicalModel):
    """x_n ~ N(shift + z_n1 tanh(z_n2), 0.5^2): two latents whose product is seen."""

    def n_latents(self, n_features):
        return 2

    def global_prior(self, n_features):
        return {"shift": Normal(0.0, 3.0)}

    def local_prior(self, theta):
        return Normal(torch.zeros(2), 1.0)

    def likelihood(self, z, theta):
        return Normal(theta["shift"] + z[:, :1] * torch.tanh(1 + z[:, 1:]), 0.5)


def _linear(rng):
    return 1.155 * rng.normal(size=(200, 1)) + 2.43 * rng.normal(size=(200, 1))


def _nonlinear(rng):
    z = 2 * rng.normal(size=(60, 1))
    return 0.3 + z * np.sin(z) + z + rng.normal(size=z.shape) * np.exp(np.cos(z))


def _saw(rng, n_samples=200):
    x = [0.0]
    for noise in rng.normal(size=n_samples):
        x.append(0.75 * (3.4159 + x[-1]) + noise)
    return np.array(x[1:])[:, None]


def _schools(rng):
    effects = 5 + 6 * rng.normal(size=8)
    return np.column_stack([effects + SCHOOL_ERRORS * rng.normal(size=8), SCHOOL_ERRORS])


def _trials(rng):
    errors = rng.uniform(0.3, 2.0, size=20)
    effects = 1 + 0.8 * rng.normal(size=20)
    return np.column_stack([effects + errors * rng.normal(size=20), errors])


def _factors(rng, n_samples=80, n_features=5, n_latents=2):
    loadings = rng.normal(size=(n_latents, n_features))
    noise = rng.normal(size=(n_samples, n_features)) * rng.uniform(0.5, 1.5, size=n_features)
    return rng.normal(size=(n_samples, n_latents)) @ loadings + noise


def _walk(rng):
    level = np.cumsum(0.5 * rng.normal(size=60))
    return (level + rng.normal(size=60))[:, None]


def _curve(rng):
    time = np.sort(rng.uniform(0, 4, size=20))
    return np.column_stack([time, np.sin(time) + 0.5 * rng.normal(size=20)])


def _events(rng):
    time = np.sort(rng.uniform(0, 4, size=20))
    return np.column_stack([time, rng.poisson(np.exp(np.sin(time)))]).astype(float)


def _counts(rng):
    return rng.poisson(np.exp(1 + 0.7 * rng.normal(size=(60, 1)))).astype(float)


def _items(rng):
    logits = np.array([-0.5, 1.0]) + rng.normal(size=(40, 1))
    return (rng.uniform(size=logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)


def _products(rng):
    z = rng.normal(size=(60, 2))
    return 1 + z[:, :1] * np.tanh(1 + z[:, 1:]) + 0.5 * rng.normal(size=(60, 1))


_EXACT, _FINE = GaussHermite(4), GaussHermite((16, 8))

PROBLEMS = (
    Problem(
        "linear",
        _linear,
        LinearModel(),
        _EXACT,
        closed_form=lambda X: linear_factorized(X, 1.155, 2.43).elbo,
    ),
    Problem("saw", _saw, SawTimeSeries(), _EXACT, closed_form=lambda X: saw_factorized(X).elbo),
    Problem("nonlinear", _nonlinear, NonlinearModel(), GaussHermite((64, 4))),
    Problem("eight schools", _schools, RandomEffects(), GaussHermite((12, 40))),
    Problem(
        "eight schools, centred", _schools, RandomEffects(centred=True), GaussHermite((12, 40))
    ),
    Problem("random effects", _trials, RandomEffects(), GaussHermite((10, 30))),
    Problem("isotropic factors", _factors, FactorAnalysis(2), ClosedForm()),
    Problem("diagonal factors", _factors, FactorAnalysis(2, "diagonal"), ClosedForm()),
    Problem("local level", _walk, LocalLevel(), ClosedForm()),
    Problem("Gaussian process", _curve, GaussianProcess(), QuasiMonteCarlo(128, 99)),
    Problem(
        "Gaussian process, Poisson",
        _events,
        GaussianProcess(likelihood="poisson"),
        QuasiMonteCarlo(1024, 99),
    ),
    Problem("Poisson", _counts, PoissonCounts(), _FINE),
    Problem("Bernoulli items", _items, BernoulliItems(), GaussHermite((12, 5))),
    Problem("two latents", _products, TwoLatents(), GaussHermite((48, 3))),
    Problem("linear, constant", _linear, LinearModel(), _EXACT, Constant()),
    Problem("linear, degree 1", _linear, LinearModel(), _EXACT, Polynomial(1)),
    Problem(
        "nonlinear, degree 2", _nonlinear, NonlinearModel(), GaussHermite((64, 4)), Polynomial(2)
    ),
    Problem("Poisson, degree 2", _counts, PoissonCounts(), _FINE, Polynomial(2)),
    Problem("saw, network", _saw, SawTimeSeries(), _EXACT, MLP((6, 6)), local=True),
    Problem("Poisson, network", _counts, PoissonCounts(), _FINE, MLP((8,), "tanh"), local=True),
    Problem(
        "diagonal factors, network",
        _factors,
        FactorAnalysis(2, "diagonal"),
        ClosedForm(),
        MLP((8,)),
        local=True,
    ),
)
