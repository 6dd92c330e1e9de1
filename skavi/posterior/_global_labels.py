"""Names along the dimensions of the globals: of columns of X, latents, states and covariates."""

from collections.abc import Sequence

import numpy as np

from skavi.models import LatentVariableModel

#: A dimension's names, or None where it has none and is counted.
Names = Sequence[str] | None


def dimension_names(
    model: LatentVariableModel, feature_names: Names, n_features: int
) -> dict[str, tuple[Names, ...]]:
    """Return the names along each dimension of the globals whose dimensions the model knows.

    Parameters
    ----------
    model : LatentVariableModel
        As fitted.
    feature_names : sequence of str or None
        Of all columns of X.
    n_features : int
        Of rows as the model gets them, given columns included.
    """
    known = dimension_labels(model, feature_names, n_features)
    by_dims = {
        name: tuple(known.get(_plain(dim)) for dim in dims)
        for name, dims in model.global_dims().items()
    }
    return by_dims | dict(model.global_labels())


def dimension_labels(
    model: LatentVariableModel, feature_names: Names, n_features: int
) -> dict[str, Names]:
    """Return the names of columns, latents, states and covariates, by the dimension's name.

    In a table of mixed columns those of each kind have a dimension, and levels of each column.
    """
    roles = model.columns_
    if feature_names is not None and roles.places:
        feature_names = [feature_names[place] for place in roles.explained]
    latents = model.latent_names(n_features - roles.width)
    given = roles.labels("covariates") or None
    of_kinds: dict[str, Names] = {}
    if feature_names is not None:
        for name, kind in zip(feature_names, roles.kinds, strict=False):
            of_kinds[kind.likelihood] = [*(of_kinds.get(kind.likelihood) or ()), str(name)]
    levels = {f"level{i}": kind.levels or None for i, kind in enumerate(roles.kinds)}
    return {
        **of_kinds,
        **levels,
        "feature": None if feature_names is None else [str(name) for name in feature_names],
        "latent": latents,
        "component": latents,
        "next": latents,
        "covariate": given,
    }


def place_named(labels: tuple[Names, ...], index: tuple[int, ...]) -> tuple[str | int, ...]:
    """Return the place of a number in its global: names where there are some, else positions."""
    padded = labels if len(labels) == len(index) else (None,) * len(index)
    pairs = zip(padded, index, strict=True)
    return tuple(i if names is None or i >= len(names) else str(names[i]) for names, i in pairs)


def label(row: Sequence) -> str:
    """Return the name of a number, as in loadings[age, factor0]."""
    name, place = row[:2]
    return f"{name}[{', '.join(map(str, place))}]" if place else str(name)


def arviz_labels(
    model: LatentVariableModel, feature_names: Names, n_features: int
) -> tuple[dict[str, tuple[str, ...]], dict[str, np.ndarray]]:
    """Return names of the globals' dimensions, and labels along those that have some."""
    dims = dict(model.global_dims())
    known = dimension_labels(model, feature_names, n_features)
    coords = {
        dim: np.array(known[_plain(dim)])
        for names in dims.values()
        for dim in names
        if known.get(_plain(dim))
    }
    for name, labels in model.global_labels().items():
        dims[name] = tuple(f"{name}_dim_{i}" for i in range(len(labels)))
        coords |= dict(zip(dims[name], map(np.array, labels), strict=True))
    return dims, coords


def _plain(dim: str) -> str:
    """Return the name of a dimension without the number of its repetition, as in feature_2."""
    return dim.partition("_")[0]
