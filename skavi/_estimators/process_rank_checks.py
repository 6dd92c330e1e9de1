"""The requirements of a fit over several ranks, and the group of ranks that takes part."""

import zlib
from numbers import Number

import torch
from sklearn.callback import ProgressBar

from skavi._data.process_ranks import ALONE, RankGroup, Ranks
from skavi.inference_functions import InferenceFunction
from skavi.models import LatentVariableModel
from skavi.solvers import Solver, State

#: Methods that read all rows, of any component.
_READ_ALL_ROWS = {
    LatentVariableModel: (
        "adapted",
        "initial_globals",
        "drawn_globals",
        "global_optimum",
        "compressed",
    ),
    InferenceFunction: ("fit_inputs", "start"),
    Solver: ("begin",),
}
#: Relative: ranks agree to the last bit, so a larger difference is a defect.
_SAME = 1e-6


#: Parameters in which ranks may differ: the seed of rank 0 is used, and `verbose` changes nothing.
_OWN = ("random_state", "verbose")


def ranks_of(estimator, X, shared: bool) -> RankGroup:
    """Return the group of ranks that hold the rows of a table; `shared`: X is a part of it.

    Raises
    ------
    ValueError
        If the ranks fit estimators with different parameters, as after separate searches.
    """
    if not shared:
        return ALONE
    ranks = Ranks(*X.shape)
    told = ranks.gather(torch.tensor([zlib.crc32(_describe(estimator).encode())]))
    if len(set(told.tolist())) > 1:
        raise ValueError(
            f"The ranks fit different estimators, rank {ranks.rank} {estimator!r}: a joint fit "
            "needs the same parameters on all of them."
        )
    return ranks


def _describe(estimator) -> str:
    """Describe an estimator: values of its numbers and strings, types of its other parameters."""
    values = {
        name: repr(value) if isinstance(value, Number | str) else type(value).__name__
        for name, value in estimator.get_params().items()
        if name not in _OWN
    }
    return f"{type(estimator).__name__} {sorted(values.items())}"


def check_agreement(ranks: RankGroup, state: State) -> None:
    """Raise a RuntimeError if the ranks' solutions differ, which a defective component causes."""
    if ranks.size == 1:
        return
    shared = state.tensors()[state.n_owned :]
    sizes = [float(value.abs().sum()) for value in shared]
    told = ranks.gather(torch.tensor([sizes], dtype=torch.float64))
    if not torch.allclose(told, told[:1], rtol=_SAME, equal_nan=True):
        raise RuntimeError(
            f"The ranks came to different solutions, of sizes {told.tolist()}: a part of the model "
            "or of the inference function decides by the rows of one rank."
        )


def check_joint(estimator, model, function) -> None:
    """Refuse, before any work, what several ranks cannot fit together.

    Raises
    ------
    ValueError
        If the model couples rows or reads sparse ones; if a component sums over rows without
        `total`; if the inference function reads neighbours; or if callbacks are set.
    """
    name = type(model).__name__
    what, remedy = "Rows over several ranks must be", "fit all rows in one process"
    model.coupling.require_independent(what, name, remedy)
    if model.accepts_sparse:
        raise ValueError(
            f"Rows over several ranks must be dense, but {name} reads sparse ones: fit all rows in "
            "one process, or in turn with partial_fit."
        )
    for component in (model, function, estimator.solver):
        _check_marked(component)
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


def _check_marked(component) -> None:
    """Refuse a component that overrides a method which reads all rows, without `over_ranks`."""
    for base, methods in _READ_ALL_ROWS.items():
        for method in methods if isinstance(component, base) else ():
            own = getattr(type(component), method)
            if own is not getattr(base, method) and not getattr(own, "over_ranks", False):
                raise ValueError(
                    f"{type(component).__name__}.{method} may add up rows, but knows only those of "
                    "its own rank: let its sums go through skavi.distributed.total, and mark it "
                    "@skavi.distributed.over_ranks."
                )
