"""Fit every model to tables of extreme numbers: each fit is right, or one sentence says why not.

    python benchmarks/extremes.py [--only WORD ...] [--out FILE]

A fit counts as right if all that it gives is finite, and it either has converged to an ELBO that a
fit of another seed does not beat (for normal and Student-t factor analysis: to the ELBO of the
plain table, shifted by the known constant), or warns. Seconds are processor time, measured and
limited in one process.
"""

import argparse
import json
import math
import signal
import sys
import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from skavi import AmortizedVI, FactorizedVI
from skavi.closability import AmortizationWarning
from skavi.models import (
    BayesianDecoder,
    CouplingBiasWarning,
    FactorAnalysis,
    GaussianProcess,
    LocalLevel,
    NonlinearModel,
    RandomEffects,
    TopicModel,
)

N_ROWS, N_COLUMNS = 40, 5
#: Seconds of processor time in which a fit must end, or say why not.
LIMIT = 20.0
#: Nats a row within which two fits of one problem agree, or this share of the ELBO.
_APART, _RELATIVE = 0.05, 1e-6
#: What is said of plain tables too, and so says nothing of an extreme one.
_ALWAYS = {CouplingBiasWarning, AmortizationWarning}
#: A sentence, not a page.
_LONGEST = 600

ESTIMATORS = {"F-VI": FactorizedVI, "A-VI": AmortizedVI}


def numbers(rng):
    """Return rows of two factors and noise."""
    Z = rng.normal(size=(N_ROWS, 2))
    return Z @ rng.normal(size=(2, N_COLUMNS)) + 0.5 * rng.normal(size=(N_ROWS, N_COLUMNS))


def counts(rng):
    """Return overdispersed counts."""
    return rng.poisson(np.exp(1.0 + 0.5 * numbers(rng))).astype(float)


def answers(rng):
    """Return zeros and ones."""
    return (numbers(rng) > 0).astype(float)


def studies(rng):
    """Return estimates and standard errors."""
    errors = rng.uniform(0.3, 1.0, N_ROWS)
    return np.column_stack([1.0 + 0.7 * rng.normal(size=N_ROWS) + errors * rng.normal(), errors])


def series(rng):
    """Return a noisy walk."""
    return (np.cumsum(rng.normal(size=N_ROWS)) + rng.normal(size=N_ROWS))[:, None]


def curve(rng):
    """Return positions and values of a smooth curve."""
    t = np.sort(rng.uniform(0, 8, N_ROWS))
    return np.column_stack([t, np.sin(t) + 0.5 * rng.normal(size=N_ROWS)])


#: Name: model, the table it explains.
MODELS = {
    "normal isotropic": (FactorAnalysis(2), numbers),
    "normal diagonal": (FactorAnalysis(2, "diagonal"), numbers),
    "student_t isotropic": (FactorAnalysis(2, likelihood="student_t"), numbers),
    "student_t diagonal": (FactorAnalysis(2, "diagonal", likelihood="student_t"), numbers),
    "bernoulli": (FactorAnalysis(2, likelihood="bernoulli"), answers),
    "poisson": (FactorAnalysis(2, likelihood="poisson"), counts),
    "negative_binomial isotropic": (FactorAnalysis(2, likelihood="negative_binomial"), counts),
    "negative_binomial diagonal": (
        FactorAnalysis(2, "diagonal", likelihood="negative_binomial"),
        counts,
    ),
    "TopicModel": (TopicModel(2), counts),
    "RandomEffects": (RandomEffects(), studies),
    "LocalLevel": (LocalLevel(), series),
    "LocalLevel known": (LocalLevel(1.0, 1.0), series),
    "GaussianProcess": (GaussianProcess(), curve),
    "NonlinearModel": (NonlinearModel(), series),
    "BayesianDecoder": (BayesianDecoder(2, (4,)), numbers),
    "BayesianDecoder poisson": (BayesianDecoder(2, (4,), likelihood="poisson"), counts),
}


def changed_cell(value):
    """Return a change of one cell of the table's column of values."""

    def change(X):
        X = X.copy()
        X[3, _values(X)] = value
        return X

    return change


def _values(X):
    """Return the column of values: the second of position and value, else the first."""
    return 1 if X.shape[1] == 2 and (np.diff(X[:, 0]) > 0).all() else 0


def _set(X, index, value):
    X = X.copy()
    X[index] = value
    return X


#: Name: what becomes of the table.
TABLES = {
    "plain": lambda X: X,
    "x 1e-150": lambda X: X * 1e-150,
    "x 1e-12": lambda X: X * 1e-12,
    "x 1e6": lambda X: X * 1e6,
    "x 1e8": lambda X: X * 1e8,
    "x 1e12": lambda X: X * 1e12,
    "x 1e150": lambda X: X * 1e150,
    "+ 1e9": lambda X: X + 1e9 * (np.arange(X.shape[1]) == _values(X) if X.shape[1] == 2 else 1),
    "constant": lambda X: np.full_like(X, 3.0),
    "outlier 1e8": changed_cell(1e8),
    "cell 1e6": changed_cell(1e6),
    "cell 1e9": changed_cell(1e9),
    "all zero": np.zeros_like,
    "a zero column": lambda X: _set(X, (slice(None), _values(X)), 0.0),
    "a NaN row": lambda X: _set(X, 3, np.nan),
    "one row": lambda X: X[:1],
    "one column": lambda X: X[:, :1],
    "n < p": lambda X: X[:3],
}


