"""A fit that was killed goes on from its checkpoint to the same result, to the last bit."""

import errno
import multiprocessing
import os
import sys
import warnings
from datetime import timedelta

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from broken_fits import COLUMN, FITS, WIDE, assert_bit_equal, fitted, numbers, send_fit
from skavi import AmortizedVI, FactorizedVI
from skavi._fit import checkpoint_journal
from skavi._platform.archive import DamagedFileError, read_archive, write_archive
from skavi.callbacks import Checkpoint
from skavi.inference_functions import MLP
from skavi.models import FactorAnalysis, LinearModel
from skavi.noise import MonteCarlo
from skavi.solvers import LBFGS, Adam, State


class Broken(Exception):
    """What ends a fit that a test breaks off."""


class Breaker:
    """Break a fit off at an iteration, and keep which ones it made."""

    def __init__(self, at=None, error=Broken):
        self.at, self.error, self.seen = at, error, []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, metadata=None):
        if metadata is not None:
            self.seen.append(metadata["iteration"])
            if metadata["iteration"] == self.at:
                raise self.error


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.checkpoint"


def break_off(vi, X, path, at=6, every=1):
    with pytest.raises(Broken):
        clone(vi).set_callbacks(Breaker(at), Checkpoint(path, every)).fit(X)


@pytest.mark.parametrize("name", FITS)
def test_a_fit_broken_off_again_and_again_ends_as_an_unbroken_one(name, path):
    X = FITS[name][1]
    whole = fitted(name)
    places = np.unique(np.linspace(2, whole.n_iter_, 5).astype(int))
    for before, at in zip([1, *places], places, strict=False):
        breaker = Breaker(at)
        with pytest.raises(Broken):
            fitted(name, breaker, Checkpoint(path, every=1))
        assert breaker.seen == list(range(before, at + 1))  # went on, and did not start anew
    assert_bit_equal(numbers(fitted(name, Checkpoint(path, every=1)), X), numbers(whole, X))
    assert os.listdir(path.parent) == []


