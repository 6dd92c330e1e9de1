"""Fill missing cells of real tables: skavi's `impute` beside scikit-learn's imputers.

    python -m benchmarks.imputation [--quick] [--out results.json]

Cells of scikit-learn's bundled tables (columns standardised, constant ones left out) are removed at
random. Measured on the removed cells: root mean square error, the share that the 90 % intervals
cover (only skavi gives any), and seconds. skavi's number of components is that with the least error
on a tenth of the observed cells, hidden for the purpose; its seconds include that choice.
"""

import argparse
import json
import math
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import sklearn
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from skavi import FactorizedVI
from skavi.models import FactorAnalysis

TABLES = {
    "diabetes": load_diabetes,
    "breast_cancer": load_breast_cancer,
    "wine": load_wine,
    "digits": load_digits,
}
SHARES = (0.3, 0.1, 0.5)
COMPONENTS = (2, 4, 6, 8, 12, 16, 24)
_HIDDEN = 0.1
_Z90 = 1.6448536269514722  # half the width of a 90 % interval, in standard deviations


def standardised(name: str) -> np.ndarray:
    """Return a bundled table with columns of mean 0 and sd 1."""
    X = TABLES[name]().data.astype(float)
    X = X[:, X.std(0) > 0]
    return (X - X.mean(0)) / X.std(0)


def with_holes(X: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Remove a share of the observed cells at random; every column keeps a few."""
    X, rng = X.copy(), np.random.default_rng(seed)
    X[(rng.random(X.shape) < share) & ~np.isnan(X)] = np.nan
    return X


def rmse(filled, truth, where) -> float:
    """Root mean square error over the cells `where`."""
    return float(np.sqrt(np.mean((filled - truth)[where] ** 2)))


def fitted(X, n_components):
    """Return factor analysis with a noise variance a column, fitted to a table with holes."""
    model = FactorAnalysis(n_components, "diagonal")
    vi = FactorizedVI(model, tol=1e-3, max_iter=100, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return vi.fit(X)


def chosen(X) -> int:
    """Return the number of components that fills hidden cells best."""
    hidden = with_holes(X, _HIDDEN, seed=99)
    where = np.isnan(hidden) & ~np.isnan(X)
    errors: dict[int, float] = {}
    for n_components in COMPONENTS:
        if n_components >= X.shape[1]:
            break
        errors[n_components] = rmse(fitted(hidden, n_components).impute(hidden), X, where)
        if errors[n_components] > 1.03 * min(errors.values()):
            break
    return min(errors, key=lambda n: errors[n])


def skavi_run(X, truth, where) -> dict:
    """Choose, fit and fill."""
    start = time.perf_counter()
    n_components = chosen(X)
    filled, sd = fitted(X, n_components).impute(X, return_sd=True)
    seconds = time.perf_counter() - start
    inside = np.abs(filled - truth)[where] <= _Z90 * sd[where]
    return {
        "rmse": rmse(filled, truth, where),
        "coverage": float(inside.mean()),
        "seconds": seconds,
        "n_components": n_components,
    }


def rival_run(imputer, X, truth, where) -> dict:
    """Fill by one of scikit-learn's imputers, with its defaults."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        filled = imputer.fit_transform(X)
    return {"rmse": rmse(filled, truth, where), "seconds": time.perf_counter() - start}


def measure(name: str, share: float, seed: int) -> dict:
    """Measure all three on one table with one share of its cells removed."""
    truth = standardised(name)
    X = with_holes(truth, share, seed)
    where = np.isnan(X)
    return {
        "table": name,
        "share": share,
        "skavi": skavi_run(X, truth, where),
        "IterativeImputer": rival_run(IterativeImputer(random_state=0), X, truth, where),
        "KNNImputer": rival_run(KNNImputer(), X, truth, where),
    }


def line(run: dict) -> str:
    """Return one line of the table."""
    cells = [f"{run['table']:14s} {run['share']:.0%}"]
    for method in ("skavi", "IterativeImputer", "KNNImputer"):
        cells.append(f"{method} {run[method]['rmse']:.3f} ({run[method]['seconds']:.1f} s)")
    ours = run["skavi"]
    cells.append(f"coverage {ours['coverage']:.1%}, {ours['n_components']} components")
    return "   ".join(cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="wine and diabetes at 30 %% only")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    names = ["diabetes", "wine"] if arguments.quick else list(TABLES)
    shares = (0.3,) if arguments.quick else SHARES
    runs = []
    for share in shares:
        for name in names:
            runs.append(measure(name, share, seed=0))
            print(line(runs[-1]), flush=True)
            rival = min(runs[-1][m]["rmse"] for m in ("IterativeImputer", "KNNImputer"))
            runs[-1]["relative_to_better"] = runs[-1]["skavi"]["rmse"] / rival
            if arguments.out:
                versions = {
                    "python": platform.python_version(),
                    "scikit-learn": sklearn.__version__,
                }
                text = json.dumps({"versions": versions, "runs": runs}, indent=1)
                arguments.out.write_text(text + "\n")
    mean = math.prod(run["relative_to_better"] for run in runs) ** (1 / len(runs))
    print(f"error relative to the better rival, geometric mean: {mean:.3f}")


if __name__ == "__main__":
    main()
