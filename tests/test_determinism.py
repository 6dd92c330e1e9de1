"""Same seed, same result: across runs, processes, row orders, subsets and memory layouts."""

import json
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from skavi import AmortizedVI, FactorizedVI
from skavi._numerics.aligned import aligned
from skavi.families import FullNormal
from skavi.inference_functions import MLP, Constant, Polynomial
from skavi.models import FactorAnalysis, LinearModel
from skavi.noise import FixedDraws, GaussHermite, MonteCarlo, QuasiMonteCarlo
from skavi.solvers import LBFGS, Adam, CoordinateAscent, Newton

X = np.random.default_rng(0).normal(size=(25, 3)) @ np.ones((3, 4))
X += 0.3 * np.random.default_rng(1).normal(size=X.shape)
FA = FactorAnalysis(n_components=1)

# One fit for every solver, noise rule, function and family.
FITS = {
    "coordinate-ascent": FactorizedVI(FA, solver=CoordinateAscent()),
    "newton": FactorizedVI(LinearModel(), solver=Newton(), noise=GaussHermite(3)),
    "lbfgs": FactorizedVI(FA, solver=LBFGS(), noise=QuasiMonteCarlo(32), max_iter=50),
    "fixed-draws": AmortizedVI(FA, Polynomial(1), noise=FixedDraws(8), max_iter=50),
    "adam-fresh": FactorizedVI(FA, solver=Adam(), noise=MonteCarlo(2), max_iter=50),
    "adam-batches": AmortizedVI(FA, MLP((8,)), solver=Adam(batch_size=10), max_iter=50),
    "full-normal": FactorizedVI(LinearModel(), family=FullNormal(), global_family=FullNormal()),
    "constant": AmortizedVI(FA, Constant()),
    "default-factorized": FactorizedVI(),
    "default-amortized": AmortizedVI(),
}
FITS = {name: fit.set_params(random_state=0) for name, fit in FITS.items()}
STREAMS = {
    "factorized": FactorizedVI(FA, random_state=0),
    "amortized": AmortizedVI(FA, Polynomial(1), random_state=0),
    "quasi-monte-carlo": FactorizedVI(FA, noise=QuasiMonteCarlo(16), max_iter=20, random_state=0),
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*did not converge:sklearn.exceptions.ConvergenceWarning"
)


def _data(vi):
    return X[:, :1] if isinstance(vi.model, LinearModel) else X


def fingerprints():
    """Return everything a fit gives, to the last bit, for every fit and stream of the lists."""
    fits = {name: _fingerprint(clone(vi).fit(_data(vi))) for name, vi in FITS.items()}
    return fits | {f"{name} stream": streamed(name) for name in STREAMS}


def streamed(name):
    """Return everything that a fit in three parts gives, memory filled anew before each."""
    vi, clutter = clone(STREAMS[name]), []
    for n, part in enumerate(np.array_split(np.concatenate([X, X + 1, X - 1]), 3)):
        clutter += [np.full(1 + n + 7 * i, i) for i in range(30)]
        vi.partial_fit(part)
    return [*_fingerprint(vi), vi._raw_globals.tobytes().hex(), vi._stiffness.tobytes().hex()]


def _fingerprint(vi):
    Z = vi.transform(_data(vi))
    return [float(vi.elbo_).hex(), vi.elbo_curve_.tobytes().hex(), Z.tobytes().hex()]


@pytest.fixture(scope="module")
def fitted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return {name: clone(vi).fit(_data(vi)) for name, vi in FITS.items()}


@pytest.mark.parametrize("name", FITS)
def test_a_second_run_is_bit_equal(name, fitted):
    first = fitted[name]
    clutter = [np.empty(n) for n in (3, 17, 1025)]  # another memory layout
    second = clone(FITS[name]).fit(_data(first).copy())
    assert _fingerprint(second) == _fingerprint(first)
    assert len(clutter) == 3


@pytest.mark.parametrize("name", STREAMS)
def test_streams_are_bit_equal(name):
    """What is remembered, too: torch's default `lstsq` reads memory that it never wrote."""
    assert len({tuple(streamed(name)) for _ in range(6)}) == 1


@pytest.mark.parametrize("name", ["factorized", "amortized"])
def test_how_the_fit_lies_in_memory_does_not_matter(name):
    """Where numpy puts an array is for it to choose, and changes when a fit is loaded."""
    vi = clone(STREAMS[name]).partial_fit(X)
    moved = pickle.loads(pickle.dumps(vi))
    moved._raw_globals, moved._stiffness = map(_unaligned, (moved._raw_globals, moved._stiffness))
    moved._parameters = {name: _unaligned(value) for name, value in moved._parameters.items()}
    assert _fingerprint(moved) == _fingerprint(vi)
    assert _fingerprint(moved.partial_fit(X + 1)) == _fingerprint(vi.partial_fit(X + 1))


