"""Conversion of a fitted estimator to a `FittedModel`, and of users' tables to rows."""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from skavi._data.rows import Rows
from skavi._data.validated_tables import device_named, rows_of, validated_table
from skavi._fit.fitted_model import FittedModel, Position
from skavi._platform.memory import require_memory_of_rows
from skavi.families import Family
from skavi.inference_functions import InferenceFunction
from skavi.models import LatentVariableModel
from skavi.noise import Noise


class FittedEstimator:
    """The fitted attributes of an estimator, read as a `FittedModel`."""

    model_: LatentVariableModel
    inference_function_: InferenceFunction
    noise_: Noise
    family_: Family
    global_family_: Family
    n_features_in_: int
    tol_: float
    device: str | torch.device
    _raw_globals: np.ndarray
    _parameters: dict[str, np.ndarray]
    _validate_params: Callable[[], None]

    @property
    def _fitted_model(self) -> FittedModel:
        check_is_fitted(self)
        return FittedModel(
            model=self.model_,
            family=self.family_,
            global_family=self.global_family_,
            function=self.inference_function_,
            noise=self.noise_,
            parameters=self._parameters,
            raw_globals=self._raw_globals,
            n_features=self.n_features_in_,
            tol=self.tol_,
            device=device_named(self.device),
        )

    def _validate(self, X):
        """Return X as a float array with the fitted number of columns."""
        check_is_fitted(self)
        self._validate_params()  # set_params may have come after fit
        require_memory_of_rows(self, X)
        sparse, missing = self.model_.accepts_sparse, self.model_.allows_missing
        return validated_table(self, X, sparse, missing, reset=False)

    def _rows(self, X, sample_weight=None) -> Rows:
        return rows_of(X, sample_weight, device_named(self.device), self.model_.accepts_sparse)


def fitted_model(estimator: FittedEstimator) -> FittedModel:
    """Return the `FittedModel` of an estimator."""
    return estimator._fitted_model


def validated_rows(estimator: FittedEstimator, X, sample_weight=None) -> Rows:
    """Check a user's table and return it as rows for a fitted estimator."""
    return estimator._rows(estimator._validate(X), sample_weight)


def position_on(estimator: FittedEstimator, X) -> Position:
    """Return the position of an estimator's fit on a user's table."""
    return estimator._fitted_model.at(validated_rows(estimator, X))
