"""Factor analysis and probabilistic PCA with a posterior over every global."""

import numpy as np
import torch
from torch.distributions import Normal

from skavi.distributions import PriorOfVariance
from skavi.families import DiagonalNormal
from skavi.models._base import overrides
from skavi.models._bent_cells import BentCells
from skavi.models._scale_priors import check_scale, scale_prior

#: What `BentCells` integrates and differentiates.
_TERMS = "half_expected_terms", "expected_log_prior", "log_prior", "predictor", "eta", "cell"


class FactorAnalysis(BentCells):
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
        One noise variance (or dispersion) for all columns, or one a column. Mixed columns differ in
        their units, and have one each in either case.
    likelihood : str, or dict from str to columns, default="normal"
        Distribution of a cell given eta: "normal"; "student_t", where v is the squared scale;
        "bernoulli", for cells from 0 to 1; "poisson" or "negative_binomial", for cells >= 0 of mean
        :math:`\mu = \text{exposure} \cdot e^\eta`, the latter of variance
        :math:`\mu + \text{dispersion} \cdot \mu^2`; "ordinal", for levels 0, 1, ..., K - 1 by
        cumulative logits, P(x <= k) = logistic(c - eta) with the cut point c above level k;
        "categorical", for levels 0, ..., K - 1 without an order, or texts: is it the first one, if
        not the second, and so on, a logit each; "binomial", for successes out of `trials`. A dict
        names the columns, by name or place, of each likelihood: a table of mixed columns (Notes).
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
    trials : str, int or list of them, default=None
        For "binomial": name or place of the column of trials, or of one for each such column.
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
    other likelihoods, one latent has nodes: given it eta is normal, and its kernel is integrated
    cell by cell, with the noise where q(theta) has independent factors. Of several latents eta has
    the nodes, a cell at a time (`skavi.noise.LinearPredictor`): its distribution is taken to have
    the right first four moments, and those beyond of a gamma mixture of normals, which is 2e-5 nats
    a cell off where loadings have sds of 0.3.

    A table of mixed columns has one predictor a column, and for a category one a level but the
    last; rows of "loadings" and of "coefficients" follow in the columns' order. "mean" leaves
    ordinal columns out: these have "cutpoints", a column after the other, K - 1 each, increasing.
    The middle one (the third of four) has the prior of a mean with its sign reversed, and logs of
    gaps between neighbours are N(0, 1). "noise_variance" is that of normal, then of student_t
    columns. Levels are as many as the largest cell of the training table says, or as the categories
    of a frame's column. An ordered cell is a yes and a no at its two neighbouring cut points, a
    category a chain of them, so that expectations are one-dimensional integrals for these, too;
    sums of two or more uncertain gaps are taken as a shifted log-normal number with the same three
    moments, which is 3e-5 nats a cell off where sds of logs of gaps are 0.3. The order of
    categories matters to their prior alone. Counts have unit exposure, and there is no offset.
    `impute` fills each column in its own kind.

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

    Answers to two questions of three levels, beside an age:

    >>> rng = np.random.default_rng(0)
    >>> mood = rng.normal(size=(80, 1))
    >>> answers = (mood + rng.normal(size=(80, 2))).round().clip(-1, 1) + 1
    >>> X = np.column_stack([rng.integers(20, 60, 80), answers])
    >>> X[0, 1] = np.nan
    >>> model = FactorAnalysis(1, likelihood={"normal": [0], "ordinal": [1, 2]})
    >>> vi = FactorizedVI(model, random_state=0).fit(X)
    >>> vi.global_posterior_.mean["cutpoints"].shape
    (4,)
    >>> vi.impute(X)[0, 1] in (0.0, 1.0, 2.0)
    True
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
        trials=None,
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
        self.trials = trials

    def check(self):
        super().check()
        self._require("noise", self.noise in ("isotropic", "diagonal"), '"isotropic" or "diagonal"')
        if not self.untold:
            unused = f"left alone: likelihood={self.likelihood!r} has no such parameter"
            self._require("noise", self.cell.has_noise or self.noise != "diagonal", unused)
            self._require("noise_scale", self.cell.has_variance or self.noise_scale is None, unused)
        self._require_positive("noise_shape")
        for name in ("loading_scale", "mean_scale", "noise_scale"):
            self._require_vector(name, positive=True)
        self._require_vector("mean_loc")
        check_scale(self, "coefficient_scale")

    def check_data(self, X):
        super().check_data(X)
        n_predictors = self.n_predictors(self.n_explained(X))
        for name in ("loading_scale", "mean_loc", "mean_scale"):
            self._require_size(name, n_predictors)
        varied = n_predictors if self.mixed is None else len(self.mixed.with_variance)
        self._require_size("noise_scale", varied)
        if not self.by_column and np.size(self.noise_scale) != 1:
            raise ValueError(
                f"{type(self).__name__}(noise='isotropic') has one noise variance, but noise_scale "
                f"has {np.size(self.noise_scale)} numbers: give one, or noise='diagonal'."
            )

    # --- the model ------------------------------------------------------------------------------

    roles = ("covariates", "offset", "trials")
    integrated_globals = ("loadings", "coefficients", "mean")

    def least_globals(self, n_features):
        n_predictors = self.n_predictors(n_features)
        return n_predictors * (sum(self._widths) + 1)

    def global_prior(self, n_features):
        self._require_adapted()
        n_predictors, mixed = self.n_predictors(n_features), self.mixed
        zeros = torch.zeros(n_predictors)
        scale = (zeros + torch.as_tensor(self.loading_scale)).unsqueeze(-1)
        varied = zeros if mixed is None else zeros[mixed.with_variance]
        shape = (n_features,) if self.by_column else ()
        prior = self.cell.global_prior(shape, self._variance_prior(varied))
        loc, mean_scale = self.location(zeros), zeros + torch.as_tensor(self.mean_scale)
        if mixed is not None:
            prior |= mixed.cut_points_prior(loc, mean_scale)
            loc, mean_scale = loc[mixed.with_mean], mean_scale[mixed.with_mean]
        prior["loadings"] = Normal(0.0, scale.expand(n_predictors, self.n_components))
        if p := self.n_covariates:
            prior["coefficients"] = scale_prior(self.coefficient_scale, (n_predictors, p))
        return prior | {"mean": Normal(loc, mean_scale)}

    def global_dims(self):
        if self.mixed is not None:
            return {"loadings": ("predictor", "latent")}
        noise = ("feature",) if self.by_column else ()
        own = dict.fromkeys(("noise_variance", "dispersion"), noise) if noise else {}
        known = {"coefficients": ("feature", "covariate")} if self.n_covariates else {}
        return {"loadings": ("feature", "latent"), "mean": ("feature",), **known, **own}

    def _variance_prior(self, zeros):
        if not self.cell.has_variance:
            return None
        scale = torch.as_tensor(self.noise_scale, dtype=zeros.dtype)
        scale = zeros + scale if self.by_column else scale.reshape(())
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
        eta = torch.addmm(self.intercepts(theta), z, theta["loadings"].mT)
        return eta if covariates is None else eta + covariates @ theta["coefficients"].mT

    @property
    def changed(self):  # type: ignore[override]
        return any(overrides(self, FactorAnalysis, name) for name in _TERMS)

    def integrated(self, global_family):
        own = self.cell.own_globals if isinstance(global_family, DiagonalNormal) else ()
        return own + self.integrated_globals
