"""What a fit may hold: refused before it is allocated, bounded while it runs, given back after."""

import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from skavi import AmortizedVI, FactorizedVI
from skavi._platform import memory
from skavi._platform.memory import available_bytes, require_memory
from skavi.families import FullNormal
from skavi.inference_functions import MLP, Polynomial
from skavi.models import FactorAnalysis, LinearModel
from skavi.noise import FixedDraws, MonteCarlo
from skavi.solvers import Adam

X = np.random.default_rng(0).normal(size=(20, 4))


def rows(n, d):
    """An array of any length that takes 8 bytes."""
    return np.broadcast_to(np.float64(0.5), (n, d))


# --- refused before ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vi", "data", "names"),
    [
        (FactorizedVI(FactorAnalysis(1000)), rows(10**9, 4), ["1000000000 rows", "1000 latents"]),
        (
            FactorizedVI(FactorAnalysis(10**5), family=FullNormal()),
            rows(1000, 4),
            ["1000 rows", "100000 latents"],
        ),
        (AmortizedVI(LinearModel(), MLP((10**6, 10**6))), rows(5, 1), ["hidden_layer_sizes"]),
        (AmortizedVI(FactorAnalysis(1), Polynomial(30)), rows(5, 100), ["Polynomial(degree=30)"]),
        (
            FactorizedVI(LinearModel(), noise=FixedDraws(10**12)),
            rows(5, 1),
            ["FixedDraws(n_draws=1000000000000)"],
        ),
    ],
)
def test_a_fit_that_cannot_fit_says_so_at_once(vi, data, names, monkeypatch):
    monkeypatch.setattr(vi, "_prepare", None, raising=False)  # no work is begun
    with pytest.raises(
        MemoryError, match=r"fit of .* needs at least .*B of memory, but .*B are"
    ) as e:
        vi.fit(data)
    assert all(name in str(e.value) for name in names)
    assert not hasattr(vi, "n_features_in_")


def test_minibatches_are_counted_as_they_are_drawn():
    """10^6 rows x 10^5 draws would be 800 GB; a batch of 10 rows is 8 MB."""
    noise = MonteCarlo(10**5)
    big = FactorizedVI(LinearModel(), noise=noise, solver=Adam(batch_size=10))
    memory.require_memory_of_fit(big, rows(10**6, 1))
    with pytest.raises(MemoryError, match="n_draws=100000"):
        memory.require_memory_of_fit(big.set_params(solver=None), rows(10**6, 1))


def test_what_is_asked_of_a_fit_is_checked_too():
    vi = FactorizedVI(FactorAnalysis(2)).fit(X)
    with pytest.raises(MemoryError, match="X of 1000000000000 rows with 2 latents needs"):
        vi.transform(rows(10**12, 4))
    with pytest.raises(MemoryError, match=r"FactorizedVI.sample\(n_samples=1000000000000\)"):
        vi.sample(10**12)
    with pytest.raises(MemoryError, match=r"LatentPosterior.sample\(n_draws=1000000000000\)"):
        vi.posterior(X).sample(10**12)
    with pytest.raises(MemoryError, match=r"GlobalPosterior.sample\(n_draws=1000000000000\)"):
        vi.global_posterior_.sample(10**12)
    many = FactorizedVI(FactorAnalysis(2)).fit(X)
    many.model_.n_components = 10**6  # as a forged file may say
    with pytest.raises(MemoryError, match="X of 20 rows with 1000000 latents"):
        many.posterior(X)


