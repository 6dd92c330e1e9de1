"""Hidden Markov models beside hmmlearn's: `python benchmarks/hidden_markov.py [--steps 500 2000]`.

Needs `pip install hmmlearn`. Simulated series of normal rows; one start of each method, one thread,
processor seconds: the median of three fits after one that is not counted, in turns. The other half
of the series is held out: both posteriors' means are put into hmmlearn's `GaussianHMM`, whose
`score` is nats a row, and whose decoded states are compared with the true ones (adjusted Rand
index). `--long` adds the seconds of our own fit of 100,000 steps, with all starts.
"""

import argparse
import json
import os
from pathlib import Path
from statistics import median
from time import process_time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from hmmlearn.hmm import GaussianHMM
from hmmlearn.vhmm import VariationalGaussianHMM
from sklearn.metrics import adjusted_rand_score

from skavi import FactorizedVI
from skavi.models import HiddenMarkovModel

RESULTS = Path(__file__).parent / "results" / "hidden_markov.json"
_REPEATS, _LONG = 3, 100_000


def simulated(n, k, n_features, apart, seed):
    """Return rows and states: a state is left once in ten steps, its centre sds `apart`."""
    rng = np.random.default_rng(seed)
    centres = apart * ((np.arange(k)[:, np.newaxis] + np.arange(n_features)) % k)
    leaves, to = rng.random(n) < 0.1, rng.integers(1, max(k, 2), n)
    states = np.cumsum(leaves * to) % k
    return centres[states] + rng.normal(size=(n, n_features)), states


def ours(X, k, seed, n_init=1):
    """Return our fit's means: first states, moves, centres and variances."""
    vi = FactorizedVI(HiddenMarkovModel(k), n_init=n_init, random_state=seed).fit(X)
    mean = vi.global_posterior_.mean
    return mean["initial"], mean["transitions"], mean["means"], mean["variances"]


def theirs(X, k, seed):
    """Return the same of hmmlearn's fit, with iterations enough to converge."""
    fit = VariationalGaussianHMM(
        k, covariance_type="diag", n_iter=1000, tol=1e-6, random_state=seed
    ).fit(X)
    first, moves = fit.startprob_posterior_, fit.transmat_posterior_
    variances = fit.scale_posterior_ / (fit.dof_posterior_[:, None] - 2)  # of an inverse gamma
    return first / first.sum(), moves / moves.sum(1, keepdims=True), fit.means_posterior_, variances


def evaluated(means, X, states):
    """Return nats a row of held-out rows, and how well their decoded states agree."""
    model = GaussianHMM(len(means[0]), covariance_type="diag")
    model.startprob_, model.transmat_, model.means_, model.covars_ = (np.array(m) for m in means)
    return model.score(X) / len(X), adjusted_rand_score(states, model.predict(X))


def measure(n, k=3, n_features=2, apart=1.2, seed=0):
    """Return held-out log likelihood, agreement and seconds of both, on one series."""
    X, states = simulated(2 * n, k, n_features, apart, seed)
    makers, seconds, found = {"skavi": ours, "hmmlearn": theirs}, {}, {}
    for _ in range(1 + _REPEATS):
        for name, make in makers.items():
            begin = process_time()
            means = make(X[:n], k, seed)
            seconds.setdefault(name, []).append(process_time() - begin)
            found[name] = means
    figures = {}
    for name, means in found.items():
        nats, agreement = evaluated(means, X[n:], states[n:])
        took = median(seconds[name][1:])
        figures[name] = {"held_out": nats, "ari": agreement, "seconds": took}
    return figures


def main(arguments=None):
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", nargs="+", type=int, default=[500, 2000, 10_000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked, found = parser.parse_args(arguments), {}
    torch.set_num_threads(1)
    for n in asked.steps:
        for seed in range(asked.seeds):
            found[f"{n} steps, seed {seed}"] = figures = measure(n, seed=seed)
            print(f"{n} steps, seed {seed}:", json.dumps(figures), flush=True)
    if asked.long:
        X, _ = simulated(_LONG, 3, 2, 1.2, 0)
        begin = process_time()
        ours(X, 3, 0, n_init=None)
        found[f"{_LONG} steps"] = {"seconds": process_time() - begin}
        print(f"{_LONG} steps:", json.dumps(found[f"{_LONG} steps"]), flush=True)
    asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
