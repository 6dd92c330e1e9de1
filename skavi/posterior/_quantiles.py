"""The quantiles that are shown of a posterior, and their labels."""

import numpy as np

#: The median and the ends of the 90 % interval.
SHOWN_QUANTILES = (0.05, 0.5, 0.95)


def probabilities(q):
    q = np.asarray(q, dtype=np.float64)
    if not ((q >= 0) & (q <= 1)).all():
        raise ValueError(f"q={q.tolist()!r}: probabilities must be in [0, 1].")
    return q


def percent(q):
    return f"{100 * q:g}%"


def shown(n, most, what):
    return f"The first {most} of {n} {what}. " if n > most else ""
