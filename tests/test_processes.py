"""Fork, spawn, forkserver and threads: every public call answers, and no process is left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from public_calls import CALLS, DRAWN, INHERITED, is_exempt, members
from skavi._platform.forks_and_threads import is_guarded

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")

#: Calls that no torch runs in: they work in any forked child.
TORCHLESS = ("get_params", "set_params", "set_output", "set_callbacks", "__getstate__", "__repr__")


def test_every_public_way_into_torch_is_guarded():
    unguarded = [w for w, v in members() if not (is_exempt(w, v) or is_guarded(v))]
    assert not unguarded, f"add @guarded, or a reason to EXEMPT in public_calls: {unguarded}"


def test_every_guarded_member_has_a_call():
    left = [w for w, v in members() if is_guarded(v) and w not in CALLS and not w.endswith(DRAWN)]
    assert not left, f"add calls to public_calls for {left}"
    inherited = {f"skavi.{c}.{n}" for c in ("FactorizedVI", "AmortizedVI") for n in INHERITED}
    assert inherited <= CALLS.keys()


_RUN = """
import json, multiprocessing, os, sys
import torch
torch.set_num_threads(1)
import public_calls as public

def say(how, fits=None):
    fits = public.make_fits() if fits is None else fits
    torch.set_num_threads(1 if how == "alone" else 2)
    said = public.answers_of_threads(fits) if how == "threads" else public.answers(fits)
    print(json.dumps(said), flush=True)

if __name__ == "__main__":
    how = sys.argv[1]
    if how in ("spawn", "forkserver"):
        process = multiprocessing.get_context(how).Process(target=say, args=(how,))
        process.start()
        process.join()
    elif how == "threads":
        say(how)
    else:
        fits = public.make_fits()
        torch.set_num_threads(2)
        torch.ones(1_000_000).exp()
        if os.fork() == 0:
            say(how, fits)
            os._exit(0)
        os.wait()
"""


def _environment():
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent), *sys.path]
    own = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "MPLBACKEND": "agg"}
    return os.environ | own | {"PYTHONPATH": os.pathsep.join(paths)}


def answers(how, folder):
    script = folder / "run.py"
    script.write_text(_RUN)
    command = [sys.executable, "-W", "ignore", str(script), how]
    run = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=500)
    return json.loads(run.stdout.strip().splitlines()[-1]), run.stderr


@pytest.mark.slow
def test_a_forked_child_without_torchs_threads_refuses_every_call(tmp_path):
    said, errors = answers("lost", tmp_path)
    assert said.keys() == CALLS.keys(), errors
    torchless = {where for where in CALLS if where.endswith(TORCHLESS)}
    wrong = {w: s for w, s in said.items() if s != ("works" if w in torchless else "refuses")}
    assert not wrong


@pytest.mark.nightly
@pytest.mark.parametrize("how", ["alone", "spawn", "forkserver", "threads"])
def test_every_call_works_elsewhere(how, tmp_path):
    said, errors = answers(how, tmp_path)
    assert said.keys() == CALLS.keys(), errors
    assert not {where: what for where, what in said.items() if what != "works"}


_PROBE = """
import os, sys, time, signal
import torch
torch.set_num_threads(2)
from skavi._platform.forks_and_threads import check_fork
torch.ones(1_000_000).exp()
signal.signal(signal.SIGTERM, lambda *_: None)  # as servers have
child = os.fork()
if child == 0:
    times = []
    for _ in range(3):
        start = time.monotonic()
        try:
            check_fork()
        except RuntimeError:
            times.append(time.monotonic() - start)
    print(*times, flush=True)
    os._exit(0)
print(child, flush=True)
os.waitpid(child, 0)
"""


def _descendants(pid):
    """Return the processes of a group that are not yet ended, but for zombies."""
    listed = subprocess.run(["ps", "-eo", "pid,pgid,stat"], capture_output=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()[1:]]
    return [int(p) for p, group, stat in rows if int(group) == pid and not stat.startswith("Z")]


def _probing():
    command = [sys.executable, "-c", _PROBE]
    return subprocess.Popen(
        command, env=_environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_a_failed_probe_is_remembered():
    process = _probing()
    assert process.stdout is not None
    times = process.communicate(timeout=120)[0].splitlines()[1].split()
    first, *later = map(float, times)
    assert first >= 4 and max(later) < 1  # seconds: the probe waits for five


@pytest.mark.slow
def test_a_killed_child_leaves_no_probe_behind():
    process = _probing()
    assert process.stdout is not None
    child = int(process.stdout.readline())
    end = time.monotonic() + 60
    while len(_descendants(process.pid)) < 3 and time.monotonic() < end:
        time.sleep(0.02)
    assert len(_descendants(process.pid)) == 3  # the parent, the child, and its probe
    os.kill(child, 9)
    process.wait(60)
    while _descendants(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _descendants(process.pid)
    process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TERM", "KILL"])
def test_timeout_ends_all_of_it(name):
    command = ["timeout", "-s", name, "4", sys.executable, "-c", _PROBE]
    process = subprocess.Popen(
        command, env=_environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    process.wait(120)
    end = time.monotonic() + 10
    while _descendants(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _descendants(process.pid)
