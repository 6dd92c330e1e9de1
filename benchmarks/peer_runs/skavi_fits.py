"""skavi itself: a default fit in a fresh process, then the same once more, warm."""

import contextlib
import itertools
import warnings
from dataclasses import replace
from time import perf_counter

import torch
from sklearn.exceptions import ConvergenceWarning

from benchmarks.watched import watched
from skavi import AmortizedVI, FactorizedVI
from skavi.inference_functions import MLP
from skavi.models import BayesianDecoder
from skavi.noise import MonteCarlo
from skavi.solvers import Adam

from .problems import PROBLEMS
from .task import Clock, Factors


def run(task):
    """Fit twice; times are those of the first fit, everything that it does included."""
    cold, warm = _fit(task), _fit(task)
    return replace(cold, warm=warm.times)


class _Enough(Exception):
    """Enough steps were seen."""


def run_decoder(task):
    """Return the seconds of each step of a fit, the first with all that is done before it.

    The fit is broken off: what follows the last step, an evaluation of the ELBO on all rows with
    many draws, is no part of a step.
    """
    estimator = decoder(task)
    times = [perf_counter()]

    def note(_):
        times.append(perf_counter())
        if len(times) > task.n_steps + 1:
            raise _Enough

    with watched(note), contextlib.suppress(_Enough):
        estimator.fit(task.X)
    return [after - before for before, after in itertools.pairwise(times)]


def decoder(task):
    """Return the estimator whose steps are timed."""
    arguments = {"noise": MonteCarlo(1), "solver": Adam(batch_size=task.n_batch), "random_state": 0}
    model = BayesianDecoder(task.n_latents, task.hidden, noise_sd=1.0)
    if task.amortized:
        return AmortizedVI(model, MLP(task.hidden), **arguments)
    return FactorizedVI(model, **arguments)


def _fit(task):
    clock = Clock(0.0)  # no limit: every iterate is a snapshot
    problem = PROBLEMS[task.model]
    if task.amortized:
        estimator = AmortizedVI(problem.model(), problem.function(), random_state=0)
    else:
        estimator = FactorizedVI(problem.model(), random_state=0)

    def observe(iterate):
        clock.tick(lambda: _read(iterate.fitted(), task.X))

    with watched(observe) as fits, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(task.X)
        clock.tick(lambda: _read(fits[0], task.X), 0)
    return clock.run


def _read(fitted, X):
    problem, state = fitted.problem, fitted.outcome.state
    objective = problem.objective
    globals_ = objective.global_factor(state.raw_globals)
    if len(problem.rows.X) == len(X):
        locals_ = objective.local_factors(problem.raw(state).detach())
    else:  # closed forms read fewer rows of the same moments; each row's factor is its optimum
        locals_ = objective.model.local_optimum(globals_, torch.as_tensor(X), objective.family)
    tensors = globals_.mean, globals_.sd, locals_.mean, locals_.sd
    return Factors(*(tensor.detach().double().numpy().copy() for tensor in tensors))
