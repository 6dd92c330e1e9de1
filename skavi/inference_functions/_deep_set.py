"""A function of a set of rows that learns what to read of it."""

import math

import torch

from skavi._data.missing_cells import Cells
from skavi._data.process_ranks import over_ranks
from skavi._numerics.whole_numbers import is_whole
from skavi.inference_functions._base import InferenceFunction, Parameters
from skavi.inference_functions._mlp import MLP

_OF_ROWS, _OF_SETS = "of_rows_", "of_sets_"
#: Rows of a set that has none: keeps its mean and log finite.
_FEWEST = 1e-3


class DeepSet(InferenceFunction):
    """Network on the mean of a network of each row: any function of a set, whatever its order.

    For models whose rows share a latent (`GroupedModel`, `MixedEffects`), beside which other
    functions read fixed moments of a group's rows. Where each row has a latent, it is a set of one.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int, default=(16,)
        Widths of the hidden layers of both networks: of a row, and of what the rows are pooled to.
    pooled_size : int, default=8
        How many numbers of each row are averaged over its group. The number of rows (its log) is
        read beside them.

    Notes
    -----
    All groups are held as large as the largest.

    Sources: Zaheer et al. (2017), "Deep sets"; for hierarchical models Agrawal & Domke (2021),
    "Amortized variational inference for simple hierarchical models". A fit starts from random
    networks of the rows, on whose averages the factors are regressed as `MLP` has it.

    Examples
    --------
    >>> from skavi.inference_functions import DeepSet
    >>> DeepSet(hidden_layer_sizes=(32,)).pooled_size
    8
    """

    n_starts = 8
    #: A group has no neighbours.
    context = (0, 0)

    def __init__(self, hidden_layer_sizes=(16,), pooled_size=8):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.pooled_size = pooled_size

    def check(self):
        self._network().check()
        self._require("pooled_size", is_whole(self.pooled_size, 1), "an integer >= 1")

    def _network(self):
        return MLP(self.hidden_layer_sizes, "silu")

    @staticmethod
    def _n_cells(n_numbers: int) -> int:
        """Return how many cells a row has, of which `inputs` holds `n_numbers`."""
        return (n_numbers - 1) // 2

    # --- what it reads --------------------------------------------------------------------------

    def inputs(self, model, X):
        """Return each set's rows side by side, shape (n_sets, most rows, n_numbers).

        The numbers of a row are its weight (0: no such row, or none of its responses is known), its
        cells (NaN where missing) and which of them are observed.
        """
        sets = model.sets(X)
        cells, observed = sets.table, (~sets.table.isnan()).to(sets.table)
        return sets.side_by_side(torch.cat([sets.weights[:, None], cells, observed], 1))

    def with_mask(self, inputs):
        return inputs

    @over_ranks
    def fit_inputs(self, inputs, weights):
        rows = inputs.flatten(0, 1)
        times = weights[:, None] * inputs[..., 0]
        there = inputs[..., 0].reshape(-1) > 0
        return super().fit_inputs(rows[there], times.reshape(-1)[there])

    def unreadable(self, inputs):
        assert self.input_mean_ is not None
        n_cells = self._n_cells(len(self.input_mean_))
        always = torch.as_tensor(self.input_mean_[1 + n_cells :] >= 1 - 1e-12)
        missing = inputs[..., 1 : 1 + n_cells].isnan() & always.to(inputs.device)
        return (missing & (inputs[..., :1] > 0)).flatten(1).any(1)

    def features(self, inputs):
        rows = self.standardised(inputs.flatten(0, 1)).reshape(inputs.shape)
        return torch.cat([inputs[..., :1], rows[..., 1:]], -1)

    # --- the networks ---------------------------------------------------------------------------

    def _ends(self, n_numbers, n_outputs):
        """Return inputs and outputs of the network of a row, and of that of a set."""
        return (n_numbers - 1, self.pooled_size), (self.pooled_size + 1, n_outputs)

    def n_parameters(self, n_features, n_outputs):
        ends = self._ends(n_features, n_outputs)
        return sum(self._network().n_parameters(*each) for each in ends)

    def parameter_shapes(self, n_inputs, n_outputs):
        ends = self._ends(n_inputs, n_outputs)
        return _joined(*(self._network().parameter_shapes(*each) for each in ends))

    def n_numbers(self, n_rows, n_inputs, n_outputs):
        ends = self._ends(1 + n_inputs, n_outputs)
        return sum(self._network().n_numbers(n_rows, *each) for each in ends)

    def evaluate(self, parameters, features):
        pooled = self._pooled(_part(parameters, _OF_ROWS), features)
        return self._network().evaluate(_part(parameters, _OF_SETS), pooled)

    def _pooled(self, parameters, features):
        """Return the mean of the rows' network over each set, and the log of how many they are."""
        n_sets, most, _ = features.shape
        weight = features[..., :1]
        rows = self._network().evaluate(parameters, features[..., 1:].flatten(0, 1))
        count = weight.sum(1)
        mean = (weight * rows.reshape(n_sets, most, -1)).sum(1) / count.clamp_min(_FEWEST)
        return torch.cat([mean, count.clamp_min(_FEWEST).log()], 1)

    @over_ranks
    def start(self, features, targets, weights, generator):
        of_rows, _ = self._ends(features.shape[-1], targets.shape[1])
        own: Parameters = {}
        for name, shape in self._network().parameter_shapes(*of_rows).items():
            unit = math.sqrt(2 / shape[0]) if len(shape) == 2 else 1.0
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            own[name] = (unit * drawn).to(features)
        layer = len(self._network().sizes)
        # What is pooled gets mean 0 and sd 1 over the sets, in which random units turn.
        mean, variance = Cells.of(self._pooled(own, features)).mean_and_variance(weights)
        scale = torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()[:-1]
        own[f"weight_{layer}"] = own[f"weight_{layer}"] / scale
        own[f"bias_{layer}"] = (own[f"bias_{layer}"] - mean[:-1]) / scale
        pooled = self._pooled(own, features)
        _, of_sets = self._network().start(pooled, targets, weights, generator)
        return None, _joined(own, of_sets)


def _joined(of_rows, of_sets):
    """Return the numbers of both networks under names of their own."""
    first = {_OF_ROWS + name: value for name, value in of_rows.items()}
    return first | {_OF_SETS + name: value for name, value in of_sets.items()}


def _part(parameters: Parameters, prefix: str) -> Parameters:
    """Return the parameters of one of the networks, by their own names."""
    return {
        name.removeprefix(prefix): value
        for name, value in parameters.items()
        if name.startswith(prefix)
    }