def test_numbers_are_taken_into_aligned_memory():
    for n in range(1, 50):
        array = np.arange(2.0 * n).reshape(2, n)
        copied = aligned(_unaligned(array).T)
        assert copied.data_ptr() % 64 == 0
        assert copied.is_contiguous()
        np.testing.assert_array_equal(copied, array.T)


def test_the_seed_matters_where_there_is_chance():
    vi = clone(FITS["adam-fresh"])
    assert vi.fit(X).elbo_ != clone(vi).set_params(random_state=1).fit(X).elbo_


_ELSEWHERE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
import test_determinism
json.dump(test_determinism.fingerprints(), sys.stdout)
"""


def test_other_processes_are_bit_equal(fitted):
    here = {name: _fingerprint(vi) for name, vi in fitted.items()}
    here |= {f"{name} stream": streamed(name) for name in STREAMS}
    for hash_seed in ("1",):
        paths = [os.path.dirname(__file__), *sys.path]
        environment = os.environ | {
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": os.pathsep.join(paths),
        }
        run = subprocess.run(
            [sys.executable, "-c", _ELSEWHERE], env=environment, check=True, capture_output=True
        )
        assert json.loads(run.stdout) == here


@pytest.mark.parametrize("name", FITS)
def test_row_order_and_subsets_do_not_matter(name, fitted):
    vi = fitted[name]
    rows = _data(vi)
    Z, scores = vi.transform(rows), vi.score_samples(rows)
    order = np.random.default_rng(2).permutation(len(rows))
    for index in (order, np.arange(len(rows))[::-1], order[:7], [5]):
        np.testing.assert_allclose(vi.transform(rows[index]), Z[index], rtol=0, atol=1e-9)
        np.testing.assert_allclose(vi.score_samples(rows[index]), scores[index], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", FITS)
def test_equal_rows_get_equal_factors(name, fitted):
    vi = fitted[name]
    twice = np.concatenate([_data(vi)] * 3)
    posterior = vi.posterior(twice)
    for values in (posterior.mean, posterior.sd):
        first, second, third = np.split(values, 3)
        np.testing.assert_array_equal(second, first)
        np.testing.assert_array_equal(third, first)


ROUNDED = np.round(X, 0)  # the same numbers in every kind below


def _read_only(rows):
    rows = rows.copy()
    rows.setflags(write=False)
    return rows


def _unaligned(rows):
    buffer = np.zeros(rows.nbytes + 9, dtype=np.uint8)
    moved = np.ndarray(rows.shape, dtype=rows.dtype, buffer=buffer, offset=9)
    moved[:] = rows
    return moved


LAYOUTS = {
    "fortran": np.asfortranarray,
    "read-only": _read_only,
    "negative-stride": lambda rows: rows[::-1, ::-1].copy()[::-1, ::-1],
    "strided": lambda rows: np.repeat(rows, 2, axis=1)[:, ::2],
    "unaligned": _unaligned,
    "big-endian": lambda rows: rows.astype(">f8"),
    "float32": lambda rows: rows.astype(np.float32),
    "float16": lambda rows: rows.astype(np.float16),
    "integer": lambda rows: rows.astype(np.int16),
    "object": lambda rows: rows.astype(object),
    "list": lambda rows: rows.tolist(),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("estimator", [FactorizedVI, AmortizedVI])
def test_how_x_lies_in_memory_does_not_matter(estimator, layout):
    vi = estimator(FA, random_state=0)
    expected = clone(vi).fit(ROUNDED).transform(ROUNDED)
    rows = layout(ROUNDED)
    Z = clone(vi).fit(rows).transform(rows)
    # float32 in, float32 out: computed in float64 and rounded once.
    np.testing.assert_array_equal(Z, expected.astype(Z.dtype))
    assert Z.dtype == (np.float32 if getattr(rows, "dtype", None) == np.float32 else Z.dtype)


@pytest.mark.parametrize("name", FITS)
def test_inputs_are_not_modified(name, fitted):
    rows = _data(fitted[name]).copy()
    weights = np.linspace(0.5, 1.5, len(rows))
    before = rows.copy(), weights.copy()
    vi = clone(FITS[name]).fit(rows, sample_weight=weights)
    Z = vi.transform(rows)
    kept = Z.copy()
    vi.posterior(rows)
    vi.score(rows)
    vi.inverse_transform(Z)
    np.testing.assert_array_equal(rows, before[0])
    np.testing.assert_array_equal(weights, before[1])
    np.testing.assert_array_equal(Z, kept)


@pytest.mark.parametrize("name", FITS)
def test_results_do_not_share_memory_with_the_fit(name, fitted):
    vi = fitted[name]
    rows = _data(vi)
    expected = vi.transform(rows)
    vi.transform(rows)[:] = np.nan
    posterior = vi.posterior(rows)
    posterior.mean[:] = np.nan
    np.testing.assert_array_equal(vi.transform(rows), expected)
