"""What every inference function shares: the window it reads, and the units of its inputs.

Functions are pure: `features` prepares what is read once, `evaluate` maps features and parameters
to outputs, `start` fits the parameters to given factors by regression.
"""

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from skavi._component import Component
from skavi._data.cells import Cells
from skavi._data.ranks import largest
from skavi._numerics.whole import is_whole

Parameters = dict[str, Tensor]
Start = tuple[Tensor | None, Parameters]


class InferenceFunction(Component):
    """A map from what is read of a row to the parameters of its factor.

    Examples
    --------
    >>> from skavi.inference_functions import InferenceFunction, Polynomial
    >>> isinstance(Polynomial(degree=2), InferenceFunction)
    True
    """

    #: Whether `start` comes near its targets by regression.
    regressed: bool = True
    #: How many random starts to choose from; 1 where a start is not random.
    n_starts: int = 1
    #: Adam's step, in natural units, where the user gives none.
    learning_rate: float = 0.003
    context: tuple[int, int] | None
    #: Moments of the training inputs, once fitted.
    input_mean_: np.ndarray | None = None
    input_scale_: np.ndarray | None = None

    @property
    def smooth(self) -> bool:
        """Whether the outputs are taken to be differentiable in the parameters everywhere."""
        return True

    @abstractmethod
    def n_parameters(self, n_features: int, n_outputs: int) -> int:
        """Count the numbers that a fit moves."""

    def check(self):
        context = self.context
        if context is None:
            return
        pair = isinstance(context, tuple | list) and len(context) == 2
        whole = pair and all(is_whole(c, 0) for c in context)
        self._require("context", whole, "None or two integers >= 0, (rows before, rows after)")

    def fit_inputs(self, inputs: Tensor, weights: Tensor) -> "InferenceFunction":
        """Return a copy that standardises its inputs by the weighted moments of these."""
        fitted = type(self)(**self.get_params(deep=False))
        cells = Cells.of(inputs)
        mean, variance = cells.mean_and_variance(weights)
        large = (~torch.isfinite(mean)).nonzero()
        if len(large):
            raise FloatingPointError(
                f"{type(self).__name__} cannot standardise what it reads: the sum over all rows of "
                f"{len(large)} inputs (first input {int(large[0, 0])}) is more than a number can "
                "hold. Check the scale of X."
            )
        sd = variance.sqrt()
        constant = sd <= 1e-12 * largest(cells.values.abs().amax(0))
        fitted.input_mean_ = mean.cpu().numpy()
        fitted.input_scale_ = torch.where(constant, torch.ones_like(sd), sd).cpu().numpy()
        return fitted

    def with_mask(self, inputs: Tensor) -> Tensor:
        """Append which inputs are observed, if any was missing (NaN) when the function was fitted.

        Before the fit: if any is missing now.
        """
        if self.input_mean_ is None:
            masked = Cells.of(inputs).observed is not None
        else:
            masked = len(self.input_mean_) == 2 * inputs.shape[1]
        return torch.cat([inputs, (~inputs.isnan()).to(inputs)], 1) if masked else inputs

    def unreadable(self, inputs: Tensor) -> Tensor:
        """Say which rows lack an input that was never missing at fit: nothing was learned of it.

        Parameters
        ----------
        inputs : Tensor of shape (n_rows, n_inputs)
            Without a mask.

        Returns
        -------
        Tensor of bool of shape (n_rows,)
        """
        assert self.input_mean_ is not None
        seen = torch.as_tensor(self.input_mean_[inputs.shape[1] :]).to(inputs)  # shares; or nothing
        learned = seen < 1 - 1e-12 if len(seen) else torch.zeros(inputs.shape[1:], dtype=torch.bool)
        return (inputs.isnan() & ~learned.to(inputs.device)).any(1)

    def standardised(self, inputs: Tensor) -> Tensor:
        """Return inputs in units of the training data's standard deviations, 0 where missing."""
        cells, mean = Cells.of(inputs), torch.as_tensor(self.input_mean_).to(inputs)
        scale = torch.as_tensor(self.input_scale_).to(inputs)
        return cells.masked((cells.values - mean) / scale)

    def features(self, inputs: Tensor) -> Tensor:
        """Return what `evaluate` reads, shape (n_rows, ...); computed once a data set."""
        return self.standardised(inputs)

    def n_numbers(self, n_rows: int, n_inputs: int, n_outputs: int) -> int:
        """Return how many numbers the function holds at the least: parameters and features."""
        return 0

    @abstractmethod
    def start(
        self, features: Tensor, targets: Tensor, weights: Tensor, generator: torch.Generator
    ) -> Start:
        """Return (raw_locals, shared) that come close to the `targets`, shape (n_rows, n_outputs).

        The rows' own factors (None where a function gives them), and the function's parameters.
        """

    def guided_start(
        self,
        features: Tensor,
        targets: Tensor,
        steps: Tensor,
        weights: Tensor,
        generator: torch.Generator,
    ) -> Start | None:
        """Return a start close to targets which change abruptly from row to row; None: no such.

        Parameters
        ----------
        features : Tensor of shape (n_rows, n_inputs)
            Of rows in one process.
        targets, steps : Tensor of shape (n_rows, n_outputs)
            What to come close to, and the natural step in each number.
        weights : Tensor of shape (n_rows,)
        generator : torch.Generator
        """
        return None

    def raw(self, raw_locals: Tensor | None, shared: Parameters, features: Tensor) -> Tensor:
        """Return every row's factor as unconstrained numbers, shape (n_rows, n_outputs)."""
        return self.evaluate(shared, features)

    def evaluate(self, parameters: Parameters, features: Tensor) -> Tensor:
        """Return the outputs of a function of `features`, shape (n_rows, n_outputs)."""
        raise NotImplementedError(f"{type(self).__name__} is no function of features.")

    def reading(self, model, q_theta):
        """Return the model with its `summary` of rows set up by q(theta), for good."""
        return model.reading(q_theta)

    def row_factors(self, fit, rows) -> Tensor:
        """Return the raw factors of any rows under a fitted model."""
        return fit.evaluate_locals(rows)

    def jacobian(self, parameters: Parameters, features: Tensor) -> Tensor:
        """Return the outputs' derivatives in all parameters, (n_rows, n_outputs, n_parameters).

        Every row gets a copy of the parameters to be differentiated in: `torch.func.jacrev` would
        do, but it first imports torch's compiler, for a second.
        """

        def one(parameters, features):
            return self.evaluate(parameters, features.unsqueeze(0))[0]

        with torch.enable_grad():
            copies = {
                name: value.detach().expand(len(features), *value.shape).requires_grad_(True)
                for name, value in parameters.items()
            }
            outputs = torch.func.vmap(one)(copies, features).unbind(1)
            slopes = [
                torch.autograd.grad(output.sum(), list(copies.values()), retain_graph=True)
                for output in outputs
            ]
        return torch.stack([torch.cat([s.flatten(1) for s in slope], 1) for slope in slopes], 1)
