"""Every solver under both estimators: one result over runs, processes, jobs and, nearly, threads.

Bit-equal at one number of threads. Over these, to 1e-9 of the largest number of each kind: sums
over rows do not depend on them (`skavi._numerics.sums`), but products of a processor's BLAS may.
"""

import os
import pickle
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from skavi import AmortizedVI, FactorizedVI
from skavi.inference_functions import MLP, Polynomial
from skavi.models import FactorAnalysis, LinearModel
from skavi.noise import GaussHermite
from skavi.solvers import LBFGS, Adam, CoordinateAscent, Newton

# Enough rows for torch to share sums between threads: it does from 32,768 numbers on, nine nodes
# a row included.
COLUMN = np.random.default_rng(0).normal(size=(12_000, 1)) * 2 + 1
TABLE = COLUMN * [1.0, -0.5, 2.0] + np.random.default_rng(1).normal(size=(12_000, 3))
FEW = COLUMN[:4000]
NODES, ONE = GaussHermite(3), FactorAnalysis(1)

MATRIX = {
    "factorized, coordinate ascent": (FactorizedVI(ONE, solver=CoordinateAscent()), TABLE),
    "factorized, Newton": (FactorizedVI(LinearModel(), noise=NODES, solver=Newton()), FEW),
    "factorized, LBFGS": (FactorizedVI(ONE, solver=LBFGS()), TABLE),
    "factorized, Adam": (FactorizedVI(ONE, solver=Adam(batch_size=11_000)), TABLE),
    "amortized, Newton": (
        AmortizedVI(LinearModel(), Polynomial(2), noise=NODES, solver=Newton()),
        FEW,
    ),
    "amortized, LBFGS": (AmortizedVI(ONE, MLP((4,)), solver=LBFGS()), TABLE),
    "amortized, Adam": (AmortizedVI(ONE, MLP((4,)), solver=Adam(batch_size=11_000)), TABLE),
}
pytestmark = [pytest.mark.slow, pytest.mark.changes_globals]


def results(name, threads=1):
    """Return all numbers of a short fit on so many threads."""
    vi, X = MATRIX[name]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fit = clone(vi).set_params(max_iter=3, tol=1e-2, random_state=0).fit(X)
        latents = fit.posterior(X[:500])
        numbers = [fit.elbo_curve_, fit.elbo_, fit._raw_globals, latents.mean, latents.sd]
        return [np.asarray(value) for value in (*numbers, fit.score(X[:500]))]
    finally:
        torch.set_num_threads(before)


_ELSEWHERE = """
import pickle, sys
import test_determinism_matrix as matrix
found = {n: [matrix.results(n, threads) for threads in (1, 2)] for n in matrix.MATRIX}
sys.stdout.buffer.write(pickle.dumps(found))
"""


@pytest.fixture(scope="module")
def elsewhere():
    """Return the results of another process, on one and on two threads."""
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-W", "ignore", "-c", _ELSEWHERE]
    run = subprocess.run(command, env=environment, check=True, capture_output=True)
    return pickle.loads(run.stdout)


@pytest.fixture(scope="module")
def here():
    """Return the results of this process, likewise."""
    return {name: [results(name, threads) for threads in (1, 2)] for name in MATRIX}


def assert_bit_equal(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", MATRIX)
def test_runs_and_processes_agree_to_the_bit(name, here, elsewhere):
    assert_bit_equal(results(name, 2), here[name][1])
    for others, ours in zip(elsewhere[name], here[name], strict=True):
        assert_bit_equal(others, ours)


def assert_close(some, others, tolerance):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=tolerance * np.abs(one).max())


@pytest.mark.parametrize("name", MATRIX)
def test_threads_agree_to_1e_9(name, here):
    assert_close(*here[name], 1e-9)


def test_jobs_agree_to_the_bit(here):
    together = joblib.Parallel(n_jobs=2)(joblib.delayed(results)(name) for name in MATRIX)
    for name, others in zip(MATRIX, together, strict=True):
        assert_bit_equal(others, here[name][0])
