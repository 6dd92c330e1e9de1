"""All private names of scikit-learn and torch that skavi uses."""

from sklearn.base import _clone_parametrized as clone_parametrized
from sklearn.base import _fit_context as fit_context
from sklearn.callback._transport import can_reuse_listener, open_listener, send
from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils._pprint import _EstimatorPrettyPrinter
from sklearn.utils._set_output import ADAPTERS_MANAGER, _get_output_config
from sklearn.utils.validation import _check_sample_weight as check_sample_weight
from sklearn.utils.validation import _get_feature_names as feature_names
from torch._C import _are_functorch_transforms_active as are_transforms_active
from torch._C import _len_torch_function_stack as count_function_modes
from torch._C import _pop_torch_function_stack as pop_function_mode

__all__ = [
    "HasMethods",
    "Interval",
    "StrOptions",
    "are_transforms_active",
    "can_reuse_listener",
    "check_sample_weight",
    "clone_parametrized",
    "count_function_modes",
    "feature_names",
    "fit_context",
    "in_set_output",
    "keep_lines_wrapped",
    "open_listener",
    "pop_function_mode",
    "safe_indexing",
    "send",
]


def in_set_output(estimator, values, X):
    """Return a table with the columns of X in the container that `set_output` asks for.

    Numbers beside text are numbers again.
    """
    kind = _get_output_config("transform", estimator)["dense"]
    if kind == "default":
        return values
    columns = getattr(estimator, "feature_names_in_", [f"x{i}" for i in range(values.shape[1])])
    frame = ADAPTERS_MANAGER.adapters[kind].create_container(values, X, columns=list(columns))
    if values.dtype.kind != "O":
        return frame
    if hasattr(frame, "infer_objects"):
        return frame.infer_objects()
    cells = dict(zip(frame.columns, values.T.tolist(), strict=True))
    return type(frame)(cells, strict=False)


def keep_lines_wrapped(cls):
    """Let scikit-learn wrap the repr of a class that adds to its own, alone or in a pipeline."""
    _EstimatorPrettyPrinter._dispatch[cls.__repr__] = _EstimatorPrettyPrinter._pprint_estimator
    return cls
