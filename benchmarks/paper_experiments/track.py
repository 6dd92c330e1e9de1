"""Races to within 1% of F-VI's optimum, run by the published loop.

The mark is the published one: a mean of the loss over 20 iterations within 1% of F-VI's mean loss
over its last iterations at the published settings, the same seed. Runs stop there, but for F-VI at
its published rate, which sets the mark. A run that is not there after `PATIENCE` times as many
iterations as F-VI's slowest run at the same rate has lost, and is given up.
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
    first = Parallel(n_jobs)(
        delayed(_run)(factorized, factorized.rate, step, group, None) for group in groups
    )
    marks = {
        group: losses[mark_window].mean(0) for group, losses in zip(groups, first, strict=True)
    }
    track = _Track(step, groups, marks, n_jobs)
    track.note((factorized.name, factorized.rate), first)
    track.run([(factorized, rate) for rate in rates if rate != factorized.rate])
    limits = {
        rate: PATIENCE * max(track.iterations[factorized.name, rate])
        for rate in {factorized.rate, *rates}
    }
    entries = [(c, rate) for c in others for rate in _rates(c, rates)]
    track.run(sorted(entries, key=lambda entry: -limits.get(entry[1], math.inf)), limits)
    mark = float(marks[groups[0]][0])
    return Race(
        contestants, tuple(rates), track.iterations, track.curves(contestants), mark, tuple(seeds)
    )


def _rates(contestant, rates):
    return [contestant.rate] if math.isinf(contestant.published) else {contestant.rate, *rates}


class _Track:
    """Where runs are timed: iterations to the marks by contestant and rate, a number a seed."""

    def __init__(self, step, groups, marks, n_jobs):
        self.step, self.groups, self.marks, self.n_jobs = step, groups, marks, n_jobs
        self.iterations: dict[tuple[str, float], list[float]] = {}
        self.losses: dict[tuple[str, float], np.ndarray] = {}

    def run(self, entries, limits=None):
        """Run contestants at rates until they arrive, or to the limit of the rate."""
        jobs = [
            (contestant, rate, self._limited(rate, limits), group, self.marks[group])
            for contestant, rate in entries
            for group in self.groups[: 1 if math.isinf(contestant.published) else None]
        ]
        outcomes = Parallel(self.n_jobs)(delayed(_run)(*job) for job in jobs)
        for contestant, rate in entries:
            chosen = [
                losses
                for (c, r, *_), losses in zip(jobs, outcomes, strict=True)
                if (c.name, r) == (contestant.name, rate)
            ]
            self.note((contestant.name, rate), chosen)

    def _limited(self, rate, limits):
        limit = (limits or {}).get(rate, self.step.n_iter)
        return replace(self.step, n_iter=int(limit)) if math.isfinite(limit) else self.step

    def note(self, key, outcomes):
        """Note the losses (n_iter, n_runs) of each group of seeds."""
        self.losses[key] = outcomes[0][:, 0]
        self.iterations[key] = [
            iterations_to(one, mark)
            for group, losses in zip(self.groups, outcomes, strict=False)
            for one, mark in zip(losses.T, self.marks[group], strict=True)
        ]

    def curves(self, contestants):
        """Return the first seed's windowed losses at the published rates."""
        return {c.name: windowed(self.losses[c.name, c.rate]) for c in contestants}


def _run(contestant, rate, step, seeds, marks):
    """Return losses (n_iter, n_seeds); to the end where there is no mark yet."""
    torch.set_num_threads(1)
    starts = []
    for seed in seeds:
        with seeded(seed):
            starts.append(contestant.factors())
    factors = Stacked(starts) if step.batched else starts[0]
    with seeded(int(np.random.SeedSequence(seeds).generate_state(1)[0])):
        losses = run(step, factors, rate, -math.inf if marks is None else marks)
    return losses.reshape(len(losses), len(seeds))
