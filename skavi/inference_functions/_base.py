"""The base of inference functions: their window of rows, and the units of their inputs.

Functions are pure: `features` prepares the inputs once, `evaluate` maps features and parameters to
outputs, `start` fits the parameters to given factors by regression.
"""

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from skavi._component import Component
from skavi._data.missing_cells import Cells
from skavi._data.process_ranks import largest
from skavi._numerics.whole_numbers import is_whole

Parameters = dict[str, Tensor]
Start = tuple[Tensor | None, Parameters]
#: Of an input's largest size: with a smaller sd it is constant, and only centred.
_CONSTANT = 1e-12
#: The largest mean of an input that is constant: its square is finite.
_FURTHEST = 1e150


class InferenceFunction(Component):
    """A map from the inputs of a row to the parameters of its factor.

    Examples
    --------
    >>> from skavi.inference_functions import InferenceFunction, Polynomial
    >>> isinstance(Polynomial(degree=2), InferenceFunction)
    True
    """

    #: Whether `start` approximates its targets by regression.
    regressed: bool = True
    #: How many random starts to choose from; 1 if the start is not random.
    n_starts: int = 1
    #: Whether features are bounded, however far a row is from those of the fit.
    bounded: bool = False
    #: Default learning rate of Adam, in natural units.
    learning_rate: float = 0.003
    context: tuple[int, int] | None
    learned = ("input_mean_", "input_scale_")
    #: Moments of the training inputs, once fitted.
    input_mean_: np.ndarray | None = None
    input_scale_: np.ndarray | None = None

    @property
    def smooth(self) -> bool:
        """Whether the outputs are assumed to be differentiable in the parameters everywhere."""
        return True

    @abstractmethod
    def n_parameters(self, n_features: int, n_outputs: int) -> int:
        """Count the parameters that a fit changes."""

    def check(self):
        context = self.context
        if context is None:
            return
        pair = isinstance(context, tuple | list) and len(context) == 2
        whole = pair and all(is_whole(c, 0) for c in context)
        self._require("context", whole, "None or two integers >= 0, (rows before, rows after)")

    def check_learned(self, n_features):
        if self.input_mean_ is not None:
            self._require_learned("input_mean_", (None,))
            self._require_learned("input_scale_", self.input_mean_.shape, positive=True)
            with np.errstate(over="ignore", under="ignore"):
                variances = np.asarray(self.input_scale_) ** 2  # a fit takes their roots
            fine = bool((variances > 0).all() and np.isfinite(variances).all())
            self._require("input_scale_", fine, "roots of variances")
            self._require_learned_means()

    def _require_learned_means(self):
        """Require means that are as near to 0 as `fit_inputs` leaves them: not beyond their sds."""
        size, scale = (abs(np.asarray(each)) for each in (self.input_mean_, self.input_scale_))
        varied = scale != 1.0
        near = bool((size[varied] * _CONSTANT <= scale[varied]).all() and (size <= _FURTHEST).all())
        self._require("input_mean_", near, "means of inputs that vary by input_scale_")

    def parameter_shapes(self, n_inputs: int, n_outputs: int) -> dict[str, tuple[int, ...]] | None:
        """Return the shapes of the parameters by name, if they follow from these numbers.

        `n_inputs` counts what `features` reads. Nothing is made of these sizes.
        """
        return None

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
        constant = sd <= _CONSTANT * largest(cells.values.abs().amax(0))
        fitted.input_mean_ = mean.cpu().numpy()
        fitted.input_scale_ = torch.where(constant, torch.ones_like(sd), sd).cpu().numpy()
        return fitted

    def inputs(self, model, X) -> Tensor:
        """Return what the function reads of X: the model's summary of each row or group."""
        return model.summary(X)

    def with_mask(self, inputs: Tensor) -> Tensor:
        """Append a mask of observed inputs, if any was missing (NaN) when the function was fitted.

        Before the fit the mask is appended if any input is missing now.
        """
        if self.input_mean_ is None:
            masked = Cells.of(inputs).observed is not None
        else:
            masked = len(self.input_mean_) == 2 * inputs.shape[1]
        return torch.cat([inputs, (~inputs.isnan()).to(inputs)], 1) if masked else inputs

    def unreadable(self, inputs: Tensor) -> Tensor:
        """Say which rows miss an input that was never missing at fit, so that they are unlike it.

        Parameters
        ----------
        inputs : Tensor of shape (n_rows, n_inputs)
            Without a mask.

        Returns
        -------
        Tensor of bool of shape (n_rows,)
        """
        assert self.input_mean_ is not None
        # Share of the rows in which each input was observed at fit; empty if none was missing.
        seen = torch.as_tensor(self.input_mean_[inputs.shape[1] :]).to(inputs)
        learned = seen < 1 - 1e-12 if len(seen) else torch.zeros(inputs.shape[1:], dtype=torch.bool)
        return (inputs.isnan() & ~learned.to(inputs.device)).any(1)

    def standardised(self, inputs: Tensor) -> Tensor:
        """Return inputs standardised by the training data's moments, 0 where missing."""
        cells, mean = Cells.of(inputs), torch.as_tensor(self.input_mean_).to(inputs)
        scale = torch.as_tensor(self.input_scale_).to(inputs)
        return cells.masked((cells.values - mean) / scale)

    def features(self, inputs: Tensor) -> Tensor:
        """Return the inputs of `evaluate`, shape (n_rows, ...), computed once per data set."""
        return self.standardised(inputs)

    def n_numbers(self, n_rows: int, n_inputs: int, n_outputs: int) -> int:
        """Return a lower bound of the numbers held in memory: parameters and features."""
        return 0

    @abstractmethod
    def start(
        self, features: Tensor, targets: Tensor, weights: Tensor, generator: torch.Generator
    ) -> Start:
        """Return (raw_locals, shared) near the `targets`, shape (n_rows, n_outputs).

        `raw_locals` are the rows' own factors, or None if a function gives them; `shared` are the
        function's parameters.
        """

    def guided_start(
        self,
        features: Tensor,
        targets: Tensor,
        steps: Tensor,
        weights: Tensor,
        generator: torch.Generator,
    ) -> Start | None:
        """Return a start near targets that change abruptly between rows, or None if not offered.

        Parameters
        ----------
        features : Tensor of shape (n_rows, n_inputs)
            Of rows in one process.
        targets, steps : Tensor of shape (n_rows, n_outputs)
            Raw factors to approximate, and the natural step in each number.
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
        """Return the model with its `summary` of rows fixed by the current q(theta)."""
        return model.reading(q_theta)

    def targets(self, problem, state) -> Tensor:
        """Return the raw factors of a state, near which a fit starts."""
        nodes, X = problem.current_nodes(), problem.rows.X
        return problem.objective.explicit(state.raw_locals, state.raw_globals, X, nodes)

    def row_factors(self, fit, rows) -> Tensor:
        """Return the raw factors of any rows under a fitted model."""
        return fit.evaluate_locals(rows)

    def jacobian(self, parameters: Parameters, features: Tensor) -> Tensor:
        """Return the outputs' derivatives in all parameters, (n_rows, n_outputs, n_parameters).

        The derivatives are taken in a copy of the parameters for each row. `torch.func.jacrev`
        would import torch's compiler first, which takes a second.
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
