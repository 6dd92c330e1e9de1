"""Multilayer perceptrons, and their start by regression on factors."""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from skavi._data.process_ranks import over_ranks
from skavi._numerics.whole_numbers import is_whole
from skavi.inference_functions._base import InferenceFunction, Parameters
from skavi.inference_functions._regression import least_squares, ridge_regression
from skavi.inference_functions._turning_units import turning_units

# The function; the gain in act(a) - act(-a) = gain * a, by which pairs of units carry a linear map
# exactly (None: they cannot); the two a between which it turns.
_ACTIVATIONS = {
    "relu": (F.relu, 1.0, (0.0, 1.0)),
    "leaky_relu": (lambda a: F.leaky_relu(a, 0.2), 1.2, (0.0, 1.0)),
    "gelu": (F.gelu, 1.0, (0.0, 3.0)),
    "silu": (F.silu, 1.0, (0.0, 6.0)),
    "softplus": (F.softplus, 1.0, (0.0, 6.0)),
    "tanh": (torch.tanh, None, (-1.0, 1.0)),
}
_KINKED = ("relu", "leaky_relu")
#: Sds of an input beyond which it says no more than that a row is unlike all others, and how many
#: it is then read as. With 100 for 10 the ends of a series near 1e9 take 800 steps for 23.
_UNLIKE, _READ_AS = 1e5, 10.0
#: Of the units' own size: keeps the weights of random units small (1e-6 before a83f089). Not
#: measured: order of magnitude.
_RIDGE = 1e-3
#: The same for guided units: it only prevents singular systems, as jumps need large weights.
_LEAST_RIDGE = 1e-12


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
    map through the network; the other units are random (He et al. 2015), and their outgoing weights
    are regressed on the residual of the linear map. If the ELBO is then below that of the factors,
    units that turn between rows of unlike factors are tried as well (Bolager et al. 2023).

    Examples
    --------
    >>> from skavi.inference_functions import MLP
    >>> MLP(hidden_layer_sizes=(32,)).get_params()["activation"]
    'relu'
    """

    n_starts = 8
    bounded = True

    def __init__(self, hidden_layer_sizes=(64, 64), activation="relu", context=None):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.context = context

    def check(self):
        super().check()
        need = f"one of {list(_ACTIVATIONS)}"
        self._require("activation", self.activation in _ACTIVATIONS, need)
        sizes = self.sizes
        valid = all(is_whole(size, 1) for size in sizes)
        self._require("hidden_layer_sizes", valid, "integers >= 1")

    @property
    def smooth(self):
        return self.activation not in _KINKED

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        sizes = self.hidden_layer_sizes
        return tuple(sizes) if isinstance(sizes, tuple | list | np.ndarray) else (sizes,)

    def features(self, inputs):
        features = super().features(inputs)
        return torch.where(features.abs() > _UNLIKE, _READ_AS * features.sign(), features)

    def n_numbers(self, n_rows, n_inputs, n_outputs):
        widths = [n_inputs, *map(int, self.sizes), n_outputs]
        return sum(before * after for before, after in pairwise(widths)) + n_rows * max(widths)

    def n_parameters(self, n_features, n_outputs):
        sizes = (n_features, *self.sizes, n_outputs)
        return sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes))

    def parameter_shapes(self, n_inputs, n_outputs):
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, pair in enumerate(pairwise((n_inputs, *self.sizes, n_outputs))):
            shapes |= {f"weight_{layer}": pair, f"bias_{layer}": pair[1:]}
        return shapes

    def evaluate(self, parameters, features):
        hidden = self._hidden(parameters, features)
        last = len(self.sizes)
        return torch.addmm(parameters[f"bias_{last}"], hidden, parameters[f"weight_{last}"])

    def _hidden(self, parameters, features):
        activate, _, _ = _ACTIVATIONS[self.activation]
        for layer in range(len(self.sizes)):
            weight, bias = parameters[f"weight_{layer}"], parameters[f"bias_{layer}"]
            features = activate(torch.addmm(bias, features, weight))
        return features

    def jacobian(self, parameters, features):
        """Return the Jacobian by back-propagation: a row's part in a layer is an outer product."""
        activate, _, _ = _ACTIVATIONS[self.activation]
        inputs, slopes = [features], list[Tensor]()
        for layer in range(len(self.sizes)):
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

        return self._regress(features, targets, weights, random, _RIDGE)

    def guided_start(self, features, targets, steps, weights, generator):
        _, _, span = _ACTIVATIONS[self.activation]
        scaled = targets / steps.mean(0)

        def turning(hidden, width):
            return turning_units(hidden, scaled, weights, width, span, generator)

        weights = weights * (steps**-2).mean(1)
        return self._regress(features, targets, weights, turning, _LEAST_RIDGE)

    def _regress(self, features, targets, weights, spare, ridge):
        """Carry the linear least-squares map; regress its residual on the `spare` units."""
        ones = features.new_ones(len(features), 1)
        linear = least_squares(torch.cat([ones, features], 1), targets, weights)
        directions, carried = self._split_linear_map(linear[1:])
        parameters, hidden = self._build_layers(features, directions, spare)
        last, n_carried = len(self.sizes), 2 * directions.shape[1]
        weight = features.new_zeros(hidden.shape[1], targets.shape[1])
        weight[: n_carried // 2] = carried
        weight[n_carried // 2 : n_carried] = -carried
        rest = targets - linear[0] - hidden @ weight
        weight[n_carried:], bias = ridge_regression(hidden[:, n_carried:], rest, weights, ridge)
        return None, parameters | {f"weight_{last}": weight, f"bias_{last}": linear[0] + bias}

    def _split_linear_map(self, slope):
        """Split a linear map (inputs, outputs) into input directions and their output weights."""
        _, gain, _ = _ACTIVATIONS[self.activation]
        left, scale, right = torch.linalg.svd(slope, full_matrices=False)
        rank = int((scale > 1e-12 * scale.amax().clamp_min(1e-300)).sum())
        kept = 0 if gain is None else min(rank, min(self.sizes) // 2)
        return left[:, :kept], scale[:kept, None] * right[:kept] / (gain or 1.0)

    def _build_layers(self, features, directions, spare):
        """Return hidden layers whose first units carry +-directions, and the last layer's output.

        `spare(hidden, width)` returns weights and biases of `width` units with inputs `hidden`.
        """
        activate, gain, _ = _ACTIVATIONS[self.activation]
        n_carried, hidden = 2 * directions.shape[1], features
        parameters: Parameters = {}
        carry = torch.cat([directions, -directions], 1)
        half = torch.eye(n_carried // 2).to(directions) / (gain or 1.0)
        for layer, width in enumerate(self.sizes):
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
