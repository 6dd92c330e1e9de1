"""A fork is noticed though the parent has used nothing of skavi yet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

_FORK = """
import os, signal
import skavi, torch

torch.set_num_threads(2)
torch.ones(1_000_000).exp()
child = os.fork()
if child == 0:
    signal.alarm(100)  # no child that hangs outlives a failure
    try:
        skavi.FactorizedVI().fit([[float(i % 3), float(i % 5)] for i in range(50)])
        os._exit(1)
    except RuntimeError as error:
        os._exit(3 if "loky" in str(error) else 4)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_fork_before_the_first_use_is_noticed():
    environment = os.environ | {
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-W", "ignore", "-c", _FORK]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "3", run.stderr
