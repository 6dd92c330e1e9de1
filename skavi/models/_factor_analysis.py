"""Factor analysis and probabilistic PCA with a posterior over every global."""

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from skavi._data.missing_cells import Cells
from skavi._data.process_ranks import over_ranks, total
from skavi.distributions import PriorOfVariance
from skavi.families import DiagonalFactors, DiagonalNormal
from skavi.models._base import overrides
from skavi.models._cellwise import linear_start
from skavi.models._linear_cells import LinearCells, arrow_of_cells, rows_of_cells
from skavi.models._noise_factors import NoiseFactors
from skavi.models._poisson_closed_forms import LinearPoisson
from skavi.models._poisson_rates import Side
from skavi.models._scale_priors import WEAK, check_scale, scale_prior

#: What `row_derivatives` differentiates.
_TERMS = "half_expected_terms", "expected_log_prior", "log_prior", "predictor", "eta", "cell"
#: Of a column's variance: noise that every column has at the start, at least.
_LEAST_SHARE = 1e-3
#: Of a covariate's variance: added where a start solves for slopes. Not measured.
_RIDGE = 0.01


class FactorAnalysis(LinearPoisson):
    r"""Linear model: a row is a mix of a few patterns, in noise or through a link.

    .. math::

       x_n \sim \mathrm{N}(W z_n + B c_n + m, \mathrm{diag}(v)), \quad z_n \sim \mathrm{N}(0, I)

    `transform` returns the posterior means of the latents :math:`z_n`, and `inverse_transform` the
    rows to expect of latents. ``noise="isotropic"`` (one variance v) is probabilistic PCA,
    ``"diagonal"`` factor analysis. Loadings W and mean m have normal priors, the noise variance v
    an inverse gamma one. Scales left at None are weakly informative, taken from the training data
    column by column (``"diagonal"``) or over all columns (``"isotropic"``).

    Columns named in `covariates` are given: the others have the mean :math:`B c_n` beside their
    factors. Other likelihoods read :math:`\eta_n = W z_n + B c_n + m + \mathrm{offset}_n` through
    their link: logits for "bernoulli", log rates for counts. Missing cells (NaN) are marginalised.

    Parameters
    ----------
    n_components : int, default=2
        Number of latents a row.
    noise : {"isotropic", "diagonal"}, default="isotropic"
        One noise variance (or dispersion) for all columns, or one a column.
    likelihood : str, default="normal"
        Distribution of a cell given eta: "normal"; "student_t", where v is the squared scale;
        "bernoulli", for cells from 0 to 1; "poisson" or "negative_binomial", for cells >= 0 of mean
        :math:`\mu = \text{exposure} \cdot e^\eta`, the latter of variance
        :math:`\mu + \text{dispersion} \cdot \mu^2`.
    exposure : {"total", "unit"}, default=None
        For counts, the factor of a row's rates: "total", the row's total over the total that
        mean_loc expects for its observed cells, so that latents describe the composition of a row;
        "unit", 1. None: "total" for counts. Predictions without a row are for exposure 1.
    loading_scale : float or array of shape (n_features,), default=None
        Prior sd of the loadings, in units of X. None: the columns' standard deviation, and 1 for
        logits and log rates.
    mean_loc, mean_scale : float or array of shape (n_features,), default=None
        Prior mean and sd of the mean. None: the columns' means (through the link), and 10 standard
        deviations, or 3 for logits and log rates; wider where covariates are far from 0, as the
        mean is that of a row whose covariates are all 0.
    covariates : str, int or list of them, default=None
        Names or places of columns of X that are given; text and categories count a level at a time,
        against the first one.
    offset : str, int or list of them, default=None
        Names or places of one column, or of one for each explained column, added to eta: log
        exposures for counts. "exposure" is then "unit" unless it is set, so that size is not
        counted twice.
    coefficient_scale : float, array or Distribution, default=None
        Prior sd of the coefficients, shape (n_features, n_covariates), or their prior
        (`skavi.distributions.Flat`, say). None: 2.5 standard deviations of the column (1 for
        logits and log rates) over that of the covariate, as Gelman et al. (2008) have it.
    noise_shape : float, default=1.0
        Shape of the inverse gamma prior.
    noise_scale : float or array of shape (n_features,), default=None
        Its scale, in squared units of X. None: a hundredth of the columns' variance.

    Notes
    -----
    Globals, in ``global_posterior_``:

    * "loadings" (n_features, n_components), W, and "mean" (n_features,), m;
    * "coefficients" (n_features, n_covariates), B, with covariates;
    * "noise_variance", or "dispersion" with prior Exp(1), a scalar or (n_features,);
    * "degrees_of_freedom" (student_t), with prior Gamma(2, 0.1).

    With normal noise all expectations are closed-form; the coordinate updates are those of Bishop
    (1999), "Variational principal components", with a fully factorized q(W). Poisson cells need
    :math:`\mathrm{E}\,\exp(W_d z_n)`, which independent normal factors have in closed form too, and
    are fitted by second-order steps in all rows and columns together; it is infinite, and the ELBO
    minus infinity, where the sds of a latent and of its loading have a product of 1 or more. With
    other likelihoods only z_n needs nodes: given it eta is normal, and its kernel is integrated
    cell by cell, with the noise where q(theta) has independent factors.

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import FactorizedVI
    >>> from skavi.models import FactorAnalysis
    >>> X = np.random.default_rng(0).normal(size=(50, 4))
    >>> vi = FactorizedVI(FactorAnalysis(n_components=2)).fit(X)
    >>> vi.global_posterior_.mean["loadings"].shape
    (4, 2)

    Counts, with a missing cell:

    >>> X = np.random.default_rng(0).poisson(3.0, size=(50, 4)).astype(float)
    >>> X[0, 0] = np.nan
    >>> vi = FactorizedVI(FactorAnalysis(1, likelihood="poisson")).fit(X)
    >>> vi.transform(X).shape
    (50, 1)
    """

    def __init__(
        self,
        n_components=2,
        noise="isotropic",
        *,
        likelihood="normal",
        exposure=None,
        loading_scale=None,
        mean_loc=None,
        mean_scale=None,
        noise_shape=1.0,
        noise_scale=None,
        covariates=None,
        offset=None,
        coefficient_scale=None,
    ):
        self.n_components = n_components
        self.noise = noise
        self.likelihood = likelihood
        self.exposure = exposure
        self.loading_scale = loading_scale
        self.mean_loc = mean_loc
        self.mean_scale = mean_scale
        self.noise_shape = noise_shape
        self.noise_scale = noise_scale
        self.covariates = covariates
        self.offset = offset
        self.coefficient_scale = coefficient_scale

    def check(self):
        super().check()
        self._require("noise", self.noise in ("isotropic", "diagonal"), '"isotropic" or "diagonal"')
        unused = f"left alone: likelihood={self.likelihood!r} has no such parameter"
        self._require("noise", self.cell.has_noise or self.noise == "isotropic", unused)
        self._require("noise_scale", self.cell.has_variance or self.noise_scale is None, unused)
        self._require_positive("noise_shape")
        for name in ("loading_scale", "mean_scale", "noise_scale"):
            self._require_vector(name, positive=True)
        self._require_vector("mean_loc")
        check_scale(self, "coefficient_scale")

    def check_data(self, X):
        super().check_data(X)
        n_features = self.n_explained(X)
        for name in ("loading_scale", "mean_loc", "mean_scale", "noise_scale"):
            self._require_size(name, n_features)
        if self.noise == "isotropic" and np.size(self.noise_scale) != 1:
            raise ValueError(
                f"{type(self).__name__}(noise='isotropic') has one noise variance, but noise_scale "
                f"has {np.size(self.noise_scale)} numbers: give one, or noise='diagonal'."
            )

    # --- the model ------------------------------------------------------------------------------

    roles = ("covariates", "offset")
    integrated_globals = ("loadings", "coefficients", "mean")

    def least_globals(self, n_features):
        return n_features * (sum(self._widths) + 1)

    def global_prior(self, n_features):
        self._require_adapted()
        zeros = torch.zeros(n_features)
        scale = (zeros + torch.as_tensor(self.loading_scale)).unsqueeze(-1)
        shape = (n_features,) if self.noise == "diagonal" else ()
        prior = self.cell.global_prior(shape, self._variance_prior(zeros))
        prior["loadings"] = Normal(0.0, scale.expand(n_features, self.n_components))
        if p := self.n_covariates:
            prior["coefficients"] = scale_prior(self.coefficient_scale, (n_features, p))
        mean_scale = zeros + torch.as_tensor(self.mean_scale)
        return prior | {"mean": Normal(self.location(zeros), mean_scale)}

    def global_dims(self):
        noise = ("feature",) if self.noise == "diagonal" else ()
        own = dict.fromkeys(("noise_variance", "dispersion"), noise) if noise else {}
        known = {"coefficients": ("feature", "covariate")} if self.n_covariates else {}
        return {"loadings": ("feature", "latent"), "mean": ("feature",), **known, **own}

    def _variance_prior(self, zeros):
        if not self.cell.has_variance:
            return None
        scale = torch.as_tensor(self.noise_scale, dtype=zeros.dtype)
        scale = zeros + scale if self.noise == "diagonal" else scale.reshape(())
        return PriorOfVariance(torch.as_tensor(self.noise_shape, dtype=zeros.dtype), scale)

    def _require_adapted(self):
        scales = [self.loading_scale, self.mean_loc, self.mean_scale]
        scales += [self.noise_scale] if self.cell.has_variance else []
        scales += [self.coefficient_scale] if self.n_covariates else []
        if any(scale is None for scale in scales):
            raise ValueError(
                "FactorAnalysis takes the prior scales left at None from data: use the fitted "
                "estimator's model_, or set loading_scale, mean_loc, mean_scale, noise_scale (and "
                "coefficient_scale)."
            )

    def location(self, like):
        return torch.as_tensor(self.mean_loc).to(like).expand(like.shape[-1])

    def predictor(self, theta, z, covariates=None):
        eta = torch.addmm(theta["mean"], z, theta["loadings"].mT)
        return eta if covariates is None else eta + covariates @ theta["coefficients"].mT

    def half_expected_terms(self, theta, z, factors, rest, X):
        """Integrate W, B and m out, given z: eta is normal, its mean at theta; and the noise."""
        design = torch.nn.functional.pad(self._design(z, X), (0, 1), value=1.0)
        variance = rest.variance_along(design, self._linear_index(rest, X))
        eta, cells = self.eta(theta, z, X), self.cells_of(X)
        if self._integrates(rest):
            noise = self._noise(theta, rest, X)
            fit = self.cell.expected_rows_over_noise(cells, eta, variance, noise)
        else:
            fit = self.cell.expected_log_rows(cells, eta, variance, theta)
        return self.expected_log_prior(theta, z, factors, X) + fit

    def integrated(self, global_family):
        own = self.cell.own_globals if isinstance(global_family, DiagonalNormal) else ()
        return own + self.integrated_globals

    def _integrates(self, rest):
        """Say whether the noise is integrated with eta: where it is independent of it."""
        return self.cell.bends and type(rest) is DiagonalFactors

    def _noise(self, theta, rest, X):
        """Return the factors of the noise: means as in theta, sds 0 where theta was drawn."""
        index, own = self._noise_index(rest, X), self.cell.own_globals
        means = [theta[name].log().expand(len(index)) for name in own]
        mean = torch.stack(means, -1) if means else X.new_zeros(index.shape)
        return NoiseFactors(mean, rest.sd[index])

    def _noise_index(self, globals_, X):
        """Return the places in theta of a column's noise, (n_features, h), before all else."""
        linear, own = self._linear_index(globals_, X), self.cell.own_globals
        first, columns = int(linear.min()), torch.arange(len(linear), device=X.device)
        places: list[Tensor] = []
        for name in reversed(own):
            each = self.noise == "diagonal" and name != "degrees_of_freedom"
            first -= len(columns) if each else 1
            places.insert(0, first + columns if each else torch.full_like(columns, first))
        return torch.stack(places, -1) if places else linear[:, :0]

    def row_derivatives(self, factors, globals_, X, nodes, weights, frozen):
        """Differentiate cell by cell, where nothing but the rows' latents is drawn."""
        families = {type(factors), type(globals_)}
        changed = any(overrides(self, FactorAnalysis, name) for name in _TERMS)
        if families != {DiagonalFactors} or len(nodes.locals_[0]) != 1 or changed:
            return None
        if not self._integrates(globals_):
            return None
        rows, size = Side(factors.mean, factors.sd**2), globals_.mean.shape[-1]
        index, at = self._linear_index(globals_, X), self._noise_index(globals_, X)
        columns = Side(globals_.mean[index], globals_.sd[index] ** 2)
        noise = NoiseFactors(globals_.mean[at], globals_.sd[at])
        offset = X.new_zeros(len(X), 1) + self.shift(X)
        cells = LinearCells(self.cell, self.cells_of(X), self._known(X), offset, weights)
        reading = rows, columns, noise, nodes.locals_[:, 0], nodes.weights
        if frozen:
            slope, block = cells.derivatives_of_rows(*reading)
            return *rows_of_cells(rows, slope, block, weights), None, None, None
        where = torch.cat([index, index + size, at, at + size], -1)
        return arrow_of_cells(rows, cells.derivatives(*reading), where, 2 * size, weights)

    # --- where to start -------------------------------------------------------------------------

    @over_ranks
    def adapted(self, X, weights):
        cells = self.cells_of(X)
        self._require_cells(cells, weights)
        offset = self.given_columns(X, "offset")
        if offset.shape[1] and self.cell.has_variance:
            cells = Cells(cells.masked(cells.values - offset), cells.observed)
        defaults = self._identity_defaults(cells, weights)
        if not self.cell.has_variance:
            mean = self._location_less(cells, weights, defaults["mean_loc"], offset)
            defaults = {"loading_scale": mean.new_tensor(1.0), "mean_loc": mean}
            defaults["mean_scale"] = mean.new_tensor(3.0)
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
        if self.noise == "diagonal":
            variance = torch.where(variance > rounding, variance, overall)
        else:
            variance = overall
        return {
            "loading_scale": variance.sqrt(),
            "mean_loc": mean,
            "mean_scale": 10 * variance.sqrt(),
            "noise_scale": 0.01 * variance,
        }

    @over_ranks
    def initial_globals(self, X, weights):
        """Probabilistic PCA of columns in units of their noise (Tipping & Bishop 1999, eq. 7-8)."""
        n_features, k = self.n_explained(X), self.n_components
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
        own = (scale**2).expand(n_features) if self.noise == "diagonal" else (scale**2).mean()
        mean = mean if self.cell.has_variance else self.location(self.explained(X)).clone()
        known = {"coefficients": slopes} if self.n_covariates else {}
        linear = {"loadings": loadings, **known, "mean": mean - slopes @ centre}
        return self.cell.start(noise * own) | linear

    def _regressed(self, X, weights):
        """Return pseudo-cells less what covariates explain, its slopes, and covariates' means.

        By least squares, a column by its own cells; a hundredth of a covariate's variance is added,
        for covariates that explain one another.
        """
        cells, given = self._pseudo_cells(X), self.given_columns(X)
        centre, variance = Cells(given, None).mean_and_variance(weights)
        centred = given - centre
        if not given.shape[1]:
            return cells, given.new_zeros(self.n_explained(X), 0), centre
        mean, _ = cells.mean_and_variance(weights)
        squares = cells.over_rows(weights, centred.unsqueeze(-1) * centred.unsqueeze(-2))
        count = cells.over_rows(weights, torch.ones_like(weights))
        squares = squares + torch.diag(_RIDGE * variance) * count.reshape(-1, 1, 1)
        cross = total((weights.unsqueeze(-1) * cells.masked(cells.values - mean)).mT @ centred)
        slopes = torch.linalg.solve(squares, cross.unsqueeze(-1)).squeeze(-1)
        rest = cells.masked(cells.values - centred @ slopes.mT)
        return Cells(rest, cells.observed), slopes, centre

    def _initial_noise(self, covariance):
        """Return the columns' noise: mean of the eigenvalues left out, or what each has alone.

        What a column has alone is at most its variance given all other columns (Joreskog 1967,
        "Some contributions to maximum likelihood factor analysis", section 6); the prior's smallest
        share is added to every column, for tables without an inverse.
        """
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(0)
        if self.noise == "diagonal" and self.cell.has_variance:
            least = _LEAST_SHARE * covariance.diagonal().clamp_min(_LEAST_SHARE)
            return 1 / (vectors**2 @ (1 / (values + least.mean())))
        left = values[: max(len(values) - self.n_components, 0)]
        rest = left.mean() if len(left) else 0.01 * values.mean()
        return rest.clamp_min(1e-3 * values.mean().clamp_min(1e-3))

    def initial_locals(self, theta, X):
        """Return the factors that normal cells of the same predictor would have."""
        noise = theta["noise_variance"] if self.cell.has_variance else torch.ones(1).to(X)
        known = self.covariates_of(X)
        centre = (
            theta["mean"] if known is None else known @ theta["coefficients"].mT + theta["mean"]
        )
        return linear_start(self._pseudo_cells(X), theta["loadings"], centre, noise)
