"""Who runs on what, how long, at which rates; every run in a fresh process, one after another."""

from dataclasses import dataclass

import numpy as np

from benchmarks.fresh import Returned, call

from .evaluation import Evaluator, Trace
from .problems import PROBLEMS
from .task import Rate, Task

RATES = (Rate(1e-3), Rate(1e-2), Rate(1e-1), Rate(0.3, decays=True))
RUNNERS = {
    "NumPyro": "numpyro_svi",
    "Pyro": "pyro_svi",
    "PyMC ADVI": "pymc_advi",
    "the paper's loop": "paper_loop",
}
_START_LIMIT = 120.0  # seconds for imports and compilation


@dataclass(frozen=True)
class Contest:
    """One model by F-VI or A-VI.

    Attributes
    ----------
    model : str
    amortized : bool
    seconds : float
        Of stepping, for each rival at each rate.
    usual : Rate
        The one rate of a quick comparison.
    n_draws : dict
        By rival, where it is not one.
    """

    model: str
    amortized: bool
    seconds: float
    usual: Rate
    n_draws: dict

    @property
    def name(self):
        """Name of the contest."""
        return f"{self.model} {'A-VI' if self.amortized else 'F-VI'}"

    def rivals(self):
        """Return the rivals that can take part."""
        out = "PyMC ADVI" if self.amortized else None
        out = "the paper's loop" if self.model == "factors" else out
        return [name for name in RUNNERS if name != out]


_PAPER = {"the paper's loop": 100}
_FALLING = RATES[-1]
CONTESTS = (
    Contest("linear", False, 6.0, _FALLING, _PAPER),
    Contest("linear", True, 1.0, Rate(1e-1), _PAPER),
    Contest("saw", False, 3.0, _FALLING, _PAPER),
    Contest("saw", True, 2.5, Rate(1e-2), _PAPER | {"NumPyro": 10, "Pyro": 10}),
    Contest("nonlinear", False, 8.0, _FALLING, _PAPER),
    Contest("nonlinear", True, 7.0, Rate(1e-2), _PAPER),
    Contest("factors", False, 10.0, _FALLING, {}),
)


@dataclass(frozen=True)
class Entry:
    """One run's outcome; `trace` is None where it failed."""

    contestant: str
    rate: str
    n_draws: int | None
    trace: Trace | None
    returned: Returned


@dataclass(frozen=True)
class Outcome:
    """All runs of a contest, and the best published -ELBO that F-VI can reach."""

    contest: Contest
    entries: list[Entry]
    optimum: float

    @property
    def ours(self) -> Entry:
        """skavi's run."""
        return self.entries[0]

    def tuned(self, key) -> list[Entry]:
        """Return every rival's run at the rate for which `key(trace)` is least."""
        best: dict[str, Entry] = {}
        for entry in self.entries[1:]:
            if entry.trace is None:
                continue
            so_far = best.get(entry.contestant)
            if so_far is None or key(entry.trace) < key(so_far.trace):
                best[entry.contestant] = entry
        return list(best.values())


def hold(contest: Contest, quick: bool, rows: int | None = None) -> Outcome:
    """Run everybody, then evaluate what they found.

    A quick contest has one rate and half the time; `rows` are for trying things out.
    """
    problem = PROBLEMS[contest.model]
    X = problem.data()[:rows]
    evaluator, entries = Evaluator(problem, X), []
    rates = (contest.usual,) if quick else RATES
    seconds = contest.seconds / 2 if quick else contest.seconds

    def enter(name, module, rate, n_draws):
        task = Task(
            contest.model,
            contest.amortized,
            X,
            problem.inputs(X),
            rate,
            n_draws or 1,
            problem.width,
            seconds,
            problem.constants,
            problem.start,
            problem.n_latents,
        )
        limit = _START_LIMIT + 3 * seconds
        returned = call(f"benchmarks.peer_runs.{module}:run", {"task": task}, limit)
        trace = None if returned.value is None else evaluator.trace(returned.value)
        entries.append(Entry(name, str(rate) if n_draws else "-", n_draws, trace, returned))

    enter("skavi", "skavi_fits", RATES[0], None)
    for name in contest.rivals():
        for rate in rates:
            enter(name, RUNNERS[name], rate, contest.n_draws.get(name, 1))
            if "ModuleNotFoundError" in entries[-1].returned.error:
                break
    reached = [entry.trace.best for entry in entries if entry.trace is not None]
    return Outcome(contest, entries, float(np.min([problem.optimum(X), *reached])))
