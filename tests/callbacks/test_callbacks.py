import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.callback import FitCallback, ProgressBar
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skavi import AmortizedVI, FactorizedVI
from skavi.callbacks import EarlyStopping, ElboMonitor
from skavi.callbacks._early_stopping import _Watch
from skavi.inference_functions import MLP
from skavi.models import FactorAnalysis, MixtureModel, RandomEffects
from skavi.noise import ClosedForm, MonteCarlo
from skavi.solvers import LBFGS, Adam

MODEL = FactorAnalysis(n_components=2)


@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    return rng.normal(size=(80, 2)) @ rng.normal(size=(2, 5)) + rng.normal(size=(80, 5))


class Recorder:
    """Keep what the hooks are given; stop after so many iterations."""

    def __init__(self, stop_after=None):
        self.stop_after, self.seen = stop_after, []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, metadata=None, fitted_estimator=None):
        if metadata is not None:
            self.seen.append((metadata, fitted_estimator))
        return len(self.seen) == self.stop_after


ESTIMATORS = {
    "coordinate ascent": FactorizedVI(MODEL, random_state=0),
    "table, LBFGS": FactorizedVI(MODEL, solver=LBFGS(), random_state=0),
    "network, Adam": AmortizedVI(MODEL, MLP((4,)), solver=Adam(0.01), random_state=0),
    "table, Adam": FactorizedVI(MODEL, solver=Adam(), noise=MonteCarlo(4), random_state=0),
}


def held_out_scores(recorder, X):
    return np.array([fitted.score(X) for _, fitted in recorder.seen])


@pytest.mark.parametrize("callback", [EarlyStopping(), ElboMonitor()])
def test_callbacks_follow_the_protocol_of_scikit_learn(callback):
    assert isinstance(callback, FitCallback)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_hooks_get_an_estimator_as_if_fit_had_stopped_there(X, name):
    recorder = Recorder(stop_after=4)
    vi = clone(ESTIMATORS[name]).set_callbacks(recorder).fit(X)
    *_, (third, at_third), (last, at_last) = recorder.seen
    assert (third["iteration"], last["iteration"], vi.n_iter_) == (3, 4, 4)
    np.testing.assert_array_equal(vi.elbo_curve_, [m["elbo"] for m, _ in recorder.seen])
    np.testing.assert_array_equal(at_last.transform(X), vi.transform(X))
    assert np.abs(at_third.transform(X) - vi.transform(X)).max() > 1e-6
    assert vi.stopped_early_ and not vi.converged_


def test_a_fit_stopped_by_a_callback_gives_no_convergence_warning(X):
    vi = (
        FactorizedVI(MODEL, random_state=0).set_callbacks(Recorder(stop_after=2)).fit(X)
    )  # warnings are errors
    assert vi.stopped_early_
    with pytest.warns(ConvergenceWarning):
        vi = FactorizedVI(MODEL, max_iter=2, random_state=0).fit(X)
    assert not vi.stopped_early_


def test_the_stage_rises_with_the_noise_rule_and_a_stop_ends_all_stages():
    data = np.array([[28.0, 15.0], [8.0, 10.0], [-3.0, 16.0], [7.0, 11.0]])
    recorder = Recorder()
    FactorizedVI(RandomEffects(), random_state=0).set_callbacks(recorder).fit(data)
    stages = [metadata["stage"] for metadata, _ in recorder.seen]
    assert stages[0] == 1 and stages[-1] > 1 and np.all(np.diff(stages) >= 0)
    vi = (
        FactorizedVI(RandomEffects(), random_state=0)
        .set_callbacks(Recorder(stop_after=1))
        .fit(data)
    )
    assert vi.n_iter_ == 1


