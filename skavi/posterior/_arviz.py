"""ArviZ's DataTree of draws: one chain, with named dimensions."""

from collections.abc import Mapping

import numpy as np

from skavi._platform.optional_imports import require

#: Groups that hold data, not draws.
_DATA = {"observed_data"}


def data_tree(
    groups: Mapping[str, Mapping[str, np.ndarray]],
    dims: Mapping[str, tuple[str, ...]],
    coords: Mapping[str, np.ndarray],
    attrs: Mapping[str, object],
):
    """Return groups of variables, draws first, as ArviZ's DataTree.

    Parameters
    ----------
    groups : dict of str to dict of str to ndarray
        ArviZ's group names; arrays of shape (n_draws, ...), or (...) in "observed_data".
    dims : dict of str to tuple of str
        Names of a variable's dimensions after the draws.
    coords : dict of str to ndarray
        Labels along a dimension.
    attrs : dict
        Attributes of the tree.

    Raises
    ------
    ImportError
        If arviz-base is not installed.
    """
    arviz = require("arviz_base", "skavi[arviz]")
    data = {
        group: {name: value if group in _DATA else value[None] for name, value in values.items()}
        for group, values in groups.items()
    }
    used = {name: list(names) for name, names in dims.items()}
    return arviz.from_dict(data, dims=used, coords=dict(coords), attrs={"/": dict(attrs)})


def row_labels(index, n_rows: int) -> np.ndarray:
    """Return labels of rows: those of a pandas index (objects as text), or 0, 1, ..."""
    labels = np.arange(n_rows) if index is None else np.asarray(index)
    return np.array([str(label) for label in labels]) if labels.dtype == object else labels
