"""Threads, worker processes and forks: the same numbers as alone, or an error, never a hang."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone

from skavi import AmortizedVI, FactorizedVI
from skavi._platform.forks_and_threads import check_fork, in_turn, seeded
from skavi.inference_functions import MLP
from skavi.models import FactorAnalysis, NonlinearModel, RandomEffects

X = np.random.default_rng(0).normal(size=(60, 3)) @ np.ones((3, 4))
X += 0.3 * np.random.default_rng(1).normal(size=X.shape)
LINEAR = torch.nn.Linear(1, 2, dtype=torch.float64)
with torch.no_grad():  # the same in every process
    LINEAR.weight.fill_(0.5)
    LINEAR.bias.fill_(0.0)
FITS = {
    "closed form": (FactorizedVI(FactorAnalysis(1)), X),
    "network": (AmortizedVI(FactorAnalysis(1), MLP((8,)), max_iter=20), X),
    "torch module": (AmortizedVI(NonlinearModel(), LINEAR, max_iter=20), X[:, :1]),
    "newton": (FactorizedVI(NonlinearModel()), X[:, :1]),
    "start drawn from a prior": (FactorizedVI(RandomEffects()), np.abs(X[:, :2]) + 0.1),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*did not converge")
each_fit = pytest.mark.parametrize("name", FITS)


def fitted(name, seed=0):
    vi, rows = FITS[name]
    return clone(vi).set_params(random_state=seed).fit(rows)


def numbers(vi, rows):
    """Return what a fit gives, to the last bit."""
    return vi.elbo_, vi.transform(rows).tobytes(), vi.sample(3, random_state=0)[0].tobytes()


def fit_numbers(name, seed):
    return numbers(fitted(name, seed), FITS[name][1])


# --- threads ------------------------------------------------------------------------------------


@each_fit
def test_fits_in_threads_are_those_of_one_thread(name):
    alone = [fit_numbers(name, seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda seed: fit_numbers(name, seed), range(2)))
    assert together == alone


@each_fit
def test_one_estimator_serves_many_threads(name):
    vi, rows = fitted(name), FITS[name][1]
    parts = [rows[i : i + 7] for i in range(8)]
    alone = [(vi.transform(part).tobytes(), vi.score(part)) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        together = list(
            pool.map(lambda part: (vi.transform(part).tobytes(), vi.score(part)), parts)
        )
    assert together == alone


def test_two_modules_swap_their_weights_in_turn():
    """torch puts given parameters into the module and back: two threads at once would mix them."""
    vi, rows = fitted("torch module"), np.repeat(FITS["torch module"][1], 300, 0)
    rows = rows + 1e-3 * np.arange(len(rows))[:, None]
    expected = vi.transform(rows)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(vi.transform, [rows] * 40):
            assert_array_equal(found, expected)
    own = vi.inference_function.state_dict()
    for key, value in vi.inference_function_.module.state_dict().items():
        assert torch.equal(value, own[key])


def test_seeded_draws_do_not_mix_between_threads():
    def draw(seed):
        with seeded(seed):
            return [float(torch.randn(())) for _ in range(200)]

    alone = [draw(seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(draw, range(16))) == alone


# --- worker processes ---------------------------------------------------------------------------


def test_loky_workers_give_the_same_numbers():
    jobs = [(name, 0) for name in FITS]
    together = joblib.Parallel(n_jobs=2)(joblib.delayed(fit_numbers)(*job) for job in jobs)
    assert together == [fit_numbers(*job) for job in jobs]


def test_loky_divides_the_cores_among_its_workers():
    """The note in README: n_jobs workers share the cores, whatever torch takes by itself."""
    threads = joblib.Parallel(n_jobs=2)(joblib.delayed(torch.get_num_threads)() for _ in range(4))
    assert max(threads) <= max(1, joblib.cpu_count() // 2)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_multiprocessing_workers_give_the_same_numbers(method):
    context = multiprocessing.get_context(method)
    jobs = ["closed form", "newton"]
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        together = list(pool.map(fit_numbers, jobs, [0, 0], timeout=300))
    assert together == [fit_numbers(name, 0) for name in jobs]


# --- forks --------------------------------------------------------------------------------------

_FORK = """
import os, sys, time
import numpy as np, torch
from skavi import FactorizedVI
from skavi.models import FactorAnalysis

threads, used, threads_of_child = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
action = sys.argv[4]
torch.set_num_threads(threads)
X = np.random.default_rng(0).normal(size=(20_000, 30))
if used == "used":
    vi = FactorizedVI(FactorAnalysis(1), random_state=0).fit(X[:20, :4])
    torch.ones(1_000_000).exp()
child = os.fork()
if child == 0:
    code = 1
    try:
        if threads_of_child:
            torch.set_num_threads(threads_of_child)
        if action == "fit":
            FactorizedVI(FactorAnalysis(2), random_state=0, max_iter=2, tol=1.0).fit(X)
        else:
            vi.transform(np.tile(X[:, :4], (20, 1)))
        code = 0
    except RuntimeError as error:
        code = 3 if "loky" in str(error) and "spawn" in str(error) else 4
    finally:
        os._exit(code)
end = time.monotonic() + 120
while time.monotonic() < end:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        print(os.waitstatus_to_exitcode(status))
        break
    time.sleep(0.01)
else:
    os.kill(child, 9)
    os.waitpid(child, 0)
    print("hangs")
"""
_WORKS, _RAISES = "0", "3"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
@pytest.mark.parametrize(
    ("threads", "used", "threads_of_child", "action", "expected"),
    [
        (2, "used", 0, "fit", _RAISES),
        (2, "unused", 0, "fit", _WORKS),
        pytest.param(2, "used", 0, "transform", _RAISES, marks=pytest.mark.slow),
        pytest.param(2, "used", 1, "fit", _WORKS, marks=pytest.mark.nightly),
        pytest.param(1, "used", 0, "fit", _WORKS, marks=pytest.mark.nightly),
        pytest.param(1, "used", 0, "transform", _WORKS, marks=pytest.mark.nightly),
    ],
)
def test_a_fork_works_or_raises_but_never_hangs(threads, used, threads_of_child, action, expected):
    command = [sys.executable, "-W", "ignore", "-c", _FORK]
    command += [str(threads), used, str(threads_of_child), action]
    paths = [str(Path(__file__).parents[2]), *sys.path]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(paths)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == expected, run.stderr


def test_outside_forks_the_check_asks_nothing(monkeypatch):
    monkeypatch.setattr(os, "fork", None)
    check_fork()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_turn_that_another_thread_held_is_free_after_a_fork():
    with ThreadPoolExecutor(1) as pool:
        with in_turn():
            child = pool.submit(_fork_and_take_a_turn).result()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _fork_and_take_a_turn():
    child = os.fork()
    if child == 0:
        with in_turn():
            os._exit(0)
    return child
