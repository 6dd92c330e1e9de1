"""Inference functions: the map from a row to the unconstrained parameters of its factor q(z_n).

A `Table` looks a row up (factorized VI); `Constant`, `Polynomial`, `MLP` and any torch module read
the row, or a window of rows around it (amortized VI). This map is the only thing in which the two
methods differ.
"""

import math
from itertools import combinations_with_replacement, pairwise
from numbers import Integral

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from skavi._data.ranks import over_ranks
from skavi._platform.forks_and_threads import in_turn
from skavi.inference_functions._base import InferenceFunction, Parameters
from skavi.inference_functions._regression import least_squares, ridge_regression
from skavi.inference_functions._turning_units import turning_units

__all__ = [
    "MLP",
    "Constant",
    "InferenceFunction",
    "Parameters",
    "Polynomial",
    "Table",
    "TorchFunction",
]

# act(a) - act(-a) = gain * a: through such pairs a network can carry a linear map exactly. Then
# between which two a it turns.
_ACTIVATIONS = {
    "relu": (F.relu, 1.0, (0.0, 1.0)),
    "leaky_relu": (lambda a: F.leaky_relu(a, 0.2), 1.2, (0.0, 1.0)),
    "gelu": (F.gelu, 1.0, (0.0, 3.0)),
    "silu": (F.silu, 1.0, (0.0, 6.0)),
    "softplus": (F.softplus, 1.0, (0.0, 6.0)),
    "tanh": (torch.tanh, None, (-1.0, 1.0)),
}
_KINKED = ("relu", "leaky_relu")
_RIDGE = 1e-3
_LEAST_RIDGE = 1e-12  # only against singular systems: jumps need large weights


class Table(InferenceFunction):
    """Look the row up: a free factor for every row, which makes the method factorized VI.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> FactorizedVI(LinearModel()).fit([[0.0], [1.0], [5.0]]).inference_function_
    Table()
    """

    tabular = True
    context = (0, 0)

    @over_ranks
    def fit_inputs(self, inputs, weights):
        return Table()

    def features(self, inputs):
        return inputs

    def n_parameters(self, n_features, n_outputs):
        return 0  # it has none of its own: factors belong to rows

    @over_ranks
    def start(self, features, targets, weights, generator):
        return {"values": targets.clone()}

    def evaluate(self, parameters, features):
        return parameters["values"]


class _LinearInParameters(InferenceFunction):
    linear = True

    def n_parameters(self, n_features, n_outputs):
        return n_features * n_outputs

    @over_ranks
    def start(self, features, targets, weights, generator):
        return {"coefficients": least_squares(features, targets, weights)}

    def evaluate(self, parameters, features):
        return features @ parameters["coefficients"]


class Constant(_LinearInParameters):
    """Give every row the same factor: the smallest inference function.

    Parameters
    ----------
    context : (int, int) or None, default=None
        Accepted for symmetry with the other functions; a constant reads nothing.

    Examples
    --------
    >>> from skavi import AmortizedVI
    >>> from skavi.inference_functions import Constant
    >>> from skavi.models import LinearModel
    >>> vi = AmortizedVI(LinearModel(), Constant()).fit([[0.0], [1.0], [5.0]])
    >>> vi.transform([[0.0], [9.0]]).round(6) + 0.0
    array([[0.],
           [0.]])
    """

    def __init__(self, context=None):
        self.context = context

    def features(self, inputs):
        return inputs.new_ones(len(inputs), 1)


class Polynomial(_LinearInParameters):
    """Polynomial in the (standardised) inputs, cross terms included.

    Parameters
    ----------
    degree : int, default=1
        Total degree.
    context : (int, int) or None, default=None
        Rows (before, after) that are read beside the row itself; None: the model's own.

    Examples
    --------
    >>> from skavi import AmortizedVI
    >>> from skavi.inference_functions import Polynomial
    >>> from skavi.models import LinearModel
    >>> vi = AmortizedVI(LinearModel(), Polynomial(1)).fit([[0.0], [1.0], [5.0]])
    >>> vi.inference_function_
    Polynomial()
    """

    def __init__(self, degree=1, context=None):
        self.degree = degree
        self.context = context

    def check(self):
        super().check()
        self._require_integer("degree", 0)

    def n_numbers(self, n_rows, n_inputs, n_outputs):
        return math.comb(n_inputs + self.degree, self.degree) * (n_rows + n_outputs)

    def features(self, inputs):
        x = self.standardised(inputs)
        columns = range(x.shape[1])
        terms = [x.new_ones(len(x))]
        for degree in range(1, self.degree + 1):
            for chosen in combinations_with_replacement(columns, degree):
                terms.append(x[:, list(chosen)].prod(1))
        return torch.stack(terms, 1)


