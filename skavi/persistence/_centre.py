"""The numbers of a file evaluated once, at their own centre: what no fit leaves is not finite.

A fit takes columns whose largest cell is between 1e-30 and 1e30 in size, so that a row of ones has
a finite density under all that it leaves, however many sds it is away.
"""

from typing import Any

import torch
from torch import Tensor

from skavi._numerics.aligned import aligned
from skavi.families import DiagonalFactors, NormalFactors
from skavi.models import LatentVariableModel
from skavi.noise import ClosedForm, Noise
from skavi.objective import Objective

#: Roles of given columns that no coefficient goes with.
_AS_ONES = ("trials", "groups", "series")


def check_centre(objective: Objective, n_features: int, raw: Any, noise: Noise) -> None:
    """Refuse a model of skavi's whose ELBO is not finite at the centre of q.

    Parameters
    ----------
    objective : Objective
        Of the fitted components.
    n_features : int
        Explained columns of a row.
    raw : ndarray
        Of q(theta).
    noise : Noise
        The rule of the fit: its nodes are not made, but a closed form is used.

    Raises
    ------
    ValueError
        Saying whether the prior of the globals or a row's density is at fault.
    """
    raw_globals, name = aligned(raw), type(objective.model).__name__
    with torch.no_grad():
        if not bool(torch.isfinite(objective.global_term(raw_globals))):
            raise ValueError(f"model_: {name} gives q(theta) no finite density a priori")
        terms = _terms(objective, n_features, raw_globals, noise)
    if not bool(torch.isfinite(terms).all()):
        raise ValueError(f"model_: {name} gives no finite density of a row at the centre of q")


def _terms(objective: Any, n_features: int, raw_globals: Tensor, noise: Noise) -> Tensor:
    """Return the ELBO's term of a row, or its log density at the centre without a closed form."""
    model = objective.model
    X = _row(model, n_features)
    theta = objective.space.constrain(objective.global_factor(raw_globals).mean)
    if objective.has_states:
        if isinstance(noise, ClosedForm):
            return objective.row_terms(X.new_zeros(1, 0), raw_globals, X, None)
        return objective.log_joints_at(theta, X)
    mean, sd = (each.to(raw_globals) for each in model.initial_locals(theta, X))
    start: NormalFactors = DiagonalFactors(mean, sd)
    if isinstance(noise, ClosedForm):
        return objective.row_terms(objective.family.raw(start), raw_globals, X, None)
    return model.log_terms(theta, mean, X)


def _row(model: LatentVariableModel, n_features: int) -> Tensor:
    """Return a row of ones, which every model takes, with zeros for covariates."""
    columns = model.columns_
    row = torch.ones(1, n_features + columns.width, dtype=torch.float64)
    for role in columns.given:
        if role not in _AS_ONES:
            row[:, columns.slice(role, row.shape[1])] = 0.0
    return row
