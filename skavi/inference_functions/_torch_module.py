"""Any torch module as an inference function."""

import torch

from skavi._data.process_ranks import over_ranks
from skavi._platform.forks_and_threads import in_turn
from skavi.inference_functions._base import InferenceFunction


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

    def parameter_shapes(self, n_inputs, n_outputs):
        return {name: tuple(value.shape) for name, value in self.module.named_parameters()}

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
        return None, parameters

    def evaluate(self, parameters, features):
        with in_turn():  # it replaces the module's parameters, and restores them
            return torch.func.functional_call(self.module, parameters, (features,))
