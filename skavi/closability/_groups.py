"""Whether the factors of groups depend on their rows as a set, or on an order of theirs."""

import copy

import numpy as np
import torch
from torch import Tensor

from skavi._data.column_roles import LABELS, ColumnRoles, GivenColumn, as_table, find_columns
from skavi._data.grouped_rows import GroupedRows
from skavi.distributions import defaults_of

#: Rows that are probed, and at how many points. Not measured: order of magnitude.
_N_ROWS, _N_POINTS = 120, 3
#: Rows of a simulated group, at most: each group has one to so many.
_LARGEST = 6


def order_dependence(model, X, n_features: int, generator) -> tuple[float, float]:
    """Return how far the scores of groups move when their rows, or the groups, change places.

    Relative to the largest score: of rows within their groups, and of whole groups.
    """
    model, units = _units(model, X, n_features, generator)
    within = apart = 0.0
    for _ in range(_N_POINTS):
        theta, z, other = _point(model, units, generator)
        order = torch.randperm(len(units), generator=generator)
        inside = _shuffled_inside(units, generator)
        here = _score(model, theta, z, other, units)
        there = _score(model, theta, z, other, inside)
        moved = _score(model, theta, z[order], other[order], _in_order(units, order))
        scale = here.abs().max().clamp_min(1e-300)
        within = max(within, float((there - here).abs().max() / scale))
        apart = max(apart, float((moved - here[order]).abs().max() / scale))
    return within, apart


def _point(model, units, generator):
    """Return a typical theta, and two values of every group's latents."""
    space = model.global_space(units)
    centre, spread = (each.to(units.dtype) for each in space.start(generator))
    noise = torch.randn(len(centre), generator=generator, dtype=units.dtype)
    theta = space.constrain(centre + 0.3 * spread * noise)
    atoms = model.atoms(space, units)
    if atoms is not None:
        drawn = torch.randint(len(atoms), (2, len(units)), generator=generator)
        return theta, *atoms[drawn]
    centre, sd = model.initial_locals(theta, units)
    return theta, *(
        centre + sd * torch.randn(centre.shape, generator=generator, dtype=units.dtype)
        for _ in range(2)
    )


def _score(model, theta, z, other, units) -> Tensor:
    """Return how much more probable one value of each group's latents is than the other."""
    with torch.no_grad(), defaults_of(units.table):
        return model.log_terms(theta, z, units) - model.log_terms(theta, other, units)


def _shuffled_inside(units, generator):
    """Return the same groups, the rows of each in another order."""
    order = torch.randperm(len(units.unit), generator=generator)
    order = order[torch.argsort(units.unit[order], stable=True)]
    places = torch.argsort(units.unit, stable=True)
    shuffled = torch.empty_like(order)
    shuffled[places] = order
    return GroupedRows(units.table[shuffled], units.weights[shuffled], units.unit, units.codes)


def _in_order(units, order):
    """Return the same groups in another order."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    rows = torch.argsort(place[units.unit], stable=True)
    unit = place[units.unit][rows]
    return GroupedRows(units.table[rows], units.weights[rows], unit, units.codes[order])


def _units(model, X, n_features, generator):
    """Return the groups to probe with, and the model that knows their columns."""
    name = type(model).__name__
    if isinstance(X, GroupedRows):
        return model, _first(X)
    model = copy.copy(model)
    if X is None:
        return _made(model, n_features, generator)
    X = as_table(X)
    if not model.columns_.places:
        model.columns_ = find_columns(X, model.named_columns(), name, True, model.roles_together)
    explained, given = model.columns_.rows(X, name)
    rows = np.hstack([np.asarray(explained, dtype=float), given])
    units = _first(_grouped(model, torch.tensor(rows)))
    model.check_data(units)
    return model.adapted(units, units.new_ones(len(units))), units


def _made(model, n_features, generator):
    """Return random groups that the model can take."""
    given, place = {}, n_features
    for role, columns in model.named_columns().items():
        if role == "response":
            continue
        given[role] = tuple(
            GivenColumn(place + i, str(column), (), role == LABELS)
            for i, column in enumerate(columns)
        )
        place += len(columns)
    model.columns_ = ColumnRoles(given, place)
    width = n_features + model.columns_.width
    normal = torch.randn(_N_ROWS, width, generator=generator, dtype=torch.float64)
    codes = torch.repeat_interleave(
        torch.arange(_N_ROWS), torch.randint(1, _LARGEST, (_N_ROWS,), generator=generator)
    )[:_N_ROWS]
    failure: Exception | None = None
    for rows in (normal, normal.exp(), (3 * normal.abs()).round(), (normal > 0).double()):
        rows = torch.cat([rows[:, :n_features], normal[:, n_features:]], 1)
        rows[:, model.columns_.slice(LABELS, width)] = codes[:, None].double()
        units = _grouped(model, rows)
        at = model.columns_.slice("group_covariates", width)
        units.table[:, at] = units.at_rows(units.table[units.first][:, at])
        try:
            model.check_data(units)
            adapted = model.adapted(units, units.new_ones(len(units)))
            theta, z, other = _point(adapted, units, generator)
            if bool(_score(adapted, theta, z, other, units).isfinite().all()):
                return adapted, units
        except ValueError as error:  # outside the support
            failure = error
    raise failure or ValueError(
        f"{type(model).__name__}: the log joint is not finite at random rows: pass X."
    )


def _grouped(model, rows):
    codes = rows[:, model.columns_.slice(LABELS, rows.shape[1])][:, 0]
    return GroupedRows.by_code(rows, rows.new_ones(len(rows)), codes)


def _first(units):
    """Return the first groups, of 120 rows together, at least two."""
    few = max(2, int((units.sizes.cumsum(0) <= _N_ROWS).sum()))
    return units[:few]
