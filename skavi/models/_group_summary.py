"""What inference functions read of a set of rows: numbers that do not depend on their order."""

import torch
from torch import Tensor

from skavi._data.grouped_rows import GroupedRows


def moments_of_units(
    X: GroupedRows, explained: Tensor, covariates: Tensor, of_unit: Tensor
) -> Tensor:
    """Return count, log count, means and second moments of every unit's rows, and its covariates.

    Parameters
    ----------
    X : GroupedRows
        Its weights count rows.
    explained, covariates : Tensor of shape (n_rows, ...)
        Of the rows. Those without any response do not count; a missing cell beside observed ones
        is taken as its column's mean in the unit.
    of_unit : Tensor of shape (n_units, n_group_covariates)

    Returns
    -------
    Tensor of shape (n_units, n_numbers)
    """
    observed = ~explained.isnan()
    weights = X.weights * observed.any(1).to(X.dtype)
    values = torch.cat([explained, covariates], 1)
    there = torch.cat([observed, torch.ones_like(covariates, dtype=torch.bool)], 1)
    values = torch.where(there, values, torch.zeros_like(values))
    counted = weights[:, None] * there.to(values)
    count = X.over_units(weights)[:, None]
    mean = X.over_units(counted * values) / X.over_units(counted).clamp_min(1e-300)
    values = torch.where(there, values, X.at_rows(mean))
    row, column = torch.triu_indices(values.shape[1], values.shape[1], device=values.device)
    away = values - X.at_rows(mean)
    products = away.index_select(1, row) * away.index_select(1, column)
    second = X.over_units(weights[:, None] * products)
    second = second / count.clamp_min(1e-300)
    return torch.cat([count, count.clamp_min(1e-300).log().clamp_min(-1), mean, second, of_unit], 1)
