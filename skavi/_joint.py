"""What a fit over several ranks can be asked, and who takes part."""

from sklearn.callback import ProgressBar

from skavi._group import ALONE, Group, Ranks
from skavi.models import LatentVariableModel

_READ_ALL_ROWS = ("adapted", "initial_globals", "global_optimum", "compressed")


def group_of(X, shared: bool) -> Group:
    """Return who holds the rows of a table of which X is all, or this rank's part."""
    return Ranks(*X.shape) if shared else ALONE


def check_joint(estimator, model, function) -> None:
    """Refuse, before any work, what ranks with rows of their own cannot do together.

    Raises
    ------
    ValueError
        If the model couples rows, reads sparse ones, or adds up rows without `total`; if the
        inference function reads neighbours; or if callbacks are set.
    """
    name = type(model).__name__
    if not model.rowwise or model.ordered:
        raise ValueError(
            f"Rows over several ranks must be independent given theta, but {name} couples them: "
            "fit all rows in one process."
        )
    if model.accepts_sparse:
        raise ValueError(
            f"Rows over several ranks must be dense, but {name} reads sparse ones: fit all rows in "
            "one process, or in turn with partial_fit."
        )
    for method in _READ_ALL_ROWS:
        own = getattr(type(model), method)
        base = getattr(LatentVariableModel, method)
        if own is not base and not getattr(own, "over_ranks", False):
            raise ValueError(
                f"{name}.{method} may add up rows, but knows only those of its own rank: let its "
                "sums go through skavi.distributed.total, and mark it "
                "@skavi.distributed.over_ranks."
            )
    context = None if function is None else function.context
    if tuple(context or model.context) != (0, 0):
        raise ValueError(
            f"The inference function reads {tuple(context or model.context)} rows before and "
            "after, but these may be on another rank: set its context=(0, 0), or fit all rows in "
            "one process."
        )
    callbacks = getattr(estimator, "_skl_callbacks", [])
    others = [type(c).__name__ for c in callbacks if not isinstance(c, ProgressBar)]
    if others:
        raise ValueError(
            f"A fit over several ranks takes no callbacks, which each rank would call, but has "
            f"{', '.join(others)}: set_callbacks() without arguments takes them off."
        )
