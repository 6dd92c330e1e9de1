"""Checks of a model on the data at hand, once, before any work."""

from dataclasses import replace
from numbers import Integral

import torch

from skavi import _fit
from skavi._rows import Rows
from skavi.objective import Objective


def validated_objective(model, family, global_family, rows: Rows, generator) -> Objective:
    """Return the objective, after one evaluation of the model at its start has made sense.

    Raises
    ------
    TypeError, ValueError
        Naming the method of the model that is off, with what was got and what is needed.
    """
    n_features = rows.X.shape[1]
    n_latents = model.n_latents(n_features)
    if not isinstance(n_latents, Integral) or n_latents < 1:
        raise ValueError(
            f"{type(model).__name__}.n_latents({n_features}) returned {n_latents!r}: it must be an "
            "integer >= 1."
        )
    if not model.rowwise and not bool((rows.weights == 1).all()) and model.one_log_joint:
        raise ValueError(
            f"sample_weight needs a term a row, but {type(model).__name__} gives one log joint for "
            "all rows: subclass HierarchicalModel, or leave sample_weight out."
        )
    objective = _fit.bind(model, family, global_family, rows.X)
    globals_ = _fit.start_globals(objective, rows, generator)
    theta = objective.space.constrain(objective.global_factor(globals_).mean)
    raw = _fit.start_locals(objective, globals_, rows.X)
    z = objective.local_factors(raw).mean
    model.check_shapes(theta, z[:3], rows.X[:3])
    terms = model.log_terms(theta, z, rows.X)
    _check_terms(model, terms, rows.X)
    return replace(objective, batched=_goes_through_vmap(objective, globals_, z, rows.X))


def _check_terms(model, terms, X):
    name = type(model).__name__
    if tuple(terms.shape) not in {(), (len(X),)}:
        raise ValueError(
            f"{name}'s log density has shape {tuple(terms.shape)} for {len(X)} rows: log_local "
            f"must give ({len(X)},), log_joint a scalar."
        )
    bad = (~torch.isfinite(terms)).nonzero()
    if len(bad):
        where = f"first at row {int(bad[0, 0])}" if terms.dim() else "for all rows together"
        raise ValueError(
            f"{name}'s log joint is not finite at the start ({where}): check that X lies in the "
            "support of the likelihood and that no density overflows."
        )


def _goes_through_vmap(objective, globals_, z, X):
    """Try the log joint under vmap; some distributions (Multinomial) have to be looped over."""
    u = objective.global_factor(globals_).mean

    def density(u, z):
        return objective.model.log_terms(objective.space.constrain(u), z, X)

    try:
        torch.func.vmap(density)(torch.stack([u, u]), torch.stack([z, z]))
    except RuntimeError:
        return False
    return True
