"""Functions that are linear in their parameters: a constant, and polynomials of the row."""

import math
from itertools import combinations_with_replacement

import torch

from skavi._data.process_ranks import over_ranks
from skavi.inference_functions._base import InferenceFunction
from skavi.inference_functions._regression import least_squares


class LinearFunction(InferenceFunction):
    """Outputs ``features @ coefficients``."""

    def count_features(self, n_inputs: int) -> int:
        """Return how many numbers `features` makes of n_inputs."""
        return n_inputs

    def n_parameters(self, n_features, n_outputs):
        return n_features * n_outputs

    def parameter_shapes(self, n_inputs, n_outputs):
        return {"coefficients": (self.count_features(n_inputs), n_outputs)}

    @over_ranks
    def start(self, features, targets, weights, generator):
        return None, {"coefficients": least_squares(features, targets, weights)}

    def evaluate(self, shared, features):
        return features @ shared["coefficients"]


class Constant(LinearFunction):
    """Give every row the same factor: the smallest inference function.

    Parameters
    ----------
    context : (int, int) or None, default=None
        Accepted for symmetry with the other functions; a constant has no inputs.

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

    def count_features(self, n_inputs):
        return 1

    def features(self, inputs):
        return inputs.new_ones(len(inputs), 1)


class Polynomial(LinearFunction):
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

    def count_features(self, n_inputs):
        return math.comb(n_inputs + self.degree, min(n_inputs, self.degree))

    def n_numbers(self, n_rows, n_inputs, n_outputs):
        return self.count_features(n_inputs) * (n_rows + n_outputs)

    def features(self, inputs):
        x = self.standardised(inputs)
        columns = range(x.shape[1])
        terms = [x.new_ones(len(x))]
        for degree in range(1, self.degree + 1):
            for chosen in combinations_with_replacement(columns, degree):
                terms.append(x[:, list(chosen)].prod(1))
        return torch.stack(terms, 1)
