"""How well a fit predicts new rows of groups that it knows."""

import math
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from skavi._data.grouped_rows import GroupedRows
from skavi._data.rows import Rows
from skavi._estimators.base import VariationalInference
from skavi._estimators.fitted_estimator import fitted_model, validated_rows
from skavi._platform.array_types import TableLike
from skavi._platform.forks_and_threads import guarded
from skavi.distributions import defaults_of
from skavi.models import GroupedModel
from skavi.posterior._predictive import draws_of

#: Draws of theta and z: as many as predictive moments take.
_N_DRAWS = 256


@guarded
def score_known_groups(estimator: VariationalInference, X: TableLike, y: object = None) -> float:
    """Return the mean log predictive density of rows whose groups the fit knows, in nats a row.

    The responses in X are not used for inference: a group has the factor that the fit gave it, and
    a group that the fit did not know its prior. Higher is better. As a scorer,
    ``cross_val_score(vi, X, cv=KFold(5, shuffle=True), scoring=score_known_groups)``
    asks how well new rows of known groups are predicted, where ``score`` with `GroupKFold` asks
    how well new groups are.

    Parameters
    ----------
    estimator : FactorizedVI or AmortizedVI
        Fitted, of a `skavi.models.GroupedModel`.
    X : array-like of shape (n_samples, n_features)
        Rows with their responses.
    y : None
        Ignored.

    Returns
    -------
    float

    Raises
    ------
    TypeError
        If the model has no groups.

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import FactorizedVI
    >>> from skavi.diagnostics import score_known_groups
    >>> from skavi.models import MixedEffects
    >>> rng = np.random.default_rng(0)
    >>> g = np.repeat(np.arange(20), 10)
    >>> X = np.column_stack([3 * rng.normal(size=20)[g] + rng.normal(size=200), g])
    >>> vi = FactorizedVI(MixedEffects()).fit(X[::2])
    >>> new = X[1::2] + [0, 100]  # the same rows, of groups that the fit does not know
    >>> score_known_groups(vi, X[1::2]) > score_known_groups(vi, new) + 0.5
    True
    """
    check_is_fitted(estimator, "elbo_")
    model, fit = estimator.model_, fitted_model(estimator)
    if not isinstance(model, GroupedModel):
        raise TypeError(
            f"score_known_groups needs a fit of a GroupedModel, but {type(model).__name__} has no "
            "groups: use the estimator's score."
        )
    rows = validated_rows(estimator, X)
    table: Any = rows.X
    units: Any = GroupedRows.of(table)
    hidden = units.table.clone()
    hidden[:, : model.n_explained(units)] = math.nan
    blind: Any = GroupedRows(hidden, units.weights, units.unit, units.codes)
    here = fit.at(Rows(blind, rows.weights))
    factors, total = here.factors(), None
    with torch.no_grad(), defaults_of(units.table):
        for theta, noise in draws_of(here.objective, here.raw_globals, _N_DRAWS):
            z = units.at_rows(factors.draw(noise))
            density = model.log_likelihood(theta, z, units.table)
            total = density if total is None else torch.logaddexp(total, density)
    assert total is not None
    return float(np.mean((total - math.log(_N_DRAWS)).cpu().numpy()))
