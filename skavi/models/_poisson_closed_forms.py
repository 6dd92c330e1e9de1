"""Closed forms of factor analysis of counts: expectations, and second-order steps."""

import copy

import torch
from torch import Tensor

from skavi._data.process_ranks import over_ranks
from skavi.families import LOG_2PI, DiagonalFactors, DiagonalNormal, NormalFactors
from skavi.models._factor_analysis_closed_forms import LinearNormal, linear_index, mixed_index
from skavi.models._poisson_frame import Prior
from skavi.models._poisson_rates import Counts, Side, log_expected_full
from skavi.models._poisson_rows import fitted
from skavi.models._poisson_steps import Step
from skavi.models._scale_priors import is_centred_normal

#: Newton steps a row between steps of q(theta): rows start at what the step makes of them.
_SWEEP_STEPS = 1
#: Rows x columns x squared components of matrices held at once: 16 MB. Not measured.
_NUMBERS = 2_000_000


class LinearPoisson(LinearNormal):
    """Adds closed forms of x_nd ~ Poisson(exposure_n exp(W_d z_n + m_d)) to those of normal cells.

    The ELBO is concave in the rows' factors given the columns', and the other way round: each row
    has one optimum given q(theta). Both sides move together in a `Step`.
    """

    learned = (*LinearNormal.learned, "columns_read_")

    @property
    def second_order_sweeps(self):  # type: ignore[override]
        return self.cell.log_linear

    @property
    def passes_a_cell(self):  # type: ignore[override]
        return 4 * self.n_components if self.cell.log_linear else super().passes_a_cell

    def has_closed_form(self, family, global_family):
        return self.cell.log_linear or super().has_closed_form(family, global_family)

    def has_coordinate_updates(self, family, global_family):
        if not self.cell.log_linear:
            return super().has_coordinate_updates(family, global_family)
        diagonal = isinstance(family, DiagonalNormal) and isinstance(global_family, DiagonalNormal)
        known = not self.n_covariates or is_centred_normal(self.coefficient_scale)
        return diagonal and known and not self.cell.global_prior((), None)

    def expected_log_local(self, factors, globals_, X):
        if not self.cell.log_linear:
            return super().expected_log_local(factors, globals_, X)
        counts, index = self._counts(X), self._linear_index(globals_, X)
        x, mean = counts.cells.values, globals_.mean[index]
        diagonal = isinstance(factors, DiagonalFactors) and isinstance(globals_, DiagonalFactors)
        design = self._design(factors.mean, X)
        if diagonal:
            columns = Side(mean, globals_.sd[index] ** 2)
            rates = counts.rates(self._rows(factors, X), columns)
        else:
            rates = _full_rates(counts, design, factors, mean, globals_, index)
        design = torch.nn.functional.pad(design, (0, 1), value=1.0)
        fit = ((x @ mean) * design).sum(-1) + (x * counts.log_exposure).sum(-1)
        fit = fit + self.cell.constant(x, {}).sum(-1) - rates.sum(-1)
        prior = (factors.mean**2 + factors.sd**2 + LOG_2PI).sum(-1)
        return fit - 0.5 * prior

    def local_optimum(self, globals_, X, family, start=None):
        if not self.cell.log_linear:
            return super().local_optimum(globals_, X, family, start)
        if start is None:
            return self.best_locals(globals_, X, family)
        return self._fitted(globals_, X, start, _SWEEP_STEPS)

    def best_locals(self, globals_, X, family, start=None):
        if not self.cell.log_linear:
            return super().best_locals(globals_, X, family, start)
        if start is None:
            mean, sd = self.initial_locals(self._at_means(globals_, X), X)
            start = DiagonalFactors(mean, sd)
        return self._fitted(globals_, X, start)

    def nearest_locals(self, globals_, X, family, start):
        if not self.cell.log_linear:
            return super().nearest_locals(globals_, X, family, start)
        return self._fitted(globals_, X, start)

    @over_ranks
    def global_optimum(self, globals_, factors, X, weights):
        if not self.cell.log_linear:
            return super().global_optimum(globals_, factors, X, weights)
        return self.swept(globals_, factors, X, weights)[0]

    @over_ranks
    def swept(self, globals_, factors, X, weights):
        if not self.cell.log_linear:
            return super().swept(globals_, factors, X, weights)
        columns, rows = self._columns(globals_, X), self._rows(factors, X)
        k = self.n_components
        step = Step(self._counts(X, weights), self._column_prior(X), rows, columns)
        rows, columns = step.end.rows.first(k), step.end.columns
        mean, variance = (
            torch.cat([t[:, :k].reshape(-1), t[:, k:-1].reshape(-1), t[:, -1]])
            for t in (columns.mean, columns.variance)
        )
        there = DiagonalFactors(mean, variance.sqrt())
        return there, DiagonalFactors(rows.mean, rows.variance.sqrt()), step.promised

    @over_ranks
    def compressed(self, X, weights):
        return (X, weights) if self.cell.log_linear else super().compressed(X, weights)

    # --- what inference functions read ----------------------------------------------------------

    def reading(self, globals_):
        model = super().reading(globals_)
        if self.cell.log_linear and isinstance(globals_, DiagonalFactors):
            model = copy.copy(model)
            index = linear_index(globals_.mean, self._n_columns(globals_), *self._widths)
            read = globals_.mean[index], globals_.sd[index] ** 2
            model.columns_read_ = torch.cat(read, -1).cpu().numpy()
        return model

    @property
    def summary_is_factor(self):  # type: ignore[override]
        return hasattr(self, "columns_read_")

    def summary(self, X):
        """Return a row's own factor given the training q(theta): its means and log sds.

        Functions of counts themselves end nats a row below, for a factor depends on counts by their
        logs, and after a few Newton steps some rows are far from it still.
        """
        if not hasattr(self, "columns_read_"):
            return super().summary(X)
        k = self.n_components
        columns = Side(*torch.as_tensor(self.columns_read_).to(X).chunk(2, -1))
        mean, sd = self.initial_locals(self._named(columns.mean), X)
        start = self._rows(DiagonalFactors(mean, sd), X)
        rows = fitted(self._counts(X), columns, start).first(k)
        return torch.cat([rows.mean, 0.5 * rows.variance.log()], -1)

    def check_learned(self, n_features):
        super().check_learned(n_features)
        if hasattr(self, "columns_read_"):
            self._require_learned("columns_read_", (n_features, 2 * (sum(self._widths) + 1)))

    # --- its parts ------------------------------------------------------------------------------

    def _counts(self, X, weights=None):
        weights = X.new_ones(len(X)) if weights is None else weights
        exposure = X.new_zeros(len(X), 1) + self.shift(X)
        return Counts(self.cells_of(X), exposure, weights, self.n_covariates)

    @property
    def _widths(self):
        return self.n_components, self.n_covariates

    def _n_columns(self, globals_):
        return globals_.mean.shape[-1] // (sum(self._widths) + 1)

    def _linear_index(self, globals_, X):
        u, n_features = globals_.mean, self.n_explained(X)
        if self.mixed is None:
            return linear_index(u, n_features, *self._widths)
        return mixed_index(u, self.mixed, *self._widths)

    def _rows(self, factors, X):
        """Return the rows' side: latents, then what is known."""
        variance = factors.sd**2
        known = X.new_zeros(len(X), self.n_covariates)
        return Side(self._design(factors.mean, X), torch.cat([variance, known], -1))

    def _columns(self, globals_, X):
        index = self._linear_index(globals_, X)
        return Side(globals_.mean[index], globals_.sd[index] ** 2)

    def _at_means(self, globals_, X):
        return self._named(self._columns(globals_, X).mean)

    def _named(self, mean):
        """Return means of the columns' numbers by the names of globals."""
        k = self.n_components
        return {"loadings": mean[:, :k], "coefficients": mean[:, k:-1], "mean": mean[:, -1]}

    def _column_prior(self, X):
        loc = self.location(self.explained(X)).unsqueeze(-1)
        loc = torch.nn.functional.pad(loc, (sum(self._widths), 0))
        return Prior(loc, self.linear_precision(X))

    def _fitted(self, globals_, X, start, *steps):
        start, k = self._rows(start, X), self.n_components
        rows = fitted(self._counts(X), self._columns(globals_, X), start, *steps).first(k)
        return DiagonalFactors(rows.mean, rows.variance.sqrt())


def _full_rates(
    counts: Counts, design: Tensor, factors: NormalFactors, mean: Tensor, globals_, index: Tensor
):
    """Return the expected rates under correlated factors, for some rows at a time."""
    if isinstance(globals_, DiagonalFactors):
        root = torch.diag_embed(globals_.sd[index])
    else:
        root = torch.linalg.cholesky(globals_.block_covariance(index))
    design = torch.nn.functional.pad(design, (0, 1), value=1.0)
    more = design.shape[-1] - factors.mean.shape[-1]
    wide = torch.nn.functional.pad(factors.covariance(), (0, more, 0, more))
    size = max(1, _NUMBERS // max(1, root.numel()))
    logs = [
        log_expected_full(design[part], wide[part], mean, root)
        for part in (slice(i, i + size) for i in range(0, len(design), size))
    ]
    return counts.cells.masked((torch.cat(logs) + counts.log_exposure).exp())
