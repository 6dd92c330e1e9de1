"""Where factor analysis starts: prior scales from the data, and probabilistic PCA."""

import torch
from torch import Tensor

from skavi._data.missing_cells import Cells
from skavi._data.process_ranks import over_ranks, total
from skavi.models._cellwise import linear_start
from skavi.models._count_start import suggested_log_rates
from skavi.models._global_space import Theta
from skavi.models._poisson_closed_forms import LinearPoisson
from skavi.models._scale_priors import WEAK

#: Of a column's variance: noise that every column has at the start, at least.
_LEAST_SHARE = 1e-3
#: Of a covariate's variance: added where a start solves for slopes. Not measured.
_RIDGE = 0.01
#: Of the columns' standard deviation, and on the scale of logits and log rates: how wide the prior
#: of the mean is.
_WIDE, WIDE_ETA = 10.0, 3.0
#: Of the columns' variance: scale of the prior of the noise.
_SHARE = 0.01


class LinearStart(LinearPoisson):
    """Adds prior scales that are left open, and starts of theta and z."""

    # --- where to start -------------------------------------------------------------------------

    @over_ranks
    def adapted(self, X, weights):
        cells = self.cells_of(X)
        self._require_cells(cells, weights)
        offset = self.given_columns(X, "offset")
        if offset.shape[1] and self.cell.has_variance:
            cells = Cells(cells.masked(cells.values - offset), cells.observed)
        if self.mixed is not None:
            defaults = _mixed_defaults(self.mixed, cells, weights)
        else:
            defaults = self._identity_defaults(cells, weights)
        if not self.cell.has_variance and self.mixed is None:
            mean = self._location_less(cells, weights, defaults["mean_loc"], offset)
            defaults = {"loading_scale": mean.new_tensor(1.0), "mean_loc": mean}
            defaults["mean_scale"] = mean.new_tensor(WIDE_ETA)
        if self.n_covariates:
            self._widen(defaults, self.given_columns(X), weights)
        left_open = {n: v.cpu().numpy() for n, v in defaults.items() if getattr(self, n) is None}
        return self.with_arguments(left_open)

    def _location_less(self, cells, weights, mean, offset):
        """Return the columns' eta where the offset is 0."""
        if not offset.shape[1]:
            return self.cell.location(mean)
        if not self.cell.counts:
            return self.cell.location(mean) - cells.mean_of(weights, offset)
        return self.cell.location(mean / cells.mean_of(weights, offset.exp()))

    def _widen(self, defaults, given, weights):
        """Add the scale of coefficients, and give the mean's the room to be that at c = 0."""
        centre, variance = Cells(given, None).mean_and_variance(weights)
        size = defaults["loading_scale"].reshape(-1, 1).expand(len(defaults["mean_loc"]), 1)
        scale = WEAK * size / variance.sqrt()
        defaults["coefficient_scale"] = scale
        away = ((scale * centre) ** 2).sum(-1)
        away = away if defaults["mean_scale"].dim() else away.mean()
        defaults["mean_scale"] = (defaults["mean_scale"] ** 2 + away).sqrt()

    def _identity_defaults(self, cells, weights):
        mean, variance = cells.mean_and_variance(weights)
        overall = variance.mean()
        rounding = 1e-24 * (variance + mean**2)  # variance of a constant column, by rounding
        overall = overall if overall > rounding.mean() else torch.ones_like(overall)
        if self.by_column:
            variance = torch.where(variance > rounding, variance, overall)
        else:
            variance = overall
        return {
            "loading_scale": variance.sqrt(),
            "mean_loc": mean,
            "mean_scale": _WIDE * variance.sqrt(),
            "noise_scale": _SHARE * variance,
        }

    @over_ranks
    def initial_globals(self, X, weights):
        """Probabilistic PCA of columns in units of their noise (Tipping & Bishop 1999, eq. 7-8)."""
        n_features, k = self.n_predictors(self.n_explained(X)), self.n_components
        scale = torch.as_tensor(self.loading_scale).to(X)
        cells, slopes, centre = self._regressed(X, weights)
        mean, _ = cells.mean_and_variance(weights)
        covariance = cells.covariance(weights, mean, scale)
        noise = self._initial_noise(covariance)  # in units of scale, as the covariance
        sd = noise.sqrt()
        values, vectors = torch.linalg.eigh(covariance / sd / sd.reshape(-1, 1))
        values, vectors = values.flip(0), vectors.flip(1)
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        kept = min(k, n_features)
        loadings = X.new_zeros(n_features, k)
        loadings[:, :kept] = vectors[:, :kept] * (values[:kept] - 1).clamp_min(1e-2).sqrt()
        loadings = loadings * (sd * scale).expand(n_features).unsqueeze(-1)
        own = (scale**2).expand(n_features) if self.by_column else (scale**2).mean()
        given = self.mixed is None and (self.cell.has_variance or self.cell.log_linear)
        mean = mean if given else self.location(mean).clone()
        mean = mean - slopes @ centre
        known = {"coefficients": slopes} if self.n_covariates else {}
        linear = {"loadings": loadings, **known, **self._named_intercepts(mean, X, weights)}
        return self.cell.start(noise * own) | linear

    def intercepts(self, theta: Theta) -> Tensor:
        """Return the predictors of a row whose latents and covariates are 0."""
        return theta["mean"] if self.mixed is None else self.mixed.intercepts(theta)

    def _named_intercepts(self, intercepts, X, weights):
        if self.mixed is None:
            return {"mean": intercepts}
        return self.mixed.apart(intercepts, self.cells_of(X), weights)

    def _regressed(self, X, weights):
        """Return pseudo-cells less what covariates explain, its slopes, and covariates' means.

        By least squares, a column by its own cells; a hundredth of a covariate's variance is added,
        for covariates that explain one another.
        """
        given = self.given_columns(X)
        centre, variance = Cells(given, None).mean_and_variance(weights)
        centred = given - centre
        if self.mixed is None and self.cell.log_linear:
            return *self._counts_regressed(X, weights, centred), centre
        cells = self._pseudo_cells(X)
        if not given.shape[1]:
            return cells, given.new_zeros(cells.values.shape[1], 0), centre
        mean, _ = cells.mean_and_variance(weights)
        squares = cells.over_rows(weights, centred.unsqueeze(-1) * centred.unsqueeze(-2))
        count = cells.over_rows(weights, torch.ones_like(weights))
        squares = squares + torch.diag(_RIDGE * variance) * count.reshape(-1, 1, 1)
        cross = total((weights.unsqueeze(-1) * cells.masked(cells.values - mean)).mT @ centred)
        slopes = torch.linalg.solve(squares, cross.unsqueeze(-1)).squeeze(-1)
        rest = cells.masked(cells.values - centred @ slopes.mT)
        return Cells(rest, cells.observed), slopes, centre

    def _counts_regressed(self, X, weights, centred):
        prior, k = self._column_prior(X), self.n_components
        known = torch.nn.functional.pad(centred, (0, 1), value=1.0)
        suggested, coefficients = suggested_log_rates(
            self.cells_of(X),
            weights,
            known,
            torch.as_tensor(self.shift(X)).to(X),
            prior.loc[:, k:],
            prior.precision[:, k:],
        )
        return suggested, coefficients[:, :-1]

    def _initial_noise(self, covariance):
        """Return the columns' noise: mean of the eigenvalues left out, or what columns have alone.

        What a column has alone is at most its variance given all other columns (Joreskog 1967,
        "Some contributions to maximum likelihood factor analysis", section 6); the prior's smallest
        share is added to every column, for tables without an inverse.
        """
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(0)
        least = _LEAST_SHARE * covariance.diagonal().clamp_min(_LEAST_SHARE)
        alone = 1 / (vectors**2 @ (1 / (values + least.mean())))
        if self.by_column and self.cell.has_variance:
            return alone
        left = values[: max(len(values) - self.n_components, 0)]
        # One column has no use for a component: from little noise it took 357 sweeps to lose it.
        whole = alone.mean() if self.cell.has_variance else 0.01 * values.mean()
        rest = left.mean() if len(left) else whole
        return rest.clamp_min(1e-3 * values.mean().clamp_min(1e-3))

    def initial_locals(self, theta, X):
        """Return the factors that normal cells of the same predictor would have."""
        noise = self.noise_at_start(theta, X)
        known, centre = self.covariates_of(X), self.intercepts(theta)
        centre = centre if known is None else known @ theta["coefficients"].mT + centre
        return linear_start(self._pseudo_cells(X), theta["loadings"], centre, noise)


def _mixed_defaults(mixed, cells, weights):
    """Return scales left open of columns of different kinds, a number for each predictor."""
    location, scale = mixed.moments_of(cells, weights)
    varied = mixed.with_variance
    wide = torch.full_like(scale, WIDE_ETA)
    wide[varied] = _WIDE * scale[varied]
    found = {"loading_scale": scale, "mean_loc": location, "mean_scale": wide}
    return found | ({"noise_scale": _SHARE * scale[varied] ** 2} if varied else {})