def process(name, path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["broken_fits"])  # children are then forked in no time
    ours, theirs = context.Pipe()
    child = context.Process(target=send_fit, args=(theirs, name, path))
    child.start()
    theirs.close()
    assert ours.recv() == "begins"
    return child, ours


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
@pytest.mark.parametrize("n_kills", [3, pytest.param(100, marks=pytest.mark.nightly)])
def test_sigkill_at_any_moment_loses_nothing(path, n_kills, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server of forks wants it
    rng, kills = np.random.default_rng(n_kills), 0
    names = ["Adam, table in batches", "Newton, noise refined", "LBFGS", "coordinate ascent"]
    names += ["Newton, other basins", "Adam, network in batches"]
    for name in names * n_kills:
        child, pipe = process(name, None)
        whole = pipe.recv()
        child.join()
        result = None
        while result is None:
            child, pipe = process(name, path)
            if kills < n_kills and not pipe.poll(rng.exponential(0.1)):
                child.kill()
                kills += 1
            try:
                result = pipe.recv()
            except EOFError:
                child.join()
                if path.exists():
                    read_archive(path)
        child.join()
        assert_bit_equal(result, whole)
        assert os.listdir(path.parent) == []
        if kills == n_kills:
            return
    raise AssertionError(f"only {kills} kills")


def test_a_fit_on_whatever_device_there_is_goes_on(path):
    vi = FactorizedVI(FactorAnalysis(1), device="auto", solver=LBFGS(), random_state=0)
    break_off(vi, WIDE, path, at=2)
    resumed = clone(vi).set_callbacks(Checkpoint(path)).fit(WIDE)
    assert_bit_equal(numbers(resumed, WIDE), numbers(clone(vi).fit(WIDE), WIDE))


def test_without_a_random_state_the_stored_one_is_taken_over(path):
    vi = FactorizedVI(LinearModel(), noise=MonteCarlo(2), solver=Adam(), max_iter=20)
    break_off(vi, COLUMN, path)
    seed = read_archive(path)[0]["seed"]
    generator = np.random.RandomState(0)
    with pytest.raises(ValueError, match=f"random_state gave the seed {seed}, and now gives"):
        clone(vi).set_params(random_state=generator).set_callbacks(Checkpoint(path)).fit(COLUMN)
    curves = []
    content = path.read_bytes()
    for _ in range(2):
        path.write_bytes(content)
        with pytest.warns(ConvergenceWarning):
            curves.append(clone(vi).set_callbacks(Checkpoint(path)).fit(COLUMN).elbo_curve_)
    np.testing.assert_array_equal(*curves)


VI = FactorizedVI(FactorAnalysis(2), solver=LBFGS(), random_state=0)
WEIGHTS = np.r_[2.0, np.ones(len(WIDE) - 1)]
OTHERS = {
    "X was float64 of shape .30, 4., sha256 .*, now float64 of shape .29, 4.": (VI, WIDE[1:], None),
    "X was .*, now .*": (VI, np.where(WIDE[3, 2] == WIDE, np.nextafter(WIDE, 9.0), WIDE), None),
    "sample_weight was None, now float64 of shape": (VI, WIDE, WEIGHTS),
    "model__n_components was 2, now 1": (clone(VI).set_params(model__n_components=1), WIDE, None),
    "model was skavi.models.*, now None": (clone(VI).set_params(model=None), WIDE, None),
    "solver was skavi.*LBFGS, now skavi.*Adam": (clone(VI).set_params(solver=Adam()), WIDE, None),
    "solver__memory was 30, now 5": (clone(VI).set_params(solver=LBFGS(5)), WIDE, None),
    "tol was None, now 0.0001": (clone(VI).set_params(tol=1e-4), WIDE, None),
    "random_state gave the seed": (clone(VI).set_params(random_state=1), WIDE, None),
    "estimator was FactorizedVI, now AmortizedVI": (
        AmortizedVI(FactorAnalysis(2), solver=LBFGS(), random_state=0),
        WIDE,
        None,
    ),
}


@pytest.mark.parametrize("message", OTHERS)
def test_the_checkpoint_of_another_fit_is_refused_and_kept(path, message):
    break_off(VI, WIDE, path)
    before = path.read_bytes()
    vi, X, weights = OTHERS[message]
    breaker = Breaker()
    with pytest.raises(ValueError, match=f"holds another fit: .*{message}"):
        clone(vi).set_callbacks(breaker, Checkpoint(path)).fit(X, sample_weight=weights)
    assert path.read_bytes() == before and breaker.seen == []


def test_another_version_is_refused(path, monkeypatch):
    break_off(VI, WIDE, path)
    monkeypatch.setattr(checkpoint_journal, "__version__", "99.0")
    with pytest.raises(ValueError, match=r"skavi was .*, now 99\.0"):
        clone(VI).set_callbacks(Checkpoint(path)).fit(WIDE)


class Edited(LinearModel):
    """A model whose code a test changes."""

    slope = 1.0

    def log_local(self, theta, z, X):
        return super().log_local(theta, z, self.slope * X)


def test_a_model_whose_code_has_changed_is_refused(path, monkeypatch):
    vi = FactorizedVI(Edited(), solver=LBFGS(), random_state=0)
    break_off(vi, COLUMN, path, at=2)
    monkeypatch.setattr(Edited, "slope", 1.001)
    with pytest.raises(ValueError, match="the model's log density at the start was"):
        vi.set_callbacks(Checkpoint(path)).fit(COLUMN)


def test_the_start_belongs_to_the_problem(path):
    first, second = (clone(VI).set_params(tol=tol).fit(WIDE) for tol in (1e-2, 1e-3))
    vi = clone(VI).set_params(init=first, tol=1e-9)
    break_off(vi, WIDE, path, at=3)
    with pytest.raises(ValueError, match="start was FactorizedVI with globals"):
        clone(vi).set_params(init=second).set_callbacks(Checkpoint(path)).fit(WIDE)
    whole = clone(vi).fit(WIDE)
    resumed = clone(vi).set_callbacks(Checkpoint(path)).fit(WIDE)
    assert_bit_equal(numbers(resumed, WIDE), numbers(whole, WIDE))


def test_ctrl_c_leaves_the_checkpoint_and_a_complete_fit_does_not(path):
    whole = clone(VI).fit(WIDE)
    with pytest.warns(ConvergenceWarning, match="was interrupted"):
        clone(VI).set_callbacks(Breaker(9, KeyboardInterrupt), Checkpoint(path, 1)).fit(WIDE)
    breaker = Breaker()
    resumed = clone(VI).set_callbacks(breaker, Checkpoint(path, 1)).fit(WIDE)
    assert breaker.seen[0] == 9
    assert_bit_equal(numbers(resumed, WIDE), numbers(whole, WIDE))
    breaker = Breaker()
    resumed.set_callbacks(breaker, Checkpoint(path, 1)).fit(WIDE)
    assert breaker.seen[0] == 1


@pytest.mark.parametrize("fault", ["fsync", "replace", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES], ids=["full", "forbidden"])
def test_a_save_that_fails_is_a_warning_and_keeps_the_last_one(path, monkeypatch, fault, code):
    whole = clone(VI).fit(WIDE)
    break_off(VI, WIDE, path, at=6)
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    class Fault(Breaker):
        def on_fit_task_end(self, estimator, context, *, metadata=None):
            if metadata is not None and metadata["iteration"] == 7:
                patched.setattr(os, fault, fail)
            super().on_fit_task_end(estimator, context, metadata=metadata)

    with monkeypatch.context() as patched, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(Broken):
            clone(VI).set_callbacks(Fault(12), Checkpoint(path, 2)).fit(WIDE)
    messages = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert len(messages) == 1 and os.strerror(code) in messages[0]
    assert "could not be written at iteration 7" in messages[0]
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]
    resumed = clone(VI).set_callbacks(Checkpoint(path)).fit(WIDE)
    assert_bit_equal(numbers(resumed, WIDE), numbers(whole, WIDE))


