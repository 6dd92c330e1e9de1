"""Grid search with two workers against one: `python benchmarks/grid_search.py`.

Two workers should be at least 1.6 times as fast as one. They are slower than one where every worker
starts as many torch threads as there are cores, so the threads are counted too. Run it on a machine
that does nothing else: two busy cores are the whole budget of the second run.
"""

import os
import warnings
from time import perf_counter

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from skavi import AmortizedVI
from skavi.inference_functions import MLP
from skavi.models import FactorAnalysis
from skavi.solvers import Adam

WANTED = 1.6


def rows(n_samples=500, n_features=20, n_latents=5):
    """Return draws of a factor analysis."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(n_latents, n_features))
    return rng.normal(size=(n_samples, n_latents)) @ loadings + rng.normal(
        size=(n_samples, n_features)
    )


def search(n_jobs):
    """Return a search of 12 fits of 300 steps each: no luck of convergence in the ratio."""
    vi = AmortizedVI(FactorAnalysis(), MLP(), solver=Adam(), max_iter=300, random_state=0)
    grid = {
        "model__n_components": [2, 4, 6],
        "inference_function__hidden_layer_sizes": [(32,), (64, 64)],
    }
    return GridSearchCV(vi, grid, cv=2, n_jobs=n_jobs, refit=False)


def _quietly_fit(n_jobs, X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search(n_jobs).fit(X)


def seconds(n_jobs, X):
    """Return the seconds of one search, workers started beforehand."""
    Parallel(n_jobs)(delayed(_warm_up)(X[:50]) for _ in range(2 * n_jobs))
    begin = perf_counter()
    _quietly_fit(n_jobs, X)
    return perf_counter() - begin


def _warm_up(X):
    AmortizedVI(FactorAnalysis(), MLP((4,)), random_state=0).fit(X)
    return torch.get_num_threads()


def main():
    """Print both times, their ratio and the threads that workers run on."""
    X = rows()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = Parallel(2)(delayed(_warm_up)(X[:50]) for _ in range(4))
    one, two = min(seconds(1, X) for _ in range(2)), min(seconds(2, X) for _ in range(2))
    print(f"cores: {cores}, workers: {effective_n_jobs(2)}")
    print(f"threads: {torch.get_num_threads()} alone, {max(threads)} in each of two workers")
    print(f"one worker: {one:.2f} s, two workers: {two:.2f} s")
    print(f"two workers are {one / two:.2f} times as fast (wanted: {WANTED})")


if __name__ == "__main__":
    main()
