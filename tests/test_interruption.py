"""Ctrl-C at any instant leaves the last complete iterate, to the last bit, or nothing at all."""

import contextlib
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skavi
from broken_fits import COLUMN, FITS, WIDE
from skavi import FactorizedVI
from skavi.models import FactorAnalysis, NonlinearModel
from skavi.solvers import LBFGS

NAMES = [name for name in FITS if name not in {"Newton, network", "Adam, series in batches"}]


class Recorder:
    """Keep the estimator of every iteration."""

    def __init__(self):
        self.seen = []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, metadata=None, fitted_estimator=None):
        if metadata is not None:
            self.seen.append(fitted_estimator)


@pytest.fixture(scope="module", params=NAMES)
def unbroken(request):
    """Return an estimator, its data, and what it was after each iteration of a whole fit."""
    vi, X = FITS[request.param]
    recorder = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        clone(vi).set_callbacks(recorder).fit(X)
    return vi, X, recorder.seen


class Interrupt:
    """A trace function that raises KeyboardInterrupt at the n-th line that skavi runs."""

    def __init__(self, at=None, opcodes=()):
        self.at, self.opcodes, self.count = at, opcodes, 0

    def __call__(self, frame, event, argument):
        name = frame.f_code.co_filename
        if not name.startswith(str(Path(skavi.__file__).parent)):
            return None
        frame.f_trace_opcodes = name.endswith(self.opcodes or ("no file",))
        return self._count

    def _count(self, frame, event, argument):
        if event in {"line", "opcode"}:
            self.count += 1
            if self.count == self.at:
                raise KeyboardInterrupt
        return self._count

    @contextlib.contextmanager
    def armed(self):
        """Trace the body, and nothing after it."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


def interrupted_fit(vi, X, interruption):
    """Fit while `interruption` is armed; None if it raised, with the estimator still unfitted."""
    vi = clone(vi)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with interruption.armed():
                vi.fit(X)
        except KeyboardInterrupt:
            return None
    messages = [str(w.message) for w in caught if w.category is ConvergenceWarning]
    vi.told_ = any("was interrupted" in message for message in messages)
    return vi


def assert_is_whole(vi, X, seen):
    """The estimator is what it was after its last complete iteration, and can be used."""
    expected = seen[vi.n_iter_ - 1]
    np.testing.assert_array_equal(vi.elbo_curve_, expected.elbo_curve_)
    np.testing.assert_array_equal(vi._raw_globals, expected._raw_globals)
    for name, value in expected._parameters.items():
        np.testing.assert_array_equal(vi._parameters[name], value)
    np.testing.assert_array_equal(vi.transform(X), expected.transform(X))
    assert np.isfinite(vi.elbo_) and np.isfinite(vi.score(X))
    assert vi.told_
    if vi.n_iter_ < len(seen):  # otherwise it may have had nothing left to do but tell callbacks
        assert not vi.converged_
    assert vi.stopped_early_ is not vi.converged_


def check_instants(unbroken, n, opcodes=()):
    vi, X, seen = unbroken
    counter = Interrupt(opcodes=opcodes)
    interrupted_fit(vi, X, counter)
    kept = 0
    # Denser towards the end: an amortized fit spends most lines on the factorized one before it.
    for left in ((np.arange(n) + np.random.default_rng(n).random(n)) / n) ** 2:
        fitted = interrupted_fit(vi, X, Interrupt(1 + int((1 - left) * counter.count), opcodes))
        if fitted is not None:
            assert_is_whole(fitted, X, seen)
            kept += 1
    assert kept


def test_an_interrupt_at_any_line_leaves_the_last_whole_iterate(unbroken):
    check_instants(unbroken, 2)


@pytest.mark.nightly
def test_an_interrupt_at_any_instruction_leaves_the_last_whole_iterate(unbroken):
    files = ("_base.py", "_adam.py", "_newton.py", "_lbfgs.py")
    files += ("base.py", "algorithm.py", "noise_refinement.py", "start.py", "local_problems.py")
    files += ("final_elbo.py", "reporting.py", "fitted_attributes.py")
    check_instants(unbroken, 30, files)


class Alarm:
    """A real SIGINT after so many seconds."""

    def __init__(self, seconds):
        self.seconds = seconds

    @contextlib.contextmanager
    def armed(self):
        """Send the signal while the body runs, and not after it."""
        before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, before)


@pytest.mark.nightly
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_sigint_at_random_instants(unbroken):
    vi, X, seen = unbroken
    start = time.perf_counter()
    interrupted_fit(vi, X, Interrupt())
    whole = time.perf_counter() - start
    for seconds in np.random.default_rng(0).uniform(1e-4, whole, size=30):
        fitted = interrupted_fit(vi, X, Alarm(seconds))
        if fitted is not None and fitted.told_:
            assert_is_whole(fitted, X, seen)


class Tired(NonlinearModel):
    """Raise KeyboardInterrupt at some calls of the density."""

    calls, at = 0, frozenset()

    def log_local(self, theta, z, X):
        Tired.calls += 1
        if Tired.calls in Tired.at:
            raise KeyboardInterrupt
        return super().log_local(theta, z, X)


@pytest.fixture
def tired(monkeypatch):
    monkeypatch.setattr(Tired, "calls", 0)
    monkeypatch.setattr(Tired, "at", frozenset())
    return FactorizedVI(Tired(), solver=LBFGS(), random_state=0)


def test_before_the_first_iteration_it_raises_and_leaves_nothing(tired):
    Tired.at = {1}
    with pytest.raises(KeyboardInterrupt):
        tired.fit(COLUMN)
    assert not [name for name in vars(tired) if name.endswith("_")]


def test_a_fit_before_survives(tired):
    tired.fit(COLUMN)
    elbo, means = tired.elbo_, tired.transform(COLUMN)
    Tired.at = {Tired.calls + 1}
    with pytest.raises(KeyboardInterrupt):
        tired.fit(COLUMN[:5, :])
    assert tired.elbo_ == elbo
    np.testing.assert_array_equal(tired.transform(COLUMN), means)


def test_a_second_interrupt_takes_the_solvers_word_for_the_elbo(tired):
    tired.fit(COLUMN)
    last = Tired.calls
    Tired.calls, Tired.at = 0, {last // 2, last // 2 + 1}
    with pytest.warns(ConvergenceWarning, match="was interrupted"):
        tired.fit(COLUMN)
    assert tired.elbo_ == tired.elbo_curve_[-1]
    assert np.isnan(tired.elbo_se_)


class Slow(Recorder):
    """Take so long at the end of a fit that the user loses patience."""

    def on_fit_task_end(self, estimator, context, *, metadata=None):
        if metadata is None:
            raise KeyboardInterrupt


def test_an_interrupt_after_the_last_iteration_keeps_the_fit():
    vi = FactorizedVI(FactorAnalysis(2), random_state=0)
    whole = clone(vi).fit(WIDE)
    with pytest.warns(ConvergenceWarning, match="was interrupted"):
        vi.set_callbacks(Slow()).fit(WIDE)
    np.testing.assert_array_equal(vi.elbo_curve_, whole.elbo_curve_)
    np.testing.assert_array_equal(vi.transform(WIDE), whole.transform(WIDE))


class Broken(Recorder):
    """Fail at the end of a fit."""

    def on_fit_task_end(self, estimator, context, *, metadata=None):
        if metadata is None:
            raise OSError("out of paper")


def test_a_callback_that_fails_at_the_end_takes_no_fit_with_it():
    vi = FactorizedVI(FactorAnalysis(2), random_state=0).fit(WIDE)
    before = dict(vars(vi))
    with pytest.raises(OSError, match="out of paper"):
        vi.set_callbacks(Broken()).fit(WIDE[:10, :3])
    assert {**vars(vi), "_skl_callbacks": 0} == {**before, "_skl_callbacks": 0}


def test_a_fit_goes_on_from_an_interrupted_one(tired):
    whole = clone(tired).fit(COLUMN)
    Tired.calls, Tired.at = 0, {Tired.calls // 2}
    tired.set_params(warm_start=True)
    with pytest.warns(ConvergenceWarning, match=r"n_iter_=\d+, converged_=False"):
        tired.fit(COLUMN)
    tired.fit(COLUMN)
    assert tired.converged_
    assert tired.elbo_ == pytest.approx(whole.elbo_, abs=1e-6)  # tol times rows


def test_a_grid_search_stops_and_a_pipeline_keeps_its_fit(tired):
    pipeline = make_pipeline(StandardScaler(), tired)
    pipeline.fit(COLUMN)
    Tired.calls, Tired.at = 0, {Tired.calls // 2}
    with pytest.warns(ConvergenceWarning, match="was interrupted"):
        pipeline.fit(COLUMN)
    Tired.calls = 0
    search = GridSearchCV(pipeline, {"factorizedvi__tol": [1e-8, 1e-7]}, cv=2)
    with pytest.raises(KeyboardInterrupt):
        search.fit(COLUMN)
