"""Predictions of x from a fit: expected rows, missing cells, and new rows."""

from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skavi._data.column_roles import LABELS, as_table
from skavi._data.grouped_rows import GroupedRows
from skavi._estimators.fitted_estimator import FittedEstimator
from skavi._numerics.aligned import aligned
from skavi._numerics.whole_numbers import is_whole
from skavi._platform.array_types import Floats, Seed, TableLike
from skavi._platform.forks_and_threads import guarded, seeded
from skavi._platform.memory import require_memory
from skavi._platform.private_names import feature_names, in_set_output
from skavi._platform.random_state import drawn_seed, private_state
from skavi.distributions import defaults_of
from skavi.posterior import GlobalPosterior
from skavi.posterior._predictive import cell_moments


@guarded
class Generation(FittedEstimator):
    """`inverse_transform`, `impute` and `sample`: predictions of x under q(theta)."""

    global_posterior_: GlobalPosterior

    def inverse_transform(self, Z: ArrayLike, covariates: ArrayLike | None = None) -> Floats:
        r"""Return the rows to expect of latents, :math:`\mathrm{E}[x \mid z]`, under q(theta).

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_latents)
            Latents, as `transform` returns them, on the model's own scale (standard deviations, if
            any, are ignored).
        covariates : array-like of shape (n_samples, n_covariates), default=None
            For a model that names covariates: these columns alone, by name from a frame or in the
            model's order. An offset is taken as 0.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            The columns that the model explains; of a category the most probable level's number.

        Raises
        ------
        FloatingPointError
            If draws of q(theta) are so extreme that their mean is NaN.
        """
        check_is_fitted(self)
        Z = np.asarray(Z)
        objective = self._fitted_model.on_cpu().objective
        k = objective.n_columns
        given = self._given_apart(covariates, len(Z))
        if Z.ndim != 2 or Z.shape[1] not in (k, 2 * k):
            raise ValueError(
                f"Z has shape {Z.shape}, but the model has {k} latents a row, or states."
            )
        values = aligned(Z[:, :k])
        total, draws = values.new_zeros(()), self._theta_draws(32)
        for theta in draws:
            with defaults_of(values):
                total = total + objective.predicted_mean(theta, values, *given) / len(draws)
        if bool(total.isnan().any()):
            widest = max((float(sd.max()) for sd in self.global_posterior_.sd.values()), default=0)
            raise FloatingPointError(
                f"E[x | z] is no number: q(theta) has sds of up to {widest:.1e}. Check Z, and fit "
                "again with a finer noise or narrower priors."
            )
        dtype = Z.dtype if Z.dtype == np.float32 else np.float64
        total, _ = self.model_.cells_from(total, torch.zeros_like(total), False)
        return total.numpy().astype(dtype, copy=False)

    @overload
    def impute(self, X: TableLike, return_sd: Literal[False] = False) -> Floats: ...

    @overload
    def impute(self, X: TableLike, return_sd: Literal[True]) -> tuple[Floats, Floats]: ...

    def impute(self, X, return_sd=False):
        """Fill the missing cells of X with their posterior predictive means.

        In tables of mixed columns (`FactorAnalysis` with a dict of likelihoods) every column is
        filled in its own kind: "normal" and "student_t" with means, counts, yes and no and ordered
        levels with the whole number nearest to the mean, categories with the most probable level.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with NaN where a cell is missing; training rows or others. Where the model names
            its response, a frame needs only the columns that it is given.
        return_sd : bool, default=False
            Whether to return the cells' predictive standard deviations as well.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Observed cells as they were, in the dtype of X. A frame after
            ``set_output(transform="pandas")``, or "polars".
        sd : ndarray of shape (n_samples, n_features)
            0 where a cell is observed. Only with ``return_sd=True``. A frame likewise.

        Notes
        -----
        By the law of total variance: the variance of the likelihood, plus that of its mean under
        q(z_n) and q(theta). Missing counts are filled with means, which are not integers, unless
        columns are mixed. The variance of a category is that of whether the level filled in is the
        right one, p (1 - p).

        Examples
        --------
        >>> import numpy as np
        >>> from skavi import FactorizedVI
        >>> from skavi.models import FactorAnalysis
        >>> X = np.outer(np.arange(30.0), [1.0, 2.0, -1.0])
        >>> X[4, 1] = np.nan
        >>> vi = FactorizedVI(FactorAnalysis(1)).fit(X)
        >>> filled, sd = vi.impute(X, return_sd=True)
        >>> bool(abs(filled[4, 1] - 8.0) < 3 * sd[4, 1])
        True
        """
        given = self._with_idle_columns(X, filled=True)
        X = self._validate(given)
        here, X = self._fitted_model.at(self._rows(X)), self.model_.explained(X)
        missing = np.isnan(X)
        with torch.no_grad():
            moments = cell_moments(here.objective, here.raw, here.raw_globals, here.rows.X)
        mean, variance = (moment.cpu().numpy() for moment in moments)
        whole = self._whole(np.where(missing, mean, X).astype(X.dtype), given)
        filled = in_set_output(self, whole, given)
        if not return_sd:
            return filled
        sd = np.where(missing, np.sqrt(variance), 0).astype(X.dtype)
        return filled, in_set_output(self, self._whole(sd), given)

    def _whole(self, explained, table=None):
        """Return explained columns among those that are given, of a user's table, or zeros."""
        roles = self.model_.columns_
        if not roles.places and not any(kind.levels for kind in roles.kinds):
            return explained
        if table is None:
            whole = np.zeros((len(explained), roles.n_columns), dtype=explained.dtype)
        else:
            whole = np.array(as_table(table))
        if table is None or not any(kind.levels for kind in roles.kinds):
            whole[:, roles.explained] = explained
            return whole
        whole = whole.astype(object)
        for place, kind, numbers in zip(roles.explained, roles.kinds, explained.T, strict=True):
            whole[:, place] = kind.decoded(numbers, whole[:, place])
        return whole

    def _given_apart(self, covariates, n_rows):
        """Return what a model's predictions are given, as a tuple of at most one tensor."""
        model, name = self.model_, type(self.model_).__name__
        asked = [role for role in model.row_roles if role in model.columns_.given]
        if not asked:
            if covariates is not None:
                raise ValueError(f"covariates=...: {name} has none, so leave it at None.")
            return ()
        if covariates is None:
            names = [c.name for role in asked for c in model.columns_.given[role]]
            named = ", ".join(dict.fromkeys(names))
            raise ValueError(f"{name} predicts given covariates: pass covariates=... ({named}).")
        given = aligned(model.columns_.beside(covariates, asked, "covariates", name))
        if len(given) != n_rows:
            raise ValueError(f"covariates has {len(given)} rows, but there are {n_rows}.")
        return (given,)

    def sample(
        self,
        n_samples: int = 1,
        random_state: Seed = None,
        covariates: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        group_covariates: ArrayLike | None = None,
    ) -> tuple[Floats, Floats]:
        """Draw new rows from the fitted model: theta from q(theta), then z, then x.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows. All share one draw of theta, as rows of one data set do.
        random_state : int, RandomState or None, default=None
            Seed or generator.
        covariates : array-like of shape (n_samples, n_covariates), default=None
            For a model that names covariates: these columns alone, a row for each new row
            (n_samples may be left out then). An offset is 0.
        groups : array-like of shape (n_samples,), default=None
            For a `GroupedModel`: the label of each new row's group. All groups are new ones, that
            of a label which the fit knew, too. None: each row is a group of its own.
        group_covariates : array-like of shape (n_samples, n_group_covariates), default=None
            For a model that names some: these columns alone, constant within each group.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            With the covariates, and the groups' labels, in their places.
        Z : ndarray of shape (n_samples, n_latents)
            Of a `GroupedModel`: each row has its group's.
        """
        check_is_fitted(self)
        if not is_whole(n_samples, 1):
            raise ValueError(f"n_samples={n_samples!r} must be an integer >= 1.")
        given_tables: tuple[Any, ...] = covariates, groups
        lengths = [len(each) for each in given_tables if each is not None]
        n_samples = lengths[0] if lengths and n_samples == 1 else n_samples
        given = self._given_apart(covariates, n_samples)
        tables = {
            "covariates": covariates,
            "group_covariates": group_covariates,
            LABELS: groups,
        }
        units = self._units_apart(tables, given, n_samples)
        width = self._row_width + self.model_.count_latents(self._n_explained)
        request = f"{type(self).__name__}.sample(n_samples={n_samples})"
        require_memory(int(n_samples) * width, request, "draw fewer samples at a time")
        state = private_state(random_state)
        space = self.model_.global_space(torch.zeros(1, self._row_width, dtype=torch.float64))
        u = self.global_posterior_.draw_unconstrained(state.standard_normal((1, space.size)))
        theta = space.constrain(torch.as_tensor(u[0]))
        seed = drawn_seed(state)
        with seeded(seed), defaults_of(torch.as_tensor(u)):
            X, Z = self.model_.simulate(theta, int(n_samples), self._n_explained, *given, **units)
        own = Z.numpy() if units else self.model_.own_scale(theta, Z, *given).numpy()
        if units and groups is None:
            tables[LABELS] = np.arange(n_samples)
        return self._with_given(X.numpy(), tables), own

    def _units_apart(self, tables, given, n_rows):
        """Return the groups of new rows, as the one keyword argument of a model's `simulate`."""
        roles, name = self.model_.columns_, type(self.model_).__name__
        for role in ("group_covariates", LABELS):
            if tables[role] is not None and role not in roles.given:
                raise ValueError(f"{role}=...: {name} has none, so leave it at None.")
        if LABELS not in roles.given:
            return {}
        parts, beside = [torch.zeros(n_rows, self._n_explained, dtype=torch.float64)], 0
        for role, width in roles.widths.items():
            if role in self.model_.row_roles:
                parts.append(given[0][:, beside : beside + width])
                beside += width
                continue
            table = tables[role]
            if role == LABELS:
                table = np.arange(n_rows) if table is None else np.asarray(table)
            if table is None:
                named = ", ".join(c.name for c in roles.given[role])
                raise ValueError(f"{name} samples given {role}=... ({named}).")
            parts.append(aligned(roles.apart(table, role, name)))
        wrong = [len(part) for part in parts if len(part) != n_rows]
        if wrong:
            raise ValueError(f"groups and group_covariates have {wrong} rows, but need {n_rows}.")
        rows = torch.cat(parts, 1)
        codes = rows[:, roles.slice(LABELS, rows.shape[1])][:, 0]
        units: Any = GroupedRows.by_code(rows, rows.new_ones(n_rows), codes)
        self.model_.check_data(units)
        return {"units": units}

    def _with_given(self, explained, tables):
        """Return new rows as a fit takes them; an offset is 0."""
        roles = self.model_.columns_
        if not roles.places and not any(kind.levels for kind in roles.kinds):
            return explained
        levelled = np.full((len(explained), roles.n_columns), np.nan)
        texts = any(kind.levels for kind in roles.kinds)
        whole = self._whole(explained, levelled if texts else None)
        asked = [role for role in self.model_.row_roles if role in roles.given]
        columns = {role: roles.given.get(role, ()) for role in tables}
        columns["covariates"] = tuple(
            dict.fromkeys(column for role in asked for column in roles.given[role])
        )
        for role, table in tables.items():
            if not columns[role] or table is None:
                continue
            names, table = feature_names(table), np.asarray(as_table(table))
            table = table.reshape(len(explained), -1)
            whole = whole if table.dtype.kind in "biuf" else whole.astype(object)
            for i, column in enumerate(columns[role]):
                at = i if names is None else list(names).index(column.name)
                whole[:, column.place] = table[:, at]
        return whole

    def _theta_draws(self, n_draws):
        fit = self._fitted_model.on_cpu()
        space, q_theta = fit.objective.space, fit.objective.global_factor(aligned(fit.raw_globals))
        return [space.constrain(u) for u in q_theta.draw(_draw_antithetic(n_draws, space.size))]


def _draw_antithetic(n_draws: int, dimension: int) -> Tensor:
    """Return fixed standard normals in pairs (+e, -e), exact for means of linear functions."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n_draws // 2, dimension, generator=generator, dtype=torch.float64)
    return torch.cat([noise, -noise])