def test_a_path_that_cannot_be_used_is_said_before_any_work(path):
    path.mkdir()
    for bad, error in [
        (path, IsADirectoryError),
        (path / "missing" / "file", FileNotFoundError),
    ]:
        breaker = Breaker()
        with pytest.raises(error, match="Checkpoint cannot be written"):
            clone(VI).set_callbacks(breaker, Checkpoint(bad)).fit(WIDE)
        assert breaker.seen == []


def test_a_damaged_or_foreign_file_is_refused_and_kept(path):
    break_off(VI, WIDE, path)
    torn = path.read_bytes()[:-100]
    for content in (torn, b"", b"my data, please leave it alone"):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match="damaged, or not a file of skavi's"):
            clone(VI).set_callbacks(Checkpoint(path)).fit(WIDE)
        assert path.read_bytes() == content
    write_archive(path, {"kind": "something else"}, {})
    with pytest.raises(ValueError, match="no checkpoint that this version of skavi reads"):
        clone(VI).set_callbacks(Checkpoint(path)).fit(WIDE)


def test_every_counts_iterations_or_time_or_the_cost_of_a_save():
    assert [Checkpoint("a", 3).is_due(n, 1e9, 0.0) for n in (2, 3)] == [False, True]
    span = Checkpoint("a", timedelta(minutes=1))
    assert [span.is_due(10**6, seconds, 0.0) for seconds in (59.0, 60.0)] == [False, True]
    # At most once a second, and at most a twentieth of the time.
    assert [Checkpoint("a").is_due(1, s, 0.01) for s in (0.9, 1.0)] == [False, True]
    assert [Checkpoint("a").is_due(1, s, 2.0) for s in (39.0, 40.0)] == [False, True]


@pytest.mark.parametrize("every", [0, -1, 1.5, "1", True, timedelta(0)])
def test_checkpoint_names_the_argument_it_cannot_use(every):
    with pytest.raises(ValueError, match=r"Checkpoint\(every=.*every must be"):
        Checkpoint("path", every)
    with pytest.raises(TypeError, match=r"Checkpoint\(path=3\): path must be"):
        Checkpoint(3)


def test_the_file_holds_no_data_and_only_its_owner_reads_it(path):
    marked = WIDE.copy()
    marked[0, 0] = 1.2345678901234567
    break_off(clone(VI), marked, path)
    assert np.float64(marked[0, 0]).tobytes() not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_iteration_copies_no_state_where_nothing_is_saved(monkeypatch):
    """Counted, not timed: copies belong to runs of a solver, however long these are."""
    copies, copied = [], State.copied
    monkeypatch.setattr(State, "copied", lambda state: copies.append(1) or copied(state))

    def count(max_iter):
        copies.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            clone(VI).set_params(max_iter=max_iter).fit(WIDE)
        return len(copies)

    assert count(5) == count(20)


def test_networks_with_modules_of_ones_own_are_told_apart(path):
    torch_state = torch.get_rng_state()
    modules = [torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)]
    torch.set_rng_state(torch_state)
    one, other = (
        AmortizedVI(FactorAnalysis(1), module, solver=LBFGS(), max_iter=30, random_state=0)
        for module in modules
    )
    break_off(one, WIDE, path, at=2)
    with pytest.raises(ValueError, match=r"inference_function was torch\.nn.*Linear"):
        clone(other).set_callbacks(Checkpoint(path)).fit(WIDE)
    with pytest.raises(ValueError, match="inference_function"):
        clone(one).set_params(inference_function=MLP((3,))).set_callbacks(Checkpoint(path)).fit(
            WIDE
        )