def test_what_fits_is_not_refused(monkeypatch):
    """The count is of what is surely held: with ten times that much free, a fit passes."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 10 * 8 * 2 * X.shape[0] * 2)
    assert FactorizedVI(FactorAnalysis(2)).fit(X).converged_


def test_available_memory_is_within_the_machines():
    assert 1e6 < available_bytes() <= psutil.virtual_memory().total


def test_limits_of_the_container_count(monkeypatch, tmp_path):
    for text, expected in (("1000\n", 1000), ("max\n", None)):
        limit = tmp_path / "memory.max"
        limit.write_text(text)
        monkeypatch.setattr(memory, "_LIMITS", (str(limit), str(tmp_path / "missing")))
        assert expected is None or available_bytes() == expected
    require_memory(10, "this", "that")
    with pytest.raises(MemoryError, match=r"this needs at least 8 EB of memory, but .*: that\."):
        require_memory(10**18, "this", "that")


@pytest.mark.parametrize(
    "vi", [FactorizedVI(FactorAnalysis("a")), AmortizedVI(LinearModel(), MLP("a"))]
)
def test_wrong_arguments_are_still_named_by_fit(vi):
    with pytest.raises((TypeError, ValueError), match=r"n_components|hidden_layer_sizes"):
        vi.fit(X[:, :1])


# --- bounded while it runs -----------------------------------------------------------------------

_PEAK = """
import resource, sys, warnings
import numpy as np
from skavi import AmortizedVI, FactorizedVI
from skavi.inference_functions import MLP
from skavi.models import FactorAnalysis, NonlinearModel
warnings.simplefilter("ignore")
small = np.random.default_rng(0).normal(size=(200, {d}))
vi = {estimator}.set_params(random_state=0, max_iter=50).fit(small)
vi.transform(small)
X = np.random.default_rng(1).normal(size=(100_000, {d}))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{call}
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(X.nbytes // 1024, after - before)
"""


nightly = partial(pytest.param, marks=pytest.mark.nightly)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "d", "call"),
    [
        ("FactorizedVI(FactorAnalysis(5))", 50, "vi.score(X)"),
        ("AmortizedVI(FactorAnalysis(5), MLP((64, 64)))", 50, "vi.transform(X)"),
        ("AmortizedVI(NonlinearModel(), MLP((64, 64)))", 1, "vi.score(X)"),
        nightly("FactorizedVI(FactorAnalysis(5))", 50, "vi.transform(X)"),
        nightly("AmortizedVI(FactorAnalysis(5), MLP((64, 64)))", 50, "vi.score(X)"),
        nightly("AmortizedVI(NonlinearModel(), MLP((64, 64)))", 1, "vi.transform(X)"),
        nightly("FactorizedVI(NonlinearModel())", 1, "vi.transform(X)"),
        nightly("FactorizedVI(NonlinearModel())", 1, "vi.score(X)"),
    ],
)
def test_transform_of_many_rows_stays_below_its_input_and_200_mb(estimator, d, call):
    kilobytes, peak = _run(_PEAK.format(estimator=estimator, d=d, call=call))
    assert peak < kilobytes + 200 * 1024


# --- given back after ----------------------------------------------------------------------------


def _fit_once(seed):
    data = np.random.default_rng(seed).normal(size=(20, 3))
    FactorizedVI(FactorAnalysis(1), random_state=seed).fit(data).transform(data)
    AmortizedVI(LinearModel(), MLP((4,)), random_state=seed, max_iter=3).fit(data[:, :1])


_SOAK = """
import gc, os, psutil, sys, warnings
warnings.simplefilter("ignore")
from test_memory import _fit_once
me = psutil.Process()
def held():
    gc.collect()
    return me.memory_info().rss, me.num_fds() + me.num_threads()
for seed in range(10):
    _fit_once(seed)
start = held()
for seed in range({n} // 2):
    _fit_once(seed)
middle = held()
for seed in range({n} // 2, {n}):
    _fit_once(seed)
end = held()
print((middle[0] - start[0]) // {n} * 2, (end[0] - middle[0]) // {n} * 2, end[1] - start[1])
"""


@pytest.mark.parametrize(
    ("n", "bytes_a_fit"),
    [(10, 300_000), pytest.param(2_000, 2_000, marks=pytest.mark.nightly)],
)
def test_fits_give_their_memory_and_files_back(n, bytes_a_fit):
    """The second half is judged: the first one still fills caches and the allocator's pools.

    2 kB a fit over 1,000 fits is 2 MB, the allocator's own noise.
    """
    _, a_fit, handles = _run(_SOAK.format(n=n))
    assert a_fit < bytes_a_fit
    assert handles <= 0


def _run(script):
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2]), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [int(number) for number in run.stdout.split()]