class MLP(InferenceFunction):
    """Multilayer perceptron on the (standardised) inputs.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=(64, 64)
        Widths of the hidden layers.
    activation : {"relu", "leaky_relu", "gelu", "silu", "softplus", "tanh"}, default="relu"
        Activation of the hidden units ("leaky_relu" has slope 0.2 below zero).
    context : (int, int) or None, default=None
        Rows (before, after) that are read beside the row itself; None: the model's own.

    Notes
    -----
    A fit starts from regression on factors: pairs of units (a, -a) carry the least-squares linear
    map through the network, the other units are random (He et al. 2015) and their outgoing weights
    are regressed on what the linear map leaves over. Where that falls short of the factors' own
    ELBO, units that turn between rows of unlike factors are tried as well (Bolager et al. 2023).

    Examples
    --------
    >>> from skavi.inference_functions import MLP
    >>> MLP(hidden_layer_sizes=(32,)).get_params()["activation"]
    'relu'
    """

    n_starts = 8
    guided = True

    def __init__(self, hidden_layer_sizes=(64, 64), activation="relu", context=None):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.context = context

    def check(self):
        super().check()
        need = f"one of {list(_ACTIVATIONS)}"
        self._require("activation", self.activation in _ACTIVATIONS, need)
        sizes = self._sizes()
        valid = all(
            isinstance(s, Integral) and not isinstance(s, bool) and int(s) >= 1 for s in sizes
        )
        self._require("hidden_layer_sizes", valid, "integers >= 1")

    @property
    def smooth(self):
        return self.activation not in _KINKED

    def _sizes(self):
        sizes = self.hidden_layer_sizes
        return tuple(sizes) if isinstance(sizes, tuple | list | np.ndarray) else (sizes,)

    def n_numbers(self, n_rows, n_inputs, n_outputs):
        widths = [n_inputs, *map(int, self._sizes()), n_outputs]
        return sum(before * after for before, after in pairwise(widths)) + n_rows * max(widths)

    def n_parameters(self, n_features, n_outputs):
        sizes = (n_features, *self._sizes(), n_outputs)
        return sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes))

    def evaluate(self, parameters, features):
        hidden = self._hidden(parameters, features)
        last = len(self._sizes())
        return torch.addmm(parameters[f"bias_{last}"], hidden, parameters[f"weight_{last}"])

    def _hidden(self, parameters, features):
        activate, _, _ = _ACTIVATIONS[self.activation]
        for layer in range(len(self._sizes())):
            weight, bias = parameters[f"weight_{layer}"], parameters[f"bias_{layer}"]
            features = activate(torch.addmm(bias, features, weight))
        return features

    def jacobian(self, parameters, features):
        """Return the same by back-propagation: a row's slopes in a layer are an outer product."""
        activate, _, _ = _ACTIVATIONS[self.activation]
        inputs, slopes = [features], list[Tensor]()
        for layer in range(len(self._sizes())):
            weight, bias = parameters[f"weight_{layer}"], parameters[f"bias_{layer}"]
            with torch.enable_grad():
                before = torch.addmm(bias, inputs[-1], weight).detach().requires_grad_(True)
                after = activate(before)
                slopes += torch.autograd.grad(after.sum(), before)
            inputs.append(after.detach())
        n_outputs = parameters[f"bias_{len(slopes)}"].numel()
        delta = torch.eye(n_outputs).to(features).expand(len(features), -1, -1)
        found: Parameters = {}
        for layer in reversed(range(len(inputs))):
            found[f"bias_{layer}"] = delta
            found[f"weight_{layer}"] = (
                inputs[layer][:, None, :, None] * delta.unsqueeze(2)
            ).flatten(2)
            if layer:
                delta = (delta @ parameters[f"weight_{layer}"].mT) * slopes[layer - 1].unsqueeze(1)
        return torch.cat([found[name] for name in parameters], 2)

    @over_ranks
    def start(self, features, targets, weights, generator):
        def random(hidden, width):
            n_in = hidden.shape[1]
            weight = math.sqrt(2 / n_in) * _randn(n_in, width, generator)
            return weight.to(hidden), _randn(1, width, generator).to(hidden)[0]

        return self._regressed(features, targets, weights, random, _RIDGE)

    def guided_start(self, features, targets, steps, weights, generator):
        _, _, span = _ACTIVATIONS[self.activation]
        scaled = targets / steps.mean(0)

        def turning(hidden, width):
            return turning_units(hidden, scaled, weights, width, span, generator)

        weights = weights * (steps**-2).mean(1)
        return self._regressed(features, targets, weights, turning, _LEAST_RIDGE)

    def _regressed(self, features, targets, weights, spare, ridge):
        """Carry the linear map of least squares; regress what it leaves on `spare` units."""
        ones = features.new_ones(len(features), 1)
        linear = least_squares(torch.cat([ones, features], 1), targets, weights)
        directions, carried = self._carried(linear[1:])
        parameters, hidden = self._layers(features, directions, spare)
        last, n_carried = len(self._sizes()), 2 * directions.shape[1]
        weight = features.new_zeros(hidden.shape[1], targets.shape[1])
        weight[: n_carried // 2] = carried
        weight[n_carried // 2 : n_carried] = -carried
        rest = targets - linear[0] - hidden @ weight
        weight[n_carried:], bias = ridge_regression(hidden[:, n_carried:], rest, weights, ridge)
        return parameters | {f"weight_{last}": weight, f"bias_{last}": linear[0] + bias}

    def _carried(self, slope):
        """Split a linear map (inputs, outputs) into directions read and what they contribute."""
        _, gain, _ = _ACTIVATIONS[self.activation]
        left, scale, right = torch.linalg.svd(slope, full_matrices=False)
        rank = int((scale > 1e-12 * scale.amax().clamp_min(1e-300)).sum())
        kept = 0 if gain is None else min(rank, min(self._sizes()) // 2)
        return left[:, :kept], scale[:kept, None] * right[:kept] / (gain or 1.0)

    def _layers(self, features, directions, spare):
        """Return hidden layers whose first units carry +-directions, and what the last puts out.

        `spare` makes the weights and biases of so many units that read what is given.
        """
        activate, gain, _ = _ACTIVATIONS[self.activation]
        n_carried, hidden = 2 * directions.shape[1], features
        parameters: Parameters = {}
        carry = torch.cat([directions, -directions], 1)
        half = torch.eye(n_carried // 2).to(directions) / (gain or 1.0)
        for layer, width in enumerate(self._sizes()):
            weight, bias = spare(hidden, width)
            weight[:, :n_carried] = 0
            weight[: len(carry), :n_carried] = carry
            bias[:n_carried] = 0
            parameters |= {f"weight_{layer}": weight, f"bias_{layer}": bias}
            hidden = activate(torch.addmm(bias, hidden, weight))
            carry = torch.cat([torch.cat([half, -half], 1), torch.cat([-half, half], 1)])
        return parameters, hidden


def _randn(rows, columns, generator):
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


class TorchFunction(InferenceFunction):
    """Any `torch.nn.Module` from (standardised) inputs to a factor's unconstrained parameters.

    A module given as ``inference_function`` is wrapped in this. It starts from its own weights.

    Parameters
    ----------
    module : torch.nn.Module
        Maps (n_rows, n_inputs) to (n_rows, n_outputs): means, then log standard deviations.
    context : (int, int) or None, default=None
        Rows (before, after) that are read beside the row itself; None: the model's own.

    Examples
    --------
    >>> import torch
    >>> from skavi import AmortizedVI
    >>> from skavi.models import LinearModel
    >>> line = torch.nn.Linear(1, 2, dtype=torch.float64)  # a row's mean and log sd
    >>> vi = AmortizedVI(LinearModel(), line, max_iter=2000).fit([[0.0], [1.0], [5.0]])
    >>> type(vi.inference_function_).__name__
    'TorchFunction'
    """

    regressed = False

    def __init__(self, module, context=None):
        self.module = module
        self.context = context

    def check(self):
        super().check()
        if not isinstance(self.module, torch.nn.Module):
            raise TypeError(
                "inference_function must be Constant, Polynomial, MLP or a torch.nn.Module, got "
                f"{type(self.module).__name__}."
            )

    def n_parameters(self, n_features, n_outputs):
        return sum(value.numel() for value in self.module.parameters())

    @over_ranks
    def start(self, features, targets, weights, generator):
        parameters = {
            name: value.detach().to(features).clone()
            for name, value in self.module.named_parameters()
        }
        try:
            shape = tuple(self.evaluate(parameters, features[:2]).shape)
        except RuntimeError as error:
            raise ValueError(
                f"inference_function={self.module} cannot read rows of {features.shape[1]} inputs: "
                f"{error}."
            ) from None
        needed = (len(features[:2]), targets.shape[1])
        if shape != needed:
            raise ValueError(
                f"inference_function maps {len(features[:2])} rows of {features.shape[1]} inputs "
                f"to shape {shape}, but the factors need {needed}: means and log sds."
            )
        return parameters

    def evaluate(self, parameters, features):
        with in_turn():  # it puts the parameters into the module, and the module's own back
            return torch.func.functional_call(self.module, parameters, (features,))
