"""Look over a fit's shoulder: its iterates and where it ended, local factors included.

An estimator keeps q(theta) and solves local factors when asked, so what its solver itself reached
can be seen from inside only. A benchmark that judged the solver by `posterior` would flatter it.
"""

from contextlib import contextmanager

from skavi._estimators import base
from skavi._fit import algorithm
from skavi.solvers._base import unwatched


@contextmanager
def watched(observe=None):
    """Yield the list of fits (problem, solver, outcome) that end inside, the newest last.

    `observe` is called with every iterate of them, but not of the smaller fits that they start by.
    """
    fit_model, fits = algorithm.fit_model, []
    with_suboptimality = base.with_suboptimality

    def observed(plan, rows, start, progress, stage=0):
        if progress is unwatched:
            return fit_model(plan, rows, start, progress, stage)
        progress = progress if observe is None else _both(observe, progress)
        return fit_model(plan, rows, start, progress, stage)

    def noted(fit):
        ended = with_suboptimality(fit)
        fits.append(ended.solution)
        return ended

    algorithm.fit_model, base.with_suboptimality = observed, noted
    try:
        yield fits
    finally:
        algorithm.fit_model, base.with_suboptimality = fit_model, with_suboptimality


def _both(observe, progress):
    def told(iterate):
        observe(iterate)
        return progress(iterate)

    return told
