"""Checks and copies of a user's input: tables, sample weights, and the name of a device."""

import math
import warnings
from contextlib import contextmanager
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from skavi._data.column_roles import (
    ALL_EXPLAINED,
    LABELS,
    ColumnRoles,
    Named,
    as_table,
    find_columns,
)
from skavi._data.finding_kinds import with_kinds
from skavi._data.grouped_rows import GroupedRows
from skavi._data.rows import Rows
from skavi._data.sparse_rows import SparseRows
from skavi._numerics.aligned import aligned
from skavi._platform.private_names import check_sample_weight, feature_names, safe_indexing
from skavi._platform.user_warnings import warn


class SampleWeightWarning(UserWarning):
    """The weights of a fit's rows look like shares, but are counts: q(theta) is then far too wide.

    Examples
    --------
    >>> import warnings
    >>> from skavi.diagnostics import SampleWeightWarning
    >>> with warnings.catch_warnings():  # the rows count for as few as the weights say
    ...     warnings.simplefilter("ignore", SampleWeightWarning)
    """


#: Mean weight below which rows are told to count for little. Not measured: order of magnitude.
_SMALL_WEIGHT = 0.1


def warn_of_shares(sample_weight) -> None:
    """Warn if weights sum to 1, or are small on average; whole numbers are counts for certain."""
    if sample_weight is None or np.isscalar(sample_weight):
        return
    weights = np.asarray(sample_weight, dtype=float)
    n_rows, total = len(weights), float(weights.sum())
    if (weights == np.round(weights)).all():
        return
    if math.isclose(total, 1.0, rel_tol=1e-6) or total < _SMALL_WEIGHT * n_rows:
        warn(
            f"sample_weight sums to {total:.3g} over {n_rows} rows. Weights are counts, so these "
            f"rows are worth {total:.3g}, and the prior may outweigh them. If the weights are "
            "shares, pass sample_weight * len(X) / sample_weight.sum().",
            SampleWeightWarning,
        )


#: Sizes between which a table's largest entry must lie: the prior spreads that fits start from are
#: in single precision (1e-45 to 3e38), and beyond it factor analysis ended at loadings of zero.
_SMALLEST, _LARGEST = 1e-30, 1e30


def validated_table(
    estimator,
    X,
    sparse: bool,
    missing: bool,
    reset: bool,
    roles: ColumnRoles = ALL_EXPLAINED,
    asked_by: str = "",
):
    """Return X as a float array, or CSR if `sparse`; NaN is allowed if `missing`.

    `reset` sets the estimator's number and names of features; else they must agree with X. Columns
    with a role come last, as numbers.
    """
    kinds: dict[str, Any] = {
        "dtype": [np.float64, np.float32],
        "accept_sparse": "csr" if sparse else False,
        "ensure_all_finite": "allow-nan" if missing else True,
    }
    # scikit-learn sums infinite values to find them
    with np.errstate(invalid="ignore"), _own_advice_on_holes(estimator, missing):
        if not roles.told:
            X = validate_data(estimator, X, **kinds, reset=reset)
        else:
            X = as_table(X)
            validate_data(estimator, X, skip_check_array=True, reset=reset)
            X, given = roles.rows(X, asked_by)
            X = check_array(X, **kinds, estimator=estimator, input_name="X")
    if reset:
        _require_ordinary_sizes(X)
    return _beside(X, given) if roles.told else X


@contextmanager
def _own_advice_on_holes(estimator, missing):
    """Say what helps where the model takes no missing cells, in place of scikit-learn's advice."""
    try:
        yield
    except ValueError as error:
        said = str(error).partition("\n")[0]
        model = getattr(estimator, "model", None)
        if missing or model is None or not said.endswith("contains NaN."):
            raise
        raise ValueError(
            f"{said} {type(model).__name__} takes no missing cells: leave these rows out, fill "
            "them first (skavi.Imputer), or use FactorAnalysis, BayesianDecoder or MixtureModel."
        ) from None