@dataclass
class Record:
    """What came of one fit."""

    model: str
    estimator: str
    table: str
    seconds: float = 0.0
    verdict: str = ""
    said: str = ""
    elbo: float = math.nan
    n_iter: int = 0


class OutOfTimeError(BaseException):
    """The limit of processor time has passed."""


def _out_of_time(*_):
    raise OutOfTimeError


def run(model, estimator, table) -> Record:
    """Fit a model to a table, and judge the outcome."""
    record = Record(model, estimator, table)
    made, rows = MODELS[model]
    plain = rows(np.random.default_rng(0))
    with np.errstate(all="ignore"):
        X = TABLES[table](plain)
    signal.signal(signal.SIGPROF, _out_of_time)
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            vi = ESTIMATORS[estimator](made, random_state=0).fit(X)
            record.seconds = time.process_time() - began
            problem = not_finite(vi, X)
        record.said = " | ".join(str(w.message)[:200] for w in caught)
        record.elbo, record.n_iter = float(vi.elbo_), int(vi.n_iter_)
        signal.setitimer(signal.ITIMER_PROF, LIMIT)  # a fit of another seed may take as long
        kinds = {w.category for w in caught} - _ALWAYS
        warned = any(issubclass(kind, UserWarning) for kind in kinds)
        record.verdict = problem or ("warned" if warned else judged(vi, X, plain, model, table))
    except OutOfTimeError:
        record.verdict, record.seconds = "SLOW", time.process_time() - began
        record.said = _where_it_was()
    except Exception as error:
        record.seconds = time.process_time() - began
        ours = "skavi" in traceback.extract_tb(error.__traceback__)[-1].filename
        known = isinstance(error, ValueError | TypeError | FloatingPointError)
        text = str(error)
        scikit = "Input X contains" in text or "minimum of" in text
        short = len(text.splitlines()[0]) < _LONGEST if text else False
        record.verdict = "sentence" if (ours or scikit) and known and short else "TRACEBACK"
        record.said = f"{type(error).__name__}: {text[:400]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return record


def _where_it_was():
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [f"{Path(f.filename).stem}.{f.name}" for f in frames if "skavi" in f.filename]
    return " > ".join(ours[2:12])


def not_finite(vi, X) -> str:
    """Name the first result that is not a finite number."""
    q = vi.global_posterior_
    for name, mean in q.mean.items():
        if not (np.isfinite(mean).all() and np.isfinite(q.sd[name]).all()):
            return f"NOT FINITE: {name}"
    posterior = vi.posterior(X)
    posterior = getattr(posterior, "logits", posterior)
    if not (np.isfinite(vi.transform(X)).all() and (np.asarray(posterior.sd) > 0).all()):
        return "NOT FINITE: transform"
    if not (math.isfinite(vi.elbo_) and math.isfinite(vi.score(X))):
        return "NOT FINITE: elbo"
    return ""


def judged(vi, X, plain, model, table) -> str:
    """Compare the ELBO with what it must be."""
    nats_a_row = _APART + 2 * vi.tol_
    allowed = nats_a_row * len(X) + _RELATIVE * abs(vi.elbo_)
    if not vi.converged_:
        return "NOT CONVERGED, NO WORD"
    again = type(vi)(MODELS[model][0], random_state=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = model.startswith(("normal", "student_t")) and table.startswith(("x", "+"))
        if known:
            reference = again.fit(plain).elbo_
            if table.startswith("x"):
                reference -= X.size * math.log(float(table[2:]))
        else:
            reference = again.fit(X).elbo_
    below = reference - vi.elbo_
    if below > allowed or (known and -below > allowed):
        return f"WRONG: {below:.3g} nats below {'the plain table' if known else 'another seed'}"
    return "right: equivariant" if known else "right: seeds agree"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="words that a case's name must hold")
    parser.add_argument("--not", nargs="*", default=[], dest="without", help="and must not hold")
    parser.add_argument("--out", type=Path, help="file for one JSON record a line")
    arguments = parser.parse_args()
    for model in MODELS:
        for estimator in ESTIMATORS:
            for table in TABLES:
                name = f"{estimator} / {model} / {table}"
                if not all(word in name for word in arguments.only):
                    continue
                if any(word in name for word in arguments.without):
                    continue
                record = run(model, estimator, table)
                print(f"{name:60s} {record.seconds:6.1f} s  {record.verdict}  {record.said[:150]}")
                sys.stdout.flush()
                if arguments.out:
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(asdict(record)) + "\n")


if __name__ == "__main__":
    main()
