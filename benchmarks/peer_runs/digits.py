"""Factor analysis on the digits: scikit-learn's maximum likelihood against our posteriors."""

import statistics
import warnings
from time import perf_counter

from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from benchmarks.fresh import call
from benchmarks.paper_experiments.report import Table

WANTED = 3.0
_REPEATS = 9
METHODS = ("scikit-learn", "FactorizedVI", "AmortizedVI")


def run(method, n_rows):
    """Return seconds of the first fit and of later ones (median), iterations and ELBO."""
    X = load_digits().data[:n_rows]
    first, _ = _seconds(method, X)
    later = [_seconds(method, X) for _ in range(_REPEATS)]
    _, estimator = later[-1]
    iterations = estimator.n_iter_
    value = getattr(estimator, "elbo_", None)
    return first, statistics.median(seconds for seconds, _ in later), iterations, value


def _seconds(method, X):
    estimator = _estimator(method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        begin = perf_counter()
        estimator.fit(X)
        return perf_counter() - begin, estimator


def _estimator(method):
    if method == "scikit-learn":
        from sklearn.decomposition import FactorAnalysis

        return FactorAnalysis(5, random_state=0)
    import skavi
    from skavi.models import FactorAnalysis

    return getattr(skavi, method)(FactorAnalysis(n_components=5), random_state=0)


def compare(quick, rows):
    """Return the table and the promises."""
    lines, seconds = [], {}
    for method in METHODS:
        arguments = {"method": method, "n_rows": rows}
        returned = call("benchmarks.peer_runs.digits:run", arguments)
        if returned.value is None:
            lines.append([method, returned.reason[:60], *[None] * 4])
            continue
        first, later, n_iter, elbo = returned.value
        seconds[method] = first, later
        lines.append([method, first, later, n_iter, elbo, round(returned.peak_mb)])
    columns = ["method", "first fit s", "later fits s (median)", "iterations", "ELBO", "peak MB"]
    table = Table("digits: factor analysis with 5 components", columns, lines)
    return table, [row for method in METHODS[1:] for row in _promised(method, seconds)]


def _promised(method, seconds):
    """Compare with scikit-learn's fit: first with first, later with later."""
    rows = []
    for i, which in enumerate(("first fit", "later fits")):
        name = f"digits: {method} over scikit-learn's FactorAnalysis, {which}"
        if method not in seconds or METHODS[0] not in seconds:
            rows.append([name, WANTED, None, False])
            continue
        ratio = seconds[method][i] / seconds[METHODS[0]][i]
        rows.append([name, WANTED, ratio, ratio <= WANTED])
    return rows
