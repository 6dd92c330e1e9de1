"""Several ranks find what one process does, and none of them outlives another's death."""

import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline

import skavi
from rank_cases import CASES, SHORT, numbers, told, uneven, weights_of
from skavi import AmortizedVI, FactorizedVI, distributed
from skavi._data.grouped_rows import GroupedRows
from skavi._data.process_ranks import RankGroup, Ranks, joined, shared_by_ranks, stacked_texts
from skavi._estimators.process_rank_checks import _describe, check_joint
from skavi.callbacks import ElboMonitor
from skavi.distributed import DeadRankError, LostRankError, over_ranks, shard, total
from skavi.distributed._launch import Task
from skavi.distributed._shard import owners
from skavi.distributed._worker import work
from skavi.inference_functions import MLP, Polynomial
from skavi.models import FactorAnalysis, LinearModel, LocalLevel, NonlinearModel, TopicModel
from skavi.solvers import Newton

TESTS = Path(__file__).parents[1]
X = np.random.default_rng(0).normal(2.0, 2.0, size=(61, 1))


class EndsOnRankOne(LinearModel):
    """A linear model that ends its process, or raises, at its tenth look at the rows of rank 1."""

    def __init__(self, how="killed"):
        super().__init__()
        self.how, self.looks = how, 0

    def log_local(self, theta, z, X):
        """Count, and end."""
        self.looks += torch.distributed.is_initialized() and torch.distributed.get_rank() == 1
        if self.looks == 10 and self.how == "raises":
            raise ZeroDivisionError("a model's own")
        if self.looks == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().log_local(theta, z, X)


