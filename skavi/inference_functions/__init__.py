"""Inference functions: the map from a row to the unconstrained parameters of its factor q(z_n).

A `Table` stores the factor of each row (factorized VI); `Constant`, `Polynomial`, `MLP` and any
torch module compute it from the row, or from a window of rows around it (amortized VI); `DeepSet`
from a set of rows. The two methods differ in this map only.
"""

from skavi.inference_functions._base import InferenceFunction, Parameters
from skavi.inference_functions._deep_set import DeepSet
from skavi.inference_functions._linear import Constant, Polynomial
from skavi.inference_functions._mlp import MLP
from skavi.inference_functions._table import Table
from skavi.inference_functions._torch_module import TorchFunction

__all__ = [
    "MLP",
    "Constant",
    "DeepSet",
    "InferenceFunction",
    "Parameters",
    "Polynomial",
    "Table",
    "TorchFunction",
]
