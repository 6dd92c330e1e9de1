"""Call a function in a fresh process: nothing imported, compiled or cached by what ran before.

Two threads and two cores for everyone, whatever library it uses.
"""

import os
import pickle
import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parents[1]
N_THREADS = 2
_FIRST = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
_COUNTS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


@dataclass(frozen=True)
class Returned:
    """What the function returned, and what its process cost.

    Attributes
    ----------
    value : object
        None where it failed; then `error` says how.
    seconds : float
        Of the whole process, start and imports included.
    peak_mb : float
        Largest resident memory of the process, imports included.
    load : float
        Load average of the minute before: above one, times mean little.
    error : str
    """

    value: object
    seconds: float
    peak_mb: float
    load: float
    error: str = ""

    @property
    def reason(self) -> str:
        """The line of `error` that names what was raised: it holds no path of this machine."""
        lines = self.error.splitlines()
        raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
        return (raised or lines or [""])[-1]


def call(target: str, arguments: dict, limit: float = 600.0) -> Returned:
    """Call "module:function" with keyword arguments in a new process, at most `limit` seconds."""
    load, begin = os.getloadavg()[0], perf_counter()
    environment = {
        **os.environ,
        **{name: str(N_THREADS) for name in _COUNTS},
        "PYTHONPATH": os.pathsep.join([*_FIRST, str(ROOT), str(ROOT / "tests")]),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "returned"
        path.write_bytes(pickle.dumps(arguments))
        try:
            done = subprocess.run(
                [sys.executable, __file__, target, str(path)],
                env=environment,
                timeout=limit,
                capture_output=True,
                text=True,
            )
        except subprocess.TimeoutExpired:
            return Returned(None, perf_counter() - begin, 0.0, load, f"over {limit:.0f} s")
        seconds = perf_counter() - begin
        if done.returncode:
            error = done.stderr.strip()[-2000:] or f"exit status {done.returncode}"
            return Returned(None, seconds, 0.0, load, error)
        value, peak = pickle.loads(path.read_bytes())
    return Returned(value, seconds, peak, load)


def _main(target, path):
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:N_THREADS])
    module, function = target.split(":")
    arguments = pickle.loads(Path(path).read_bytes())
    value = getattr(__import__(module, fromlist=[function]), function)(**arguments)
    Path(path).write_bytes(pickle.dumps((value, _peak_mb())))


def _peak_mb():
    """Return the largest resident memory of this process since it began.

    On Linux getrusage would remember what the parent held when it started the process.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    _main(*sys.argv[1:])
