"""Races to within 1% of F-VI's optimum, run by the published loop.

The mark is the published one: a mean of the loss over 20 iterations within 1% of F-VI's mean loss
over its last iterations at the published settings (the first seed's, for all: five seeds of the
nonlinear model differ in it by 0.01%). Runs stop there, but for the one that sets the mark. A run
that is not there after `PATIENCE` times as many iterations as F-VI's slowest run at the same rate
has lost, and is given up.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from joblib import Parallel, delayed

from .published_loop import Step, iterations_to, run, seeded, windowed
from .quadratic_step import Stacked
from .race import PATIENCE, Race


def race(contestants, step: Step, rates, seeds, mark_window: slice, n_jobs: int) -> Race:
    """Run every contestant at its published rate and at all common rates, for every seed."""
    factorized, *others = contestants
    groups = [tuple(seeds)] if step.batched else [(seed,) for seed in seeds]
    long = _run(factorized, factorized.rate, step, groups[0], -math.inf)
    mark = float(long[mark_window, 0].mean())
    track = _Track(step, mark, n_jobs)
    track.note((factorized.name, factorized.rate), long)
    track.run([(factorized, factorized.rate)], groups[1:])
    track.run([(factorized, rate) for rate in rates if rate != factorized.rate], groups)
    limits = {rate: PATIENCE * max(numbers) for (_, rate), numbers in track.iterations.items()}
    entries = [(c, rate) for c in others for rate in _rates(c, rates)]
    entries.sort(key=lambda entry: -limits.get(entry[1], math.inf))
    track.run(entries, groups, limits)
    curves = track.curves(contestants)
    return Race(contestants, tuple(rates), track.iterations, curves, mark, tuple(seeds))


def _rates(contestant, rates):
    return [contestant.rate] if math.isinf(contestant.published) else {contestant.rate, *rates}


class _Track:
    """Where runs are timed: iterations to the mark by contestant and rate, a number a seed."""

    def __init__(self, step, mark, n_jobs):
        self.step, self.mark, self.n_jobs = step, mark, n_jobs
        self.iterations: dict[tuple[str, float], list[float]] = {}
        self.losses: dict[tuple[str, float], np.ndarray] = {}

    def run(self, entries, groups, limits=None):
        """Run contestants at rates until they arrive, or to the limit of the rate."""
        jobs = [(c, rate, group) for c, rate in entries for group in self._seeds(c, groups)]
        outcomes = Parallel(self.n_jobs)(
            delayed(_run)(c, rate, self._limited(rate, limits), group, self.mark)
            for c, rate, group in jobs
        )
        for (contestant, rate, _), losses in zip(jobs, outcomes, strict=True):
            self.note((contestant.name, rate), losses)

    def _seeds(self, contestant, groups):
        return groups[:1] if math.isinf(contestant.published) else groups

    def _limited(self, rate, limits):
        limit = (limits or {}).get(rate, self.step.n_iter)
        return replace(self.step, n_iter=int(limit)) if math.isfinite(limit) else self.step

    def note(self, key, losses):
        """Note the losses (n_iter, n_runs) of one more group of seeds."""
        self.losses.setdefault(key, losses[:, 0])
        arrivals = [iterations_to(one, self.mark) for one in losses.T]
        self.iterations.setdefault(key, []).extend(arrivals)

    def curves(self, contestants):
        """Return the first seed's windowed losses at the published rates."""
        return {c.name: windowed(self.losses[c.name, c.rate]) for c in contestants}


def _run(contestant, rate, step, seeds, mark):
    """Return losses (n_iter, n_seeds), until all are within 1% of the mark."""
    torch.set_num_threads(1)
    starts = []
    for seed in seeds:
        with seeded(seed):
            starts.append(contestant.factors())
    factors = Stacked(starts) if step.batched else starts[0]
    with seeded(int(np.random.SeedSequence(seeds).generate_state(1)[0])):
        losses = run(step, factors, rate, mark)
    return losses.reshape(len(losses), len(seeds))
