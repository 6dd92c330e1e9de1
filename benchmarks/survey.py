"""A survey with holes: cells predicted by a table of mixed columns, and by usual imputers.

The data are statsmodels' ``fair`` (Fair 1978): ages, years, children, religiousness, education and
a rating of the marriage as ordered levels, two occupations as categories, whether there was an
affair. A fifth of the cells is hidden, and predicted in its own kind: errors are shares of wrong
categories, and root mean squares of ordered levels in the column's sds, rounded for all alike.

    python -m benchmarks.survey [--rows 1500] [--seed 0]
"""

import argparse
import time

import numpy as np
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, SimpleImputer

from skavi import FactorizedVI
from skavi.models import FactorAnalysis

ORDERED = "rate_marriage", "age", "yrs_married", "children", "religious", "educ"
CATEGORIES = "occupation", "occupation_husb"


def fair(n_rows, seed):
    """Return rows of the survey as numbers of levels, from 0: ordered ones, categories, a yes."""
    from statsmodels.datasets import fair

    table = fair.load_pandas().data.sample(n_rows, random_state=seed)
    columns = [np.unique(table[name], return_inverse=True)[1] for name in (*ORDERED, *CATEGORIES)]
    return np.column_stack([*columns, table["affairs"] > 0]).astype(float)


def by_us(X):
    """Return the table filled by factor analysis of mixed columns."""
    named = {"ordinal": [0, 1, 2, 3, 4, 5], "categorical": [6, 7], "bernoulli": [8]}
    vi = FactorizedVI(FactorAnalysis(2, likelihood=named), random_state=0)
    return vi.fit(X).impute(X)


def by_means(X):
    """Return it filled with means, and most frequent levels of categories."""
    filled = SimpleImputer().fit_transform(X)
    filled[:, 6:] = SimpleImputer(strategy="most_frequent").fit_transform(X)[:, 6:]
    return filled


def by_frequency(X):
    """Return it filled with most frequent levels."""
    return SimpleImputer(strategy="most_frequent").fit_transform(X)


def by_regressions(X):
    """Return it filled by scikit-learn's `IterativeImputer`."""
    return IterativeImputer(random_state=0, max_iter=30).fit_transform(X)


WAYS = {
    "skavi, mixed columns": by_us,
    "means": by_means,
    "most frequent": by_frequency,
    "IterativeImputer": by_regressions,
}


def errors(whole, filled, gone):
    """Return mean errors of ordered levels, in sds, and shares of wrong categories and answers."""
    last = whole.max(0)
    nearest = np.clip(np.round(filled), 0, last)
    ordered = [
        np.sqrt(np.mean((nearest - whole)[gone[:, j], j] ** 2)) / whole[:, j].std()
        for j in range(6)
    ]
    wrong = [np.mean((nearest != whole)[gone[:, j], j]) for j in (6, 7, 8)]
    return float(np.mean(ordered)), float(np.mean(wrong))


def compare(n_rows, seed):
    """Return errors and seconds of every way, by name."""
    whole = fair(n_rows, seed)
    gone = np.random.default_rng(seed).random(whole.shape) < 0.2
    X, found = np.where(gone, np.nan, whole), {}
    for name, way in WAYS.items():
        start = time.process_time()
        filled = way(X)
        found[name] = (*errors(whole, filled, gone), time.process_time() - start)
    return found


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{'':22} ordered levels   wrong categories   seconds")
    for name, (ordered, wrong, seconds) in compare(arguments.rows, arguments.seed).items():
        print(f"{name:22} {ordered:14.3f}   {wrong:16.3f}   {seconds:7.1f}")


if __name__ == "__main__":
    main()