def run_ranks(size, *command, cwd=None):
    """Run a script under torchrun; return the process when it has ended."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    here = TESTS / "distributed"  # scripts import this very module
    paths = os.pathsep.join(map(str, [TESTS.parent, TESTS, here]))
    return subprocess.run(
        [*launcher, f"--nproc-per-node={size}", *command],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


#: Cases whose sums over ranks another case makes as well.
LIKE_OTHERS = {"table, two globals", "table, LBFGS", "network, LBFGS", "network, decoder"}
LIKE_OTHERS |= {"short, LBFGS", "short, Adam", "short, polynomial", "short, network"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "names"),
    [
        (2, [name for name in CASES if name not in LIKE_OTHERS]),
        pytest.param(2, sorted(LIKE_OTHERS), marks=pytest.mark.nightly),
        (3, ["table, missing cells"]),
        pytest.param(
            3, ["table, Newton", "polynomial, Newton", "table, Adam"], marks=pytest.mark.nightly
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_ranks_with_uneven_shards_find_what_one_process_does(size, names, tmp_path):
    """Sums over ranks round differently, and up to 40 steps or sweeps on the way carry that on:
    1e-6 relative is asked for, 3e-8 was the most seen. Ranks agree among themselves to the bit."""
    done = run_ranks(size, TESTS / "rank_cases.py", tmp_path, *names)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(size)]
    assert all(results == ranks[0] for results in ranks) and set(ranks[0]) == set(names)
    for name in names:
        rows, vi, weighted = (CASES | SHORT)[name]
        one = numbers(clone(vi).fit(rows, sample_weight=weights_of(rows, weighted)))
        assert set(one) <= set(ranks[0][name])
        for key, value in one.items():
            scale = np.abs(value).max()
            assert_allclose(ranks[0][name][key], value, rtol=1e-6, atol=1e-6 * scale, err_msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_ranks_tell_of_their_fit_what_one_process_does(tmp_path):
    """Curves, errors, gradients and suboptimalities, after a few steps that rounding hardly moves.

    Ranks agree to the bit; with one process to 1e-6, as above, and where a finer rule of noise says
    what is left to 1e-4, for it says so to a hundredth of tol.
    """
    done = run_ranks(2, TESTS / "rank_cases.py", tmp_path, *SHORT)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    for name, (rows, vi, weighted) in SHORT.items():
        one = told(clone(vi).fit(rows, sample_weight=weights_of(rows, weighted)))
        assert not one["converged_"]
        for key, value in one.items():
            rtol = 1e-4 if key == "suboptimality_" else 1e-6
            assert_allclose(
                ranks[0][name][key], value, rtol=rtol, atol=1e-9, err_msg=f"{name} {key}"
            )


class Twice(RankGroup):
    """Two ranks with equal rows."""

    def gather(self, rows):
        return torch.cat([rows, rows])

    def largest(self, value):
        return value + 1  # the other rank's texts are longer


def test_texts_and_groups_of_ranks_follow_each_other():
    with joined(Twice()):
        assert stacked_texts(["é", "abc", ""]) == ["é", "abc", ""] * 2
    table = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    rows = GroupedRows.by_code(table, table[:, 0], torch.tensor([7, 5, 7, 9]))
    both = rows.gathered(Twice().gather)
    assert both.codes.tolist() == [7, 5, 9] * 2
    assert both.over_units(both.table)[:, 0].tolist() == [4.0, 2.0, 4.0] * 2
    assert both.over_units(both.weights).tolist() == [4.0, 2.0, 4.0] * 2


def test_whole_groups_go_to_ranks_of_like_size():
    labels = np.array(list("babacdddde"))
    rank = owners(labels, None, 2, 10)
    assert rank.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert shard(np.arange(10), groups=labels).tolist() == list(range(10))  # a single process
    with pytest.raises(ValueError, match="leave one of 3 ranks without any: take fewer ranks"):
        owners(labels[:4], None, 3, 4)
    with pytest.raises(ValueError, match="give one of them"):
        shard(np.arange(10), [10], labels)
    with pytest.raises(ValueError, match=r"groups has shape \(9,\), but X has 10 rows"):
        shard(np.arange(10), groups=labels[1:])


@pytest.mark.slow
def test_a_mixed_model_is_fitted_by_workers_with_whole_groups():
    rows, vi, _ = CASES["groups, mixed effects"]
    with pytest.raises(ValueError, match=r"'112', .* of column 'x1' are on several ranks"):
        distributed.fit(clone(vi), rows, n_workers=2)
    there = distributed.fit(clone(vi), rows, n_workers=2, groups=rows[:, 1])
    here = clone(vi).fit(rows)
    assert there.elbo_ == pytest.approx(here.elbo_, rel=1e-9)
    asked = np.array([[np.nan, 7.0, 0.5], [np.nan, -1.0, 0.5]])  # a known group and a new one
    assert_allclose(there.impute(asked), here.impute(asked), rtol=1e-6)


def test_shares_of_uneven_shards_add_up():
    assert uneven(61, 3) == [10, 20, 31] and sum(uneven(7, 2)) == 7


@pytest.mark.slow
def test_fit_returns_an_ordinary_estimator_and_its_warnings(tmp_path):
    frame = pd.DataFrame(X, columns=["x"])
    weights = np.arange(1.0, 62.0)
    vi = FactorizedVI(NonlinearModel(), max_iter=2, random_state=0)
    with pytest.warns(ConvergenceWarning, match="did not converge in n_iter_=2"):
        here = clone(vi).fit(frame, sample_weight=weights)
    with pytest.warns(ConvergenceWarning, match="did not converge in n_iter_=2"):
        there = distributed.fit(vi, frame, n_workers=2, sample_weight=weights, sizes=[50, 11])
    assert there is vi and not [name for name in vars(vi) if name.startswith("_skl")]
    assert set(vars(there)) == set(vars(here))
    assert there.elbo_ == pytest.approx(here.elbo_, rel=1e-10)
    assert_allclose(there.elbo_curve_, here.elbo_curve_, rtol=1e-10)
    assert list(there.feature_names_in_) == ["x"]
    # Sums over ranks round differently, and steps carry that on: 2e-8 was the most seen.
    assert_allclose(there.transform(frame), here.transform(frame), atol=1e-7)
    copied = pickle.loads(pickle.dumps(there))
    assert_array_equal(copied.transform(frame), there.transform(frame))


@pytest.mark.slow
def test_a_dead_worker_ends_the_others_and_is_named(tmp_path):
    path = tmp_path / "X.npy"
    np.save(path, X)
    before, begin = path.read_bytes(), time.monotonic()
    vi = FactorizedVI(LinearModel(), max_iter=20).fit(X)
    elbo = vi.elbo_
    vi.set_params(model=EndsOnRankOne())
    with pytest.raises(DeadRankError, match=r"Worker 1 of 2 \(rows 31 to 60.*killed by SIGKILL"):
        distributed.fit(vi, path, n_workers=2)
    assert time.monotonic() - begin < 60  # of these all but a few are imports
    assert vi.elbo_ == elbo and path.read_bytes() == before


@pytest.mark.slow
def test_a_workers_exception_comes_home_as_itself():
    vi = FactorizedVI(EndsOnRankOne("raises"))
    with pytest.raises(ZeroDivisionError) as caught:
        distributed.fit(vi, X, n_workers=2)
    assert str(caught.value) == "a model's own"
    notes = "\n".join(caught.value.__notes__)
    assert "Raised in worker 1 of 2 (rows 31 to 60 of X)" in notes
    assert "test_distributed.py" in notes and "log_local" in notes  # where it was raised
    assert not hasattr(vi, "elbo_")


@pytest.mark.slow
def test_under_torchrun_a_dead_rank_ends_the_others(tmp_path):
    script = tmp_path / "fit.py"
    script.write_text(
        "import numpy as np\n"
        "from test_distributed import EndsOnRankOne, X\n"
        "from skavi import FactorizedVI\n"
        "from skavi.distributed import shard\n"
        "FactorizedVI(EndsOnRankOne()).fit(shard(X))\n"
    )
    begin = time.monotonic()
    done = run_ranks(2, script)
    assert time.monotonic() - begin < 60
    assert done.returncode != 0
    assert "LostRankError: Rank 0 of 2 lost touch" in done.stderr or "SIGTERM" in done.stderr
    assert "SIGKILL" in done.stderr  # torchrun's own report


@pytest.mark.slow
def test_the_script_on_the_page_runs_under_torchrun(tmp_path):
    """What rank 0 saves is the fit of one process."""
    page = (TESTS.parent / "docs" / "howto" / "machines.rst").read_text()
    block = page.partition("on every rank::\n")[2].partition("\n.. code-block")[0]
    script, rows = tmp_path / "fit.py", CASES["table, coordinate ascent"][0]
    script.write_text(textwrap.dedent(block))
    np.save(tmp_path / "X.npy", rows)
    done = run_ranks(2, script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one = AmortizedVI(FactorAnalysis(2), Polynomial(), random_state=0).fit(rows)
    saved = skavi.load(tmp_path / "fit.skavi")
    assert saved.elbo_ == pytest.approx(one.elbo_, rel=1e-6)
    assert_allclose(saved.transform(rows), one.transform(rows), atol=1e-6)


@pytest.mark.slow
def test_fits_that_begin_with_a_few_rows_end_in_one_of_several_mirrored_optima():
    """Of 5,000 rows of counts so many are equal that ranks, which merge their own, hold more.

    Where the count of distinct rows decided on how to begin, ranks found loadings of other signs.
    """
    rng = np.random.default_rng(0)
    eta = rng.normal(size=(5000, 2)) @ rng.normal(size=(2, 6)) + rng.normal(size=6)
    rows = rng.negative_binomial(2, 1 / (1 + np.exp(eta) / 2)) * 1.0
    vi = FactorizedVI(FactorAnalysis(2, likelihood="negative_binomial"), random_state=0)
    one = clone(vi).fit(rows)
    there = distributed.fit(vi, rows, n_workers=2, sizes=[3200, 1800])
    assert one.converged_ and there.elbo_ == pytest.approx(one.elbo_, abs=1e-4)
    for name, mean in one.global_posterior_.mean.items():
        assert_allclose(there.global_posterior_.mean[name], mean, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads threads from Linux's /proc")
def test_a_fit_leaves_no_thread_of_the_group(tmp_path):
    """Threads that outlive the interpreter abort the process now and then: here, none is left."""
    script = tmp_path / "fit.py"
    script.write_text(
        "import atexit, os\n"
        "from pathlib import Path\n"
        "from test_distributed import X\n"
        "from skavi import AmortizedVI\n"
        "from skavi.distributed import shard\n"
        "from skavi.inference_functions import Polynomial\n"
        "from skavi.models import FactorAnalysis\n"
        "def note(when):\n"
        "    threads = [p.read_text() for p in Path('/proc/self/task').glob('*/comm')]\n"
        "    Path(f'{when}-{os.environ[\"RANK\"]}').write_text(''.join(threads))\n"
        "atexit.register(note, 'after')\n"
        "AmortizedVI(FactorAnalysis(1), Polynomial()).fit(shard(X))\n"
        "note('before')\n"
    )
    done = run_ranks(2, script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert "gloo" in (tmp_path / f"before-{rank}").read_text()
        assert "gloo" not in (tmp_path / f"after-{rank}").read_text()


@pytest.mark.slow
def test_ranks_with_different_parameters_are_told_so(tmp_path):
    script = tmp_path / "fit.py"
    script.write_text(
        "import os\n"
        "from test_distributed import X\n"
        "from skavi import FactorizedVI\n"
        "from skavi.distributed import shard\n"
        "from skavi.models import LinearModel\n"
        "FactorizedVI(LinearModel(tau=int(os.environ['RANK']))).fit(shard(X))\n"
    )
    done = run_ranks(2, script)
    assert done.returncode != 0
    assert "ValueError: The ranks fit different estimators, rank " in done.stderr


def test_what_tells_estimators_apart():
    one = FactorizedVI(LinearModel(), random_state=0)
    assert _describe(one) == _describe(clone(one).set_params(random_state=1, verbose=1))
    others = [clone(one).set_params(model__tau=2), clone(one).set_params(tol=1e-3)]
    others += [clone(one).set_params(solver=Newton()), AmortizedVI(LinearModel())]
    assert all(_describe(other) != _describe(one) for other in others)


@pytest.mark.slow
def test_a_script_needs_no_main_guard_and_may_define_its_model(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\n"
        "from skavi import FactorizedVI, distributed\n"
        "from skavi.models import LinearModel\n"
        "class Doubled(LinearModel):\n"
        "    def log_local(self, theta, z, X):\n"
        "        return 2 * super().log_local(theta, z, X)\n"
        "X = np.array([[0.0], [1.0], [5.0]])\n"
        "vi = distributed.fit(FactorizedVI(Doubled()), X, n_workers=2)\n"
        "print(type(vi.model_) is Doubled, vi.transform(X).shape)\n"
    )
    command = [sys.executable, script]
    env = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.stdout == "True (3, 1)\n", done.stderr


class UnmarkedStart(LinearModel):
    """Adds up its own rows alone."""

    def initial_globals(self, X, weights):
        """Return the mean of what one rank holds."""
        return {"theta": X.mean()}


class UnmarkedFunction(Polynomial):
    """Starts from its own rows alone."""

    def start(self, features, targets, weights, generator):
        """Return zeros."""
        return {"coefficients": torch.zeros(features.shape[1], targets.shape[1])}


class UnmarkedSolver(Newton):
    """Does who knows what."""

    def begin(self, problem, state, tol):
        """Return a run."""
        return super().begin(problem, state, tol)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (FactorizedVI(LocalLevel()), "LocalLevel couples them"),
        (FactorizedVI(TopicModel(2)), "TopicModel reads sparse ones"),
        (FactorizedVI(UnmarkedStart()), "UnmarkedStart.initial_globals may add up rows"),
        (AmortizedVI(LinearModel(), UnmarkedFunction()), "UnmarkedFunction.start may add up"),
        (FactorizedVI(LinearModel(), solver=UnmarkedSolver()), "UnmarkedSolver.begin may add up"),
        (AmortizedVI(LinearModel(), MLP(context=(1, 0))), r"reads \(1, 0\) rows before and after"),
        (FactorizedVI(LinearModel()).set_callbacks(ElboMonitor()), "callbacks.*ElboMonitor"),
    ],
)
def test_what_ranks_cannot_do_together_is_refused(estimator, message):
    with pytest.raises(ValueError, match=message):
        check_joint(estimator, estimator.model, getattr(estimator, "inference_function", None))


@pytest.mark.parametrize("model", [LinearModel(), FactorAnalysis(2), EndsOnRankOne()])
def test_what_ranks_can_do_together_is_not(model):
    check_joint(FactorizedVI(model), model, None)


def test_a_marked_method_is_taken():
    class MarkedStart(UnmarkedStart):
        @over_ranks
        def initial_globals(self, X, weights):
            return {"theta": total(X.sum()) / total(weights.sum())}

    check_joint(FactorizedVI(MarkedStart()), MarkedStart(), None)
    assert FactorizedVI(MarkedStart()).fit(X).converged_


def test_a_shard_in_a_process_on_its_own_is_the_table(tmp_path):
    np.save(tmp_path / "X.npy", X)
    mapped = shard(tmp_path / "X.npy")
    assert_array_equal(mapped, X)
    vi, same = (FactorizedVI(LinearModel()).fit(rows) for rows in (X, mapped))
    assert vi.elbo_ == same.elbo_
    assert vi.partial_fit(mapped).n_features_in_ == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": FactorizedVI(device="cuda")}, "device='cuda': workers of this function"),
        ({"n_workers": 0}, "n_workers=0 must be an integer >= 1"),
        ({"n_threads": True}, "n_threads=True must be an integer >= 1"),
        ({"n_workers": 62}, "X has 61 rows for 62 ranks"),
        ({"sizes": [60, 2]}, r"X has 61 rows for 2 ranks, but sizes=\[60, 2\]"),
        ({"sizes": [61, 0]}, "every rank needs at least one row"),
        ({"sample_weight": [1.0]}, r"sample_weight has shape \(1,\), but X has 61 rows"),
    ],
)
def test_arguments_are_checked_before_any_worker_starts(arguments, message):
    with pytest.raises(ValueError, match=message):
        distributed.fit(**{"estimator": FactorizedVI(LinearModel()), "X": X} | arguments)


def test_what_is_no_estimator_of_ours_is_a_type_error():
    with pytest.raises(TypeError, match="estimator is a Pipeline, but must be a FactorizedVI"):
        distributed.fit(make_pipeline(FactorizedVI()), X)


@pytest.mark.changes_globals
def test_a_group_of_one_adds_up_like_a_process_alone(tmp_path):
    """What ranks do, in a real process group, where a sum must be its only part."""
    meeting = f"file://{tmp_path / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        ranks, rows = Ranks(3, 2), torch.arange(6.0).reshape(3, 2)
        assert (ranks.rank, ranks.size, ranks.first, ranks.count(3)) == (0, 1, 0, 3)
        for method in (ranks.sum, ranks.largest, ranks.gather):
            assert torch.equal(method(rows), rows)
        assert torch.equal(ranks.take(rows, torch.tensor([0, 2, 2])), rows[[0, 2, 2]])
        assert ranks.first_rank(7) == 7 and ranks.any(True) and not ranks.any(False)
        assert not shared_by_ranks(shard(rows.numpy()))
    finally:
        torch.distributed.destroy_process_group()
    with (
        pytest.raises(LostRankError, match="Rank 0 of 1 lost touch with the others"),
        ranks._in_touch(),
    ):
        raise RuntimeError("Connection closed by peer")


@pytest.mark.changes_globals
def test_a_worker_leaves_a_report(tmp_path):
    for name, vi in {
        "good": FactorizedVI(LinearModel()),
        "bad": FactorizedVI(TopicModel(1)),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        np.save(folder / "X.npy", X - 9)
        task = Task(vi, str(folder / "X.npy"), np.ones(len(X)), [len(X)], None, 1, 1)
        (folder / "task").write_bytes(pickle.dumps(task))
        try:
            status = work(folder, 0)
        finally:
            torch.distributed.destroy_process_group()
        report = pickle.loads((folder / "report-0").read_bytes())
        assert status == (0 if name == "good" else 1) and report.rank == 0
        assert (report.state is None) == (name == "bad")
        if name == "good":
            assert report.state["elbo_"] == clone(vi).fit(X - 9).elbo_
        else:
            assert isinstance(report.error, ValueError) and "Traceback" in report.error.__notes__[0]


@pytest.mark.changes_globals
def test_grid_search_goes_over_dask():
    """joblib's "dask" backend gives the scores of the sequential search."""
    dask_distributed = pytest.importorskip("distributed", reason="needs dask[distributed]")
    import joblib
    from sklearn.model_selection import GridSearchCV

    grid = {"model__n_components": [1, 2]}
    rows = CASES["table, coordinate ascent"][0]
    search = GridSearchCV(FactorizedVI(FactorAnalysis()), grid, cv=2)
    here = clone(search).fit(rows)
    with (
        dask_distributed.Client(processes=False, dashboard_address=None),
        joblib.parallel_backend("dask"),
    ):
        there = clone(search).fit(rows)
    key = "mean_test_score"
    assert_allclose(there.cv_results_[key], here.cv_results_[key], rtol=1e-12)
    assert there.best_params_ == here.best_params_


@pytest.mark.nightly
def test_the_benchmark_runs():
    command = [sys.executable, TESTS.parent / "benchmarks" / "distributed.py", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    table = [line.split() for line in done.stdout.splitlines() if line[:4] in ("F-VI", "A-VI")]
    assert len(table) == 2 and all(float(row[-1]) < 1e-6 for row in table)