@pytest.fixture(scope="module")
def starts():
    """Return rows on which the best of three starts of a mixture is not the last one."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 2)) + 3 * rng.normal(size=(6, 2))[rng.integers(6, size=60)]
    for seed in range(20):
        vi = FactorizedVI(MixtureModel(6), n_init=3, random_state=seed)
        recorder = Recorder()
        recorded = clone(vi).set_callbacks(recorder).fit(rows)
        metadata = [metadata for metadata, _ in recorder.seen]
        ends = {each["stage"]: each["elbo"] for each in metadata}
        if max(ends.values()) > ends[3] + 1:
            return vi, rows, ends, recorded
    raise AssertionError("the last start was always the best one")


def test_stages_are_counted_over_starts(starts):
    assert list(starts[2]) == [1, 2, 3]


def test_early_stopping_judges_each_start_by_itself(starts):
    """Patience that no start exhausts changes nothing: the best start is kept, not the last."""
    vi, rows, _, plain = starts
    watched = clone(vi).set_callbacks(EarlyStopping(patience=1000)).fit(rows)
    assert not watched.stopped_early_ and watched.converged_
    assert watched.elbo_ == plain.elbo_ and watched.n_iter_ == plain.n_iter_


class Interrupt(Recorder):
    """Raise what Ctrl-C raises in the iteration given, of the stage given."""

    def __init__(self, stage, iteration):
        super().__init__()
        self.at = stage, iteration

    def on_fit_task_end(self, estimator, context, *, metadata=None, fitted_estimator=None):
        if metadata is not None and (metadata["stage"], metadata["iteration"]) == self.at:
            raise KeyboardInterrupt


def test_an_interrupt_in_a_later_start_keeps_the_finished_fits(starts):
    """After two iterations the second start is nats below the first, which had converged.

    What is kept is what one start reaches, to the last bit: the first one draws the same numbers.
    """
    vi, rows, *_ = starts
    first = clone(vi).set_params(n_init=1).fit(rows)
    with pytest.warns(ConvergenceWarning):
        kept = clone(vi).set_callbacks(Interrupt(2, 2)).fit(rows)
    assert kept.elbo_ == first.elbo_ and kept.converged_


@pytest.fixture
def overfitting():
    """Return a fit whose held-out score peaks long before its ELBO does, and both sets of rows."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(60, 1)) @ rng.normal(size=(1, 6)) + rng.normal(size=(60, 6))
    # Started far away, so that the way to the optimum is long.
    far = FactorizedVI(FactorAnalysis(1), max_iter=1, random_state=0).fit(rng.normal(size=(20, 6)))
    function, solver = MLP((64, 64)), Adam(learning_rate=0.1)
    vi = AmortizedVI(
        FactorAnalysis(1), function, solver=solver, init=far, max_iter=150, random_state=0
    )
    return vi, X[:20], X[20:]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_early_stopping_restores_the_best_held_out_iterate(overfitting):
    vi, train, held_out = overfitting
    recorder = Recorder()
    vi.set_callbacks(recorder).fit(train)
    scores = held_out_scores(recorder, held_out)
    best = int(scores.argmax())
    assert 0 < best < len(scores) - 20  # or the test shows nothing
    stopped = vi.set_callbacks(EarlyStopping(held_out, patience=60)).fit(train)
    assert stopped.score(held_out) == scores[best]
    assert stopped.n_iter_ == best + 1 == len(stopped.elbo_curve_)
    assert stopped.stopped_early_ and not stopped.converged_
    assert not hasattr(stopped, "_iterate")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_patience_min_delta_and_every_count_evaluations(overfitting):
    vi, train, held_out = overfitting
    recorder = Recorder()
    vi.set_callbacks(recorder).fit(train)
    scores = held_out_scores(recorder, held_out)
    best = int(scores.argmax())

    def iterations(**options):
        monitor = ElboMonitor()
        vi.set_callbacks(EarlyStopping(held_out, **options), monitor).fit(train)
        return len(monitor.logs[0].elbo)

    assert iterations(patience=5) == np.flatnonzero(_misses(scores) == 5)[0] + 1
    assert iterations(patience=2, every=3) == 3 * (
        np.flatnonzero(_misses(scores[2::3]) == 2)[0] + 1
    )
    # Nothing gains a million nats after the first evaluation.
    assert iterations(patience=4, min_delta=1e6) == 5 < best


def test_a_gain_is_more_than_min_delta_above_the_last_one():
    watch, misses = _Watch(), []
    for value in (0.0, 0.5, 1.05, 1.5, 2.0, 2.1):
        watch.see(value, None, 1.0)
        misses.append(watch.misses)
    assert misses == [0, 1, 0, 1, 2, 0]


def _misses(scores):
    best = np.maximum.accumulate(scores)
    last_gain = np.maximum.accumulate(np.where(scores >= best, np.arange(len(scores)), 0))
    return np.arange(len(scores)) - last_gain


def test_elbos_before_and_after_a_refinement_are_not_compared():
    """By hand: a finer rule's ELBOs are lower, and the best of them is the one put back."""

    class Fit:
        elbo = None

    callback, estimator, told = EarlyStopping(patience=2), Fit(), []
    callback.setup(estimator, None)
    course = [(0, -10.0), (0, -9.0), (1, -20.0), (1, -19.0), (1, -18.0), (1, -18.5)]
    for i, (stage, elbo) in enumerate(course, 1):
        iterate, metadata = Fit(), {"elbo": elbo, "iteration": i, "stage": stage}
        iterate.elbo = elbo
        fitted = {"metadata": metadata, "fitted_estimator": iterate}
        told.append(callback.on_fit_task_end(estimator, None, **fitted))
    callback.on_fit_task_end(estimator, None)
    assert not any(told)
    assert estimator.elbo == -18.0


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_elbo_of_a_restored_iterate_is_evaluated_anew(overfitting):
    vi, train, held_out = overfitting
    vi.set_params(noise=MonteCarlo(2))
    vi.set_callbacks(EarlyStopping(held_out, patience=20))
    vi.fit(train)
    assert vi.stopped_early_
    # In closed form at the same solution: rows' terms less KL(q(theta) | p(theta)).
    vi.noise_ = ClosedForm()
    divergence = vi._fitted_model.objective.global_term(torch.as_tensor(vi._raw_globals))
    exact = vi.score_samples(train).sum() + float(divergence)
    assert abs(vi.elbo_ - exact) < 4 * vi.elbo_se_  # four standard errors of the estimate
    assert abs(vi.elbo_curve_[-1] - exact) > 4 * vi.elbo_se_  # what the solver saw was rougher


