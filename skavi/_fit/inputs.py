"""What an inference function reads of the rows: the model's summary, or a window of them."""

from torch import Tensor

from skavi._data.rows import windows
from skavi.inference_functions import InferenceFunction
from skavi.models import LatentVariableModel


def windows_of(model: LatentVariableModel, function: InferenceFunction, X: Tensor) -> Tensor:
    """Return what a function reads of each row: the model's summary, or a window of them."""
    context = function.context if function.context is not None else model.context
    return windows(model.summary(X), context or (0, 0), model.padding)


def inputs_of(model: LatentVariableModel, function: InferenceFunction, X: Tensor) -> Tensor:
    """Return the windows, and which cells are there if any was missing at the function's fit."""
    inputs = windows_of(model, function, X)
    return function.with_mask(inputs) if model.allows_missing else inputs
