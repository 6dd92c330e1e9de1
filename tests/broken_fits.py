"""Fits of every solver to break off, for tests of interrupts and checkpoints; and how to run them.

In a module of its own, so that processes can import it.
"""

import warnings

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from skavi import AmortizedVI, FactorizedVI
from skavi.callbacks import Checkpoint
from skavi.inference_functions import MLP, Polynomial
from skavi.models import FactorAnalysis, LinearModel, LocalLevel, NonlinearModel, RandomEffects
from skavi.noise import GaussHermite, MonteCarlo
from skavi.solvers import LBFGS, Adam, Newton

RNG = np.random.default_rng(0)
WIDE = RNG.normal(size=(30, 2)) @ RNG.normal(size=(2, 4)) + RNG.normal(size=(30, 4))
COLUMN = RNG.normal(size=(25, 1)) * 3
SCHOOLS = np.array([[28.0, 15], [8, 10], [-3, 16], [7, 11], [-1, 9], [1, 11], [18, 10], [12, 18]])
NOISY = {"noise": MonteCarlo(2), "max_iter": 60, "random_state": 0}

FITS = {
    "coordinate ascent": (FactorizedVI(FactorAnalysis(2), random_state=0), WIDE),
    "LBFGS": (FactorizedVI(FactorAnalysis(2), solver=LBFGS(), random_state=0), WIDE),
    "Newton, noise refined": (FactorizedVI(RandomEffects(centred=False), random_state=0), SCHOOLS),
    "Newton, other basins": (FactorizedVI(NonlinearModel(), random_state=0), COLUMN),
    "Newton, linear function": (
        AmortizedVI(RandomEffects(centred=False), Polynomial(1), random_state=0),
        SCHOOLS,
    ),
    "Newton, network": (
        AmortizedVI(
            RandomEffects(centred=False),
            MLP((6,), "tanh"),
            noise=GaussHermite(8),
            solver=Newton(),
            random_state=0,
        ),
        SCHOOLS,
    ),
    "Newton, rectified network": (
        AmortizedVI(NonlinearModel(), MLP((6,)), solver=Newton(), random_state=0, max_iter=40),
        COLUMN,
    ),
    "Adam": (FactorizedVI(LinearModel(), solver=Adam(), **NOISY), COLUMN),
    "Adam, table in batches": (
        FactorizedVI(LinearModel(), solver=Adam(batch_size=4), **NOISY),
        COLUMN,
    ),
    "Adam, series in batches": (
        FactorizedVI(LocalLevel(1.0, 1.0), solver=Adam(batch_size=4), **NOISY),
        COLUMN,
    ),
    "Adam, network in batches": (
        AmortizedVI(FactorAnalysis(1), MLP((4,)), solver=Adam(batch_size=7), **NOISY),
        WIDE,
    ),
}


def fitted(name, *callbacks):
    """Return a fit, with callbacks."""
    vi, X = FITS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return clone(vi).set_callbacks(*callbacks).fit(X)


def numbers(vi, X):
    """Return all that a fit is, by name, as arrays."""
    return {
        "curve": vi.elbo_curve_,
        "globals": vi._raw_globals,
        "means": vi.transform(X),
        "rest": np.array(
            [vi.elbo_, vi.elbo_se_, vi.n_iter_, vi.converged_, vi.suboptimality_, vi.gradient_norm_]
        ),
        **vi._parameters,
    }


def assert_bit_equal(some, others):
    """Compare two fits, to the last bit."""
    assert some.keys() == others.keys()
    for name, value in some.items():
        np.testing.assert_array_equal(value, others[name], err_msg=name)


def send_fit(pipe, name, path):
    """Fit in a process of its own and send the numbers, if it lives that long."""
    callbacks = [] if path is None else [Checkpoint(path, every=1)]
    pipe.send("begins")
    pipe.send(numbers(fitted(name, *callbacks), FITS[name][1]))