def test_early_stopping_leaves_a_converged_fit_alone(X):
    plain = FactorizedVI(MODEL, random_state=0).fit(X)
    watched = FactorizedVI(MODEL, random_state=0).set_callbacks(EarlyStopping()).fit(X)
    assert watched.converged_ and not watched.stopped_early_
    assert watched.elbo_ == plain.elbo_


def test_early_stopping_on_the_training_elbo_stops_where_gains_are_small(X):
    callback = EarlyStopping(patience=1, min_delta=1.0)  # nats
    vi = FactorizedVI(MODEL, random_state=0).set_callbacks(callback).fit(X)
    gains = np.diff(vi.elbo_curve_)
    assert vi.stopped_early_ and gains[-1] <= 1.0 and (gains[:-1] > 1.0).all()


@pytest.mark.parametrize(
    "arguments", [{"patience": 0}, {"every": 1.5}, {"min_delta": -1.0}, {"min_delta": np.nan}]
)
def test_early_stopping_names_the_argument_it_cannot_use(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=rf"EarlyStopping\({name}=.*{name} must be"):
        EarlyStopping(**arguments)


def test_monitor_records_each_fit(X):
    monitor = ElboMonitor()
    vi = FactorizedVI(MODEL, random_state=0).set_callbacks(monitor)
    vi.fit(X[:40])
    vi.fit(X)
    log = monitor.logs[1]
    assert len(monitor.logs) == 2 and len(monitor.logs[0].elbo) > 0
    np.testing.assert_array_equal(log.elbo, vi.elbo_curve_)
    np.testing.assert_array_equal(log.iteration, np.arange(1, vi.n_iter_ + 1))
    assert (np.diff(log.seconds) > 0).all() and log.seconds[0] > 0
    assert log.path == ("FactorizedVI fit 0",)


def grid_search(vi, **options):
    pipeline = make_pipeline(StandardScaler(), vi)
    return GridSearchCV(
        pipeline, {"factorizedvi__model__n_components": [1, 3]}, cv=2, refit=False, **options
    )


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_callbacks_work_inside_a_grid_search(X, n_jobs):
    monitor = ElboMonitor()
    vi = FactorizedVI(MODEL, random_state=0)
    vi.set_callbacks(monitor, EarlyStopping(patience=1, min_delta=1.0))
    grid_search(vi, n_jobs=n_jobs).fit(X)
    logs = monitor.logs
    assert len(logs) == 4
    assert sum("n_components=3" in log.estimator for log in logs) == 2
    splits = {log.path[2] for log in logs}
    assert splits == {f"GridSearchCV candidate-split-evaluation {i}" for i in range(4)}
    for log in logs:  # every fit kept its own count
        assert np.diff(log.elbo)[-1] <= 1.0


def test_callbacks_pickle_with_their_estimator(X):
    monitor = ElboMonitor()
    vi = FactorizedVI(MODEL, random_state=0).set_callbacks(monitor, EarlyStopping()).fit(X)
    again = pickle.loads(pickle.dumps(vi))
    np.testing.assert_array_equal(again.transform(X), vi.transform(X))
    copy, _ = again._skl_callbacks
    again.fit(X)
    assert (len(copy.logs), len(monitor.logs)) == (2, 1)


def test_verbose_shows_one_bar_a_fit(X, capsys):
    vi = FactorizedVI(MODEL, random_state=0, verbose=1).fit(X)
    assert capsys.readouterr().out.count("FactorizedVI - fit") == 1
    assert vi.n_iter_ > 1
    assert not hasattr(vi, "_skl_callbacks")


def test_bars_nest_in_a_grid_search(X, capsys):
    grid_search(FactorizedVI(MODEL, random_state=0)).set_callbacks(
        ProgressBar(max_propagation_depth=None)
    ).fit(X)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("GridSearchCV - fit")
    assert sum("FactorizedVI - fit" in line for line in lines) == 4
    assert not any("iteration" in line for line in lines)


def test_verbose_is_silent_inside_a_grid_search(X, capsys):
    grid_search(FactorizedVI(MODEL, random_state=0, verbose=1)).fit(X)
    assert capsys.readouterr().out == ""


def test_verbose_without_rich_says_what_to_install():
    script = """
import sys
sys.modules["rich"] = None
from skavi import FactorizedVI
try:
    FactorizedVI(verbose=1).fit([[0.0, 1.0], [1.0, 2.0], [2.0, 4.0]])
except ImportError as error:
    print(error)
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "verbose=1 shows a progress bar" in process.stdout, process.stderr
    assert 'pip install "skavi[progress]"' in process.stdout
