"""The fitted problem, rebuilt from numpy: rows, objective, q(theta) and the rows' own factors."""

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from skavi._data.blockwise import evaluated
from skavi._data.cells import Cells
from skavi._data.rows import Rows, cells_a_row, distinct
from skavi._data.user_tables import device_named, rows_of, validated_table
from skavi._fit.defaults import evaluation_noise
from skavi._fit.inputs import inputs_of, windows_of
from skavi._fit.local_problems import chunk_size, solve_rows
from skavi._fit.nonfinite import named_singularity, require_finite
from skavi._fit.problem import Problem
from skavi._numerics.aligned import aligned
from skavi._platform.forks_and_threads import check_fork
from skavi._platform.memory import require_memory_of_rows
from skavi._platform.user_warnings import warn
from skavi.families import Family
from skavi.inference_functions import InferenceFunction, Table
from skavi.models import LatentVariableModel
from skavi.noise import Noise
from skavi.objective import bind
from skavi.posterior import GlobalPosterior


class FittedProblem:
    """What everything that works on a fit begins with: tensors of its numpy state and of X."""

    model_: LatentVariableModel
    inference_function_: InferenceFunction
    noise_: Noise
    family_: Family
    global_family_: Family
    global_posterior_: GlobalPosterior
    n_features_in_: int
    tol: float
    device: str | torch.device
    _raw_globals: np.ndarray
    _parameters: dict[str, np.ndarray]

    def _validated(self, X):
        """Return X as a float array of the fitted width."""
        check_is_fitted(self)
        check_fork()
        require_memory_of_rows(self, X)
        sparse, missing = self.model_.accepts_sparse, self.model_.allows_missing
        return validated_table(self, X, sparse, missing, reset=False)

    def _rows(self, X, sample_weight=None, sparse=None):
        sparse = self.model_.accepts_sparse if sparse is None else sparse
        return rows_of(X, sample_weight, device_named(self.device), sparse)

    def _objective(self, X):
        return bind(self.model_, self.family_, self.global_family_, X)

    def _globals(self, like):
        return aligned(self._raw_globals).to(like)

    def _function_parameters(self, like):
        return {name: aligned(value).to(like) for name, value in self._parameters.items()}

    def _frozen_problem(self, rows):
        objective, noise = self._objective(rows.X), self.noise_
        if not noise.deterministic:
            noise = evaluation_noise(objective, len(rows))
        generator = torch.Generator().manual_seed(0)
        return Problem(objective, Table(), rows, rows.X, noise, generator, frozen_globals=True)

    def _factors(self, X):
        rows = self._rows(X)
        self.model_.check_data(rows.X)
        objective = self._objective(rows.X)
        with torch.no_grad():
            raw = self._raw_locals(rows)
            factors = objective.local_factors(raw)
        spread = factors.sd + factors.sd.reciprocal()
        if not bool(torch.isfinite(raw.sum() + spread.sum())):
            require_finite(raw + spread.sum(-1, keepdim=True), "posterior")
        return factors

    def _raw_locals(self, rows):
        """Return raw local parameters of any rows: the function's output, or their solutions.

        A row that lacks a cell of a column without holes at fit is solved: no function learned it.
        """
        function = self.inference_function_
        if function.tabular:
            with named_singularity("X"):
                return self._solved_locals(rows)
        raw = self._evaluated_locals(rows)
        if self.model_.allows_missing and Cells.of(rows.X).observed is not None:
            unreadable = function.unreadable(windows_of(self.model_, function, rows.X))
            if bool(unreadable.any()):
                raw[unreadable] = self._solved_locals(rows[unreadable])
        return raw

    def _evaluated_locals(self, rows):
        function = self.inference_function_
        parameters = self._function_parameters(rows.weights)
        inputs = inputs_of(self.model_, function, rows.X)
        with torch.no_grad():
            return evaluated(
                lambda part: function.evaluate(parameters, function.features(part)), inputs
            )

    def _solved_locals(self, rows):
        globals_, solved, converged = self._globals(rows.weights), [], True
        whole = self.model_.ordered or not self.model_.rowwise
        index = torch.arange(len(rows), device=rows.X.device)
        if not whole:  # each distinct row once: equal rows are equal to the last bit, in any order
            X, index = distinct(rows.X)
            rows = Rows(X, rows.weights.new_ones(len(X)))
        for where in self._chunks(rows):
            part = rows[where]
            ones = Rows(part.X, torch.ones_like(part.weights))
            raw, fine = solve_rows(self._frozen_problem(ones), globals_, min(self.tol, 1e-9))
            solved.append(raw)
            converged &= fine
        if not converged:
            warn(
                "Some rows' local problems did not converge: their posteriors are approximate.",
                ConvergenceWarning,
            )
        return torch.cat(solved)[index]

    def _chunks(self, rows):
        """Cut rows into slices of bounded memory; where rows are coupled there is but one."""
        size = len(rows)
        if self.model_.rowwise and not self.model_.ordered:
            noise = self._frozen_problem(rows).noise
            size = chunk_size(self._objective(rows.X), noise, cells_a_row(rows.X))
        return [slice(first, first + size) for first in range(0, len(rows), size)]
