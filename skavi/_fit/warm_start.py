"""A start from another estimator's fit, as `init` and `warm_start` ask for it."""

from sklearn.utils.validation import check_is_fitted

from skavi._data.rows import Rows
from skavi.objective import Objective
from skavi.solvers import State


def state_of(source, objective: Objective, rows: Rows) -> State:
    """Return where a fitted estimator stands, as raw factors of the objective's own families.

    Raises
    ------
    ValueError
        If it was fitted on other features, or with a model of other latents or globals.
    """
    check_is_fitted(source, "elbo_", msg="init must be a fitted estimator.")
    if source.n_features_in_ != rows.X.shape[1]:
        raise ValueError(
            f"init was fitted on {source.n_features_in_} features, but X has {rows.X.shape[1]}."
        )
    theirs = source._objective(rows.X)
    if theirs.n_latents != objective.n_latents or theirs.space.shapes != objective.space.shapes:
        raise ValueError(
            "init was fitted with a model of other latents or globals: "
            f"{theirs.n_latents} latents, globals {dict(theirs.space.shapes)}; here "
            f"{objective.n_latents} latents, globals {dict(objective.space.shapes)}."
        )
    raw = source._raw_locals(rows)
    globals_ = source._globals(rows.weights)
    locals_ = objective.family.raw(theirs.local_factors(raw))
    globals_ = objective.global_family.raw(theirs.global_factor(globals_))
    return State({"values": locals_}, globals_)
