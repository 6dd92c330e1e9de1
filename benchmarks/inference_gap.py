"""Where the nats of a decoder of digits go: `python benchmarks/inference_gap.py [out.json]`.

The table of Cremer, Li & Duvenaud (2018) on 8 x 8 digits, by width of the function and number of
fitted rows: nats a row that the family and the function lose, and the ELBO a row, on fitted rows
and on new ones. The decoder is learned beside each function, as there.
"""

import json
import os
import sys
import warnings
from time import process_time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from skavi import AmortizedVI, FactorizedVI
from skavi.diagnostics import inference_gap
from skavi.inference_functions import MLP
from skavi.models import BayesianDecoder

ROWS, WIDTHS, N_TEST = (50, 200), (2, 8, 32), 50


def digits():
    """Return all digits, a pixel inked or not."""
    return (load_digits().data > 7).astype(float)


def estimators():
    """Yield a name and an unfitted estimator for each way to infer."""
    decoder = BayesianDecoder(2, (16,), likelihood="bernoulli", weights="point")
    yield "F-VI", FactorizedVI(decoder, max_iter=300, random_state=0)
    for width in WIDTHS:
        function = MLP(hidden_layer_sizes=(width,))
        yield f"width {width}", AmortizedVI(decoder, function, max_iter=1000, random_state=0)


def measured(name, vi, X, test):
    """Fit one way to infer and return its line of the table: nats a row, on X and on `test`."""
    begin = process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # part of the amortization
        vi.fit(X)
    gap = inference_gap(vi, X, test, random_state=0)
    line = {"rows": len(X), "function": name}
    for kind, part in (("train", gap), ("test", gap.generalization)):
        for what in ("family", "amortization", "optimisation", "elbo"):
            line[f"{what}, {kind}"] = round(float(getattr(part, what).mean()), 3)
        line[f"known, {kind}"] = part.n_known
    return line | {"seconds": round(process_time() - begin, 1)}


def main(out=None):
    """Measure each, print a line of the table each, and write all of them."""
    X = digits()
    found = []
    for n_rows in ROWS:
        for name, vi in estimators():
            found.append(measured(name, vi, X[:n_rows], X[-N_TEST:]))
            print(found[-1], flush=True)
    if out:
        with open(out, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
