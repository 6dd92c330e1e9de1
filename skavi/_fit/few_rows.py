"""The first steps of a fit to many rows, on a few that represent them.

Far from the optimum a step on all rows finds hardly a better theta than one on 2,000 of them. So
q(theta) is fitted to these, each row's factor is found given that, and the fit goes on from there.
That pays where steps take second derivatives near enough (`Problem.for_steps`): answers, counts
and Student t cells of two latents, 10,000 rows, take half of the seconds; one latent, or the
nonlinear model, as many as without.
"""

from dataclasses import replace

import torch

from skavi._fit.checkpoint_journal import Journal
from skavi._fit.nonfinite import elbo_or_lowest
from skavi._fit.stages import Stages
from skavi.solvers import Newton, State
from skavi.solvers._base import unwatched

#: Total weight of the rows from which on a few come first, the same however many of them are equal
#: and on whichever ranks: then ranks take the way of one process, and end in the same of several
#: mirrored optima. Not measured: order of magnitude.
_MANY = 4000
#: Nats a row that the few, and then each row, may leave. With 1e-2 latents are not yet turned as
#: they will be, along which second derivatives near enough for steps are least so: 50,000 answers
#: then took ten steps on all rows, five now.
_NEAR = 1e-4
#: Newton steps of a row, with q(theta) given: about three are usual, the fit moves rows as well.
_STEPS = 10


def begun_on_few(problem, state: State, stages) -> State:
    """Return a state of a higher ELBO, whose q(theta) is that of a few rows; else the given one.

    The same few rows on every rank, and only where each row has a factor of its own.
    """
    rows, objective, solver = problem.rows, problem.objective, stages.solver
    coupling, steps = objective.model.coupling, problem.for_steps()
    pays = state.n_owned and coupling.independent and solver.second_order and steps is not problem
    few = coupling.representatives(rows) if pays else None
    if few is None or rows.total_weight < _MANY:
        return state
    start = State(objective.start_locals(state.raw_globals, few.X), {}, state.raw_globals)
    short = Stages(solver, stages.left, unwatched, Journal())
    try:
        some = replace(problem, rows=few, features=few.X, nodes=None)
        raw_globals = short.solve(some, start, _NEAR).raw_globals
    except (FloatingPointError, torch.linalg.LinAlgError):
        if few.ranks.size > 1:  # other ranks may have succeeded
            raise
        return state
    there = State(objective.start_locals(raw_globals, rows.X), {}, raw_globals)
    there = Newton().solve(replace(steps, frozen_globals=True), there, _NEAR, _STEPS).state
    better = elbo_or_lowest(problem, there) > elbo_or_lowest(problem, state)
    return there if better else state
