"""Checks and copies of a user's input: tables, sample weights, and the name of a device."""

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import validate_data

from skavi._data.rows import Rows
from skavi._data.sparse_rows import SparseRows
from skavi._numerics.aligned import aligned
from skavi._platform.private_names import check_sample_weight


def validated_table(estimator, X, sparse: bool, missing: bool, reset: bool):
    """Return X as a float array, or CSR if `sparse`; NaN is allowed if `missing`.

    `reset` sets the estimator's number and names of features; else they must agree with X.
    """
    with np.errstate(invalid="ignore"):  # scikit-learn sums infinite values to find them
        return validate_data(
            estimator,
            X,
            dtype=[np.float64, np.float32],
            accept_sparse="csr" if sparse else False,
            ensure_all_finite="allow-nan" if missing else True,
            reset=reset,
        )


def rows_of(X, sample_weight, device: torch.device, sparse: bool) -> Rows:
    """Return the rows of a validated table on a device, with weights of one by default."""
    if sparse:
        held: Any = SparseRows.from_scipy(X, device)
    else:
        held = aligned(X).to(device)
    if sample_weight is None:
        weights = np.ones(X.shape[0])
    else:
        weights = check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not (weights > 0).any():
            raise ValueError("sample_weight is zero for every row: nothing to fit.")
    return Rows(held, torch.tensor(weights).to(device))


def came_in_single(X, rows: Rows) -> bool:
    """Say whether X is a dense float32 table, so that stochastic steps may be in float32."""
    return X.dtype == np.float32 and isinstance(rows.X, torch.Tensor)


def device_named(device: str | torch.device) -> torch.device:
    """Return a usable device; "auto" is the GPU where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch has many different messages
        raise ValueError(
            f"device={str(device)!r} cannot be used here: {str(error).splitlines()[0]} "
            'Use "cpu", "cuda" or "auto".'
        ) from None
