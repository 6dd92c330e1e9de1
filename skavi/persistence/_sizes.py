"""Sizes that a file declares, compared with the numbers that it holds, before anything is made."""

import numpy as np
import torch

from skavi._fit.linear_predictor import require_linear_predictor
from skavi._fit.problem import inputs_of
from skavi._numerics.aligned import aligned
from skavi.inference_functions import Table, TorchFunction
from skavi.models import LatentVariableModel
from skavi.noise import Noise
from skavi.objective import Objective

#: Nodes of a rule in a file. Rules that skavi chooses have at most a quarter as many.
_MOST_NODES = 1 << 14
#: Numbers of all nodes of a rule: 32 MB; rules of few nodes may have more.
_MOST_NUMBERS, _FEW_NODES = 1 << 22, 128
#: Rows in one log joint for which no product rule is within these: two nodes each would be more.
_MANY_ROWS = 64


def check_theta(model: LatentVariableModel, n_features: int, raw: np.ndarray) -> None:
    """Refuse a model of skavi's that has more globals than numbers at hand, or other features."""
    least = model.least_globals(n_features)
    if least > raw.size:
        raise ValueError(
            f"{model!r} has at least {least:.3g} globals with {n_features} features, but q(theta) "
            f"has {raw.size} numbers"
        )
    # A row of ones is valid for all of skavi's models, and this one takes no memory.
    model.check_data(
        torch.ones((), dtype=torch.float64).expand(1, n_features + model.columns_.width)
    )


def check_noise(noise: Noise, objective: Objective, n_rows: int) -> None:
    """Refuse a rule of more nodes than an ordinary call has time for, or for other models.

    `n_rows` were fitted: where rows meet, the latents of several of them have nodes together.
    """
    require_linear_predictor(objective, noise)
    together = objective.n_latents * objective.n_colours(min(n_rows, _MANY_ROWS))
    dimensions = objective.n_drawn_globals, together
    n_nodes = noise.count_nodes(*dimensions)
    most = max(min(_MOST_NODES, _MOST_NUMBERS // max(1, sum(dimensions))), _FEW_NODES)
    if n_nodes > most:
        raise ValueError(
            f"{noise!r} has {float(n_nodes):.3g} nodes here, and load takes at most {most} from a "
            f"file: if you trust it, pass load(path, noise={noise!r})"
        )


def check_function(fitted: dict, objective: Objective, n_features: int, own: bool) -> None:
    """Refuse parameters that are not those of the fitted inference function.

    Parameters
    ----------
    fitted : dict
        An estimator's attributes.
    objective : Objective
    n_features : int
    own : bool
        Whether the function's class is skavi's own.
    """
    model, function = fitted["model_"], fitted["inference_function_"]
    parameters = fitted["_parameters"]
    n_outputs = objective.n_outputs
    if isinstance(function, Table):
        inputs, shapes = None, {}
    elif own or function.input_mean_ is not None:
        inputs = _inputs(model, function, n_features)
        shapes = function.parameter_shapes(inputs.shape[-1], n_outputs)
    found = {name: value.shape for name, value in parameters.items()}
    if own and found != shapes:
        raise ValueError(f"{function!r} needs parameters {shapes}, but there are {found}")
    if own and inputs is not None and not isinstance(function, TorchFunction):  # a user's code
        _check_output(function, parameters, inputs, objective)


def _inputs(model, function, n_features):
    """Return what a function reads of a row, once its window is known to be as wide as at fit."""
    moments = function.input_mean_
    if moments is None:
        raise ValueError(f"{type(function).__name__} has no input_mean_")
    context = function.context if function.context is not None else model.context
    if sum(context) + 1 > moments.size:
        raise ValueError(f"a window of {context} is wider than the {moments.size} inputs at fit")
    row = torch.ones(1, n_features, dtype=torch.float64)
    inputs = inputs_of(model, function, row)
    if inputs.shape[-1] != moments.size:
        raise ValueError(f"{moments.size} inputs at fit, but {inputs.shape[-1]} now")
    return inputs


def _check_output(function, parameters, inputs, objective):
    """Evaluate the function at the mean of the training inputs and an sd to either side."""
    mean, scale = aligned(function.input_mean_), aligned(function.input_scale_)
    rows = torch.stack([mean, mean + scale, mean - scale]).to(inputs)
    rows = rows.reshape(3, *inputs.shape[1:])
    shared = {name: aligned(value) for name, value in parameters.items()}
    with torch.no_grad():
        raw = function.evaluate(shared, function.features(rows))
        factors = objective.local_factors(raw)
    # A mean of 1e300 is finite, and its square, which every density takes, is not.
    if not (torch.isfinite(raw.square()).all() and torch.isfinite(factors.size()).all()):
        raise ValueError(f"{function!r} gives no finite factor at its training inputs' mean")
