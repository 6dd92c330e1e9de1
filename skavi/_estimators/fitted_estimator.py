"""Conversion of a fitted estimator to a `FittedModel`, and of users' tables to rows."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from skavi._data.column_roles import LABELS
from skavi._data.process_ranks import ALONE, Ranks, joined
from skavi._data.rows import Rows
from skavi._data.validated_tables import (
    device_named,
    roles_in,
    rows_of,
    validated_table,
    with_idle_columns,
)
from skavi._fit.fitted_model import FittedModel, Position
from skavi._platform.memory import require_memory_of_rows
from skavi.families import Family
from skavi.inference_functions import InferenceFunction
from skavi.models import LatentVariableModel
from skavi.noise import Noise


class FittedEstimator:
    """The fitted attributes of an estimator, read as a `FittedModel`."""

    model: LatentVariableModel | None
    model_: LatentVariableModel
    inference_function_: InferenceFunction
    noise_: Noise
    family_: Family
    global_family_: Family
    n_features_in_: int
    tol_: float
    device: str | torch.device
    #: Nats by which a row may miss its best factor before it is solved; None: any.
    refine: float | None = None
    _raw_globals: np.ndarray
    _parameters: dict[str, np.ndarray]
    _validate_params: Callable[[], None]
    _accepts_sparse: Callable[[], bool]
    _allows_missing: Callable[[], bool]

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
            n_features=self._row_width,
            tol=self.tol_,
            device=device_named(self.device),
            refine=self.refine,
        )

    def _training_table(self, X, shared):
        """Return X as validated rows, and which of its columns the model is given."""
        named, name, kinds = {}, type(self.model).__name__, None
        together: tuple[str, ...] = ()
        if self.model is not None:
            self.model.check_roles()
            named, together = self.model.named_columns(), self.model.roles_together
            kinds = self.model.named_kinds()
        with joined(Ranks(len(X), 1) if shared and LABELS in named else ALONE):
            roles = roles_in(X, named, name, not shared, together, kinds)
        sparse, missing = self._accepts_sparse(), self._allows_missing()
        return validated_table(self, X, sparse, missing, True, roles, name), roles

    def _with_idle_columns(self, X, filled=False):
        """Return new rows with the columns that the model never reads, if X lacks them."""
        check_is_fitted(self)
        names = getattr(self, "feature_names_in_", None)
        return with_idle_columns(X, names, self.model_.columns_, filled)

    def _validate(self, X):
        """Return X as a float array with the fitted number of columns."""
        X = self._with_idle_columns(X)
        self._validate_params()  # set_params may have come after fit
        require_memory_of_rows(self, X)
        sparse, missing = self.model_.accepts_sparse, self.model_.allows_missing
        name, roles = type(self.model_).__name__, self.model_.columns_
        return validated_table(self, X, sparse, missing, False, roles, name)

    @property
    def _row_width(self) -> int:
        """Return the number of columns of rows as the model gets them."""
        return self.model_.columns_.row_width(self.n_features_in_)

    @property
    def _explained_names(self):
        """Return the names of the columns that the model explains, if X had names."""
        names, roles = getattr(self, "feature_names_in_", None), self.model_.columns_
        return names if names is None or not roles.places else names[roles.explained]

    @property
    def _n_explained(self) -> int:
        """Return the number of columns that the model explains."""
        return self.model_.columns_.n_explained(self.n_features_in_)

    def _remember_groups(self, fitted) -> None:
        """Tell the model the factors of its groups, where rows are grouped."""
        problem = fitted.problem
        if self.model_.unobserved(problem.rows.X) is not None:
            with torch.no_grad():
                raw = problem.raw(fitted.outcome.state)
                raw = self._fitted_model.raw_of_training(problem.rows, raw)
            problem.rows.ask(self.model_.remember, raw, problem.rows.X)

    def _rows(self, X, sample_weight=None) -> Rows:
        device, model = device_named(self.device), self.model_
        return rows_of(X, sample_weight, device, model.accepts_sparse, model.columns_)


def fitted_model(estimator: FittedEstimator) -> FittedModel:
    """Return the `FittedModel` of an estimator."""
    return estimator._fitted_model


def validated_rows(estimator: FittedEstimator, X, sample_weight=None) -> Rows:
    """Check a user's table and return it as rows for a fitted estimator."""
    return estimator._rows(estimator._validate(X), sample_weight)


def position_on(estimator: FittedEstimator, X) -> Position:
    """Return the position of an estimator's fit on a user's table."""
    return estimator._fitted_model.at(validated_rows(estimator, X))


def function_on(estimator: FittedEstimator, X) -> Position:
    """Return the position of an estimator's fit on a user's table, with no row refined."""
    fit = replace(estimator._fitted_model, refine=None)
    return fit.at(validated_rows(estimator, X))
