"""Races to within 1% of F-VI's optimum, run by the published loop.

The mark is the published one: a mean of the loss over 20 iterations within 1% of F-VI's mean loss
over its last iterations at the published settings (the first seed's, for all: five seeds of the
nonlinear model differ in it by 0.01%). Runs stop there, but for the one that sets the mark. A run
that is not there after `PATIENCE` times as many iterations as F-VI's slowest run at the same rate
has lost, and is given up; one whose optimum is known to be above the mark is run as long as F-VI.
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
    track = _Track(mark, n_jobs)
    track.note((factorized.name, factorized.rate), long)
    track.run([(factorized, factorized.rate, step, group) for group in groups[1:]])
    rest = [rate for rate in rates if rate != factorized.rate]
    track.run([(factorized, rate, step, group) for rate in rest for group in groups])
    slowest = {rate: max(numbers) for (_, rate), numbers in track.iterations.items()}
    jobs = [job for c in others for job in _jobs(c, step, rates, groups, slowest)]
    track.run(sorted(jobs, key=lambda job: -job[2].n_iter))
    curves = track.curves(contestants)
    return Race(contestants, tuple(rates), track.iterations, curves, mark, tuple(seeds))


def _jobs(contestant, step, rates, groups, slowest):
    """Return (contestant, rate, step, seeds) of its runs, given F-VI's slowest at each rate."""
    hopeless = math.isinf(contestant.published)
    patience = 1 if hopeless else PATIENCE
    jobs = []
    for rate in [contestant.rate] if hopeless else sorted({contestant.rate, *rates}):
        limit = patience * slowest.get(rate, math.inf)
        limited = replace(step, n_iter=int(limit)) if math.isfinite(limit) else step
        chosen = [groups[0][:1]] if hopeless else groups
        jobs += [(contestant, rate, limited, group) for group in chosen]
    return jobs


class _Track:
    """Where runs are timed: iterations to the mark by contestant and rate, a number a seed."""

    def __init__(self, mark, n_jobs):
        self.mark, self.n_jobs = mark, n_jobs
        self.iterations: dict[tuple[str, float], list[float]] = {}
        self.losses: dict[tuple[str, float], np.ndarray] = {}

    def run(self, jobs):
        """Run and note (contestant, rate, step, seeds)."""
        outcomes = Parallel(self.n_jobs)(delayed(_run)(*job, self.mark) for job in jobs)
        for (contestant, rate, *_), losses in zip(jobs, outcomes, strict=True):
            self.note((contestant.name, rate), losses)

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