def roles_in(
    X, named: Named, asked_by: str, alone: bool, together: tuple[str, ...] = (), kinds=None
) -> ColumnRoles:
    """Return roles and kinds of a training table's columns: `find_columns` and `with_kinds`."""
    told = named or kinds is not None
    X = as_table(X) if told else X
    if not told or len(getattr(X, "shape", ())) != 2:  # no table: scikit-learn says so
        return ALL_EXPLAINED
    roles = find_columns(X, named, asked_by, alone, together) if named else ALL_EXPLAINED
    return with_kinds(X, roles, kinds, asked_by, alone)


def with_idle_columns(X, names, roles: ColumnRoles, filled: bool = False):
    """Return a frame of new rows with the columns that the model never reads, if X lacks them.

    Parameters
    ----------
    X : array or frame of new rows
    names : ndarray of str or None
        Of the columns of the fit.
    roles : ColumnRoles
        Of the fit. Where the model names what it explains, it leaves all other columns out.
    filled : bool
        Whether what is explained may be missing altogether, since it is to be predicted.

    Returns
    -------
    frame
        With the columns of the fit in their order, those added NaN; X itself if others are missing,
        which scikit-learn names.
    """
    here = None if names is None or not roles.response else feature_names(X)
    if here is None:
        return X
    needed = {*roles.places} if filled else {*roles.places, *roles.response}
    lacking = set(names) - set(here)
    if not lacking or lacking & {names[place] for place in needed} or set(here) - set(names):
        return X
    if hasattr(X, "reindex"):
        return X.reindex(columns=list(names))
    return X.with_columns(**dict.fromkeys(sorted(lacking), np.nan)).select(list(names))


def labels_of(X, roles: ColumnRoles, units) -> np.ndarray | None:
    """Return the label of each unit, as the user's table X has it; None: X names no groups."""
    if LABELS not in roles.given:
        return None
    (column,) = roles.given[LABELS]
    labels = np.asarray(safe_indexing(as_table(X), column.place, axis=1)).reshape(-1)
    return labels[units.first.cpu().numpy()]


def _beside(X, given):
    """Return explained columns, then given ones."""
    if scipy.sparse.issparse(X):
        return scipy.sparse.hstack([X, scipy.sparse.csr_array(given, dtype=X.dtype)], format="csr")
    return np.hstack([X, given.astype(X.dtype)])


def _require_ordinary_sizes(X) -> None:
    """Refuse to fit a table so large or so small that fits start from numbers like inf and 0."""
    values = X.data if scipy.sparse.issparse(X) else X
    if not values.size:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN: said elsewhere
        largest = max(np.nanmax(values), -np.nanmin(values))
    if largest == 0 or np.isnan(largest) or _SMALLEST <= largest <= _LARGEST:
        return
    raise ValueError(
        f"X's largest entry is {largest:.2g} in size, but fits need it between {_SMALLEST:g} and "
        f"{_LARGEST:g}: give X in other units, or standardise its columns."
    )


def rows_of(
    X, sample_weight, device: torch.device, sparse: bool, roles: ColumnRoles = ALL_EXPLAINED
) -> Rows:
    """Return the rows of a validated table on a device, with weights of one by default.

    Where a role names groups, the rows are `GroupedRows`: their weights count inside their units,
    which have the weight 1, or 0 where nothing is left in them.
    """
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
    if LABELS not in roles.given:
        return Rows(held, torch.tensor(weights).to(device))
    codes = held[:, roles.slice(LABELS, held.shape[1])][:, 0]
    units: Any = GroupedRows.by_code(held, torch.tensor(weights).to(held), codes)
    seen = ~held[:, : held.shape[1] - roles.width].isnan().all(1) & (units.weights > 0)
    return Rows(units, (units.over_units(seen.to(held.dtype)) > 0).double())


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
