"""A Bayesian neural network from latents to rows."""

import itertools

import numpy as np
import torch
from torch.distributions import Normal
from torch.nn import functional as F

from skavi._data.missing_cells import Cells
from skavi._data.process_ranks import over_ranks, total
from skavi._numerics.whole_numbers import is_whole
from skavi.distributions import PriorOfVariance
from skavi.families import Point
from skavi.models._cellwise import CellwiseModel, linear_start
from skavi.models._decoder_start import SLOPE, cell_of_all_variance, linear_layers
from skavi.models._factor_analysis import FactorAnalysis
from skavi.models._factor_analysis_start import WIDE_ETA

#: Variance of a latent's means, of a prior variance of 1, above which it is used (Burda et al.
#: 2016, "Importance weighted autoencoders").
_USED = 0.01


class BayesianDecoder(CellwiseModel):
    r"""A neural network that decodes a row's latents, with a posterior over its weights.

    :math:`x_n \sim \mathrm{likelihood}(\mathrm{decoder}(z_n))` with
    :math:`z_n \sim \mathrm{N}(0, I)`. `transform` returns the posterior means of :math:`z_n`, and
    `inverse_transform` decodes latents.

    ``weights="point"`` replaces their posterior by point estimates: with `AmortizedVI` this is the
    usual variational autoencoder. Missing cells (NaN) are marginalised exactly.

    Parameters
    ----------
    n_components : int, default=2
        Number of latents a row.
    hidden_layer_sizes : tuple of int, default=(64, 64)
        Widths of the decoder's hidden layers (leaky ReLU, slope 0.2).
    likelihood : str, or dict from str to columns, default="normal"
        "normal", "student_t", "bernoulli", "poisson", "negative_binomial", "ordinal", "categorical"
        or "binomial": the distribution of a cell around the decoder's output, which is a logit for
        "bernoulli" and the log of a rate for counts, as in `FactorAnalysis`; a dict names the
        columns of each, in a table of mixed columns.
    weight_scale : float, default=1.0
        Prior standard deviation of weights and biases.
    weights : {"posterior", "point"}, default="posterior"
        "posterior": a variational factor of every weight and bias. "point": the maximum of the
        bound plus their log prior density; ``global_posterior_.sd`` is then 0, and ``elbo_`` has no
        entropy of theta, so that it is not a bound on the evidence.
    noise_sd : float or None, default=None
        Scale of "normal" and "student_t" cells around the decoder's output, in units of X. None: a
        global "noise_variance", inverse gamma with shape 1 and scale
        :math:`\mathrm{output\_scale}^2 / 100`.
    output_loc : float or array of shape (n_features,), default=None
        Added to the decoder's output. None: the columns' own (through the link), and 0 where
        noise_sd is given.
    output_scale : float or array of shape (n_features,), default=None
        Times the decoder's output, before output_loc is added. None: the root of the columns' mean
        variance where noise_sd is None, so that units do not matter, else 1.
    exposure : {"total", "unit"}, default=None
        For counts, as in `FactorAnalysis`; relative to output_loc.
    covariates : str, int or list of them, default=None
        Names or places of columns of X that are given: the decoder reads them beside the latents,
        as a conditional autoencoder does, so that latents need not tell what covariates tell. Text
        and categories count a level at a time, against the first one; all are standardised inside.
    trials : str, int or list of them, default=None
        For "binomial": name or place of the column of trials, or of one for each such column.

    Notes
    -----
    The fitted ``model_.n_used_components`` counts the latents whose means vary between rows. A fit
    starts as a linear model, probabilistic PCA, which uses all of them, and then takes minibatches.

    Globals, in ``global_posterior_``: "weight_0", "bias_0" and so on for every layer, after the
    likelihood's own as in `FactorAnalysis` (one for all columns, but a dispersion for each).

    Inference functions read counts by the log of their rate, and columns of different kinds on the
    scale of their predictors.

    Sources: Margossian & Blei (2024), section 5.4, which has normal cells of unit variance
    (``noise_sd=1.0``); Kingma & Welling (2014) for point estimates.

    Examples
    --------
    >>> from skavi.models import BayesianDecoder
    >>> list(BayesianDecoder(2, (8,)).global_prior(n_features=5))
    ['noise_variance', 'weight_0', 'bias_0', 'weight_1', 'bias_1']

    A variational autoencoder:

    >>> import numpy as np
    >>> from skavi import AmortizedVI
    >>> X = (np.random.default_rng(0).random((60, 5)) < 0.3).astype(float)
    >>> model = BayesianDecoder(1, (8,), "bernoulli", weights="point")
    >>> vi = AmortizedVI(model, random_state=0, tol=1e-4).fit(X)
    >>> float(vi.global_posterior_.sd["bias_1"].max())
    0.0
    """

    stochastic = True
    coarsest_tol = 1e-3  # units have kinks, near which rows' Newton steps gain little at a time
    start_share = 0.01  # at 0.1 noise drowns the data: 7 nats a row below after 3,000 steps

    def __init__(
        self,
        n_components=2,
        hidden_layer_sizes=(64, 64),
        likelihood="normal",
        weight_scale=1.0,
        *,
        weights="posterior",
        noise_sd=None,
        output_loc=None,
        output_scale=None,
        exposure=None,
        covariates=None,
        trials=None,
    ):
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.likelihood = likelihood
        self.weight_scale = weight_scale
        self.weights = weights
        self.noise_sd = noise_sd
        self.output_loc = output_loc
        self.output_scale = output_scale
        self.exposure = exposure
        self.covariates = covariates
        self.trials = trials

    def check(self):
        super().check()
        self._require_positive("weight_scale")
        self._require("weights", self.weights in ("posterior", "point"), '"posterior" or "point"')
        if self.noise_sd is not None:
            self._require_positive("noise_sd")
        unused = f"left alone: likelihood={self.likelihood!r} has no such parameter"
        one = self.named_kinds() is None and self.cell.has_variance
        free = (None, 1.0) if self.named_kinds() is None else (None,)
        self._require("noise_sd", one or self.noise_sd in free, unused)
        self._require_vector("output_loc")
        self._require_vector("output_scale", positive=True)
        sizes = self._sizes()
        valid = all(is_whole(size, 1) for size in sizes)
        self._require("hidden_layer_sizes", valid, "integers >= 1")

    def check_data(self, X):
        super().check_data(X)
        for name in ("output_loc", "output_scale"):
            self._require_size(name, self.n_predictors(self.n_explained(X)))

    def prior_conflict(self, X, weights):
        scaled = self.noise_sd is None and self.output_scale is None
        plain = self.mixed is None and self.cell.has_variance and scaled
        far = cell_of_all_variance(self.cells_of(X), weights) if plain else None
        if far is None:
            return ""
        return (
            f"{type(self).__name__}(): X has a cell of size {far:.3g} beside which all others are "
            "alike, and it alone sets output_scale and the prior of the noise, in which the others "
            "are lost. Check that cell, take logs, or set output_scale and noise_sd."
        )

    def _sizes(self):
        sizes = self.hidden_layer_sizes
        return tuple(sizes) if isinstance(sizes, tuple | list) else (sizes,)

    def global_family(self, asked):
        if self.weights != "point":
            return super().global_family(asked)
        if asked is not None and asked.random:
            raise ValueError(
                f'BayesianDecoder(weights="point") has no q(theta) of the family {asked}: leave '
                'global_family at None, or set weights="posterior".'
            )
        return Point()

    @property
    def least_gain(self):
        return self.cell.least_gain

    @property
    def network_rate(self):
        return self.cell.network_rate

    @property
    def widening(self):
        """Steps of weights are as long as their prior's sds, but where an output is a log rate.

        With shorter ones sds reach the prior's before a unit has found a use: 337 held-out digits
        get 31.9 nats with a tenth, 34.7 with this; but 60 cells of scRNA -241.6 and -244.1.
        """
        cells = [self.cell] if self.mixed is None else [s.likelihood for s in self.mixed.sets]
        return super().widening if any(c.counts for c in cells) else 1 / self.start_share

    roles = ("covariates", "trials")
    learned = (*CellwiseModel.learned, "n_used_components", "covariate_moments_", "logs_read_")

    #: Means and sds of the covariates of the training rows, shape (2, n_covariates).
    covariate_moments_: np.ndarray | None = None
    #: Whether functions read logs of counts: those in files from before read counts as they are.
    logs_read_: bool = False

    def check_learned(self, n_features):
        super().check_learned(n_features)
        self._require("logs_read_", self.logs_read_ in (True, False), "True or False")
        if self.n_covariates:
            self._require_learned("covariate_moments_", (2, self.n_covariates))
            positive = bool((np.asarray(self.covariate_moments_)[1] > 0).all())
            self._require("covariate_moments_", positive, "of positive sds")
        if hasattr(self, "n_used_components"):
            used = is_whole(self.n_used_components, 0)
            used = used and self.n_used_components <= self.n_components
            self._require("n_used_components", used, f"from 0 to {self.n_components}")

    @over_ranks
    def learn_use(self, means):
        """Count the latents whose means vary between rows (Burda et al. 2016, section 5.1)."""
        n = total(means.new_tensor(float(len(means))))
        centre = total(means.sum(0)) / n
        self.n_used_components = int((total((means - centre).square().sum(0)) / n > _USED).sum())

    @property
    def note(self):
        used = getattr(self, "n_used_components", None)
        if used is None or used == self.n_components:
            return ""
        return f"{type(self).__name__} uses {used} of its {self.n_components} latents."

    def least_globals(self, n_features):
        widths = (self._n_inputs, *self._sizes(), self.n_predictors(n_features))
        return sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(widths))

    def global_prior(self, n_features):
        sizes = (self._n_inputs, *self._sizes(), self.n_predictors(n_features))
        unknown = self.cell.has_variance and self.noise_sd is None
        variance = self._variance_prior() if unknown else None
        prior = self.cell.global_prior(self._noise_shape(n_features), variance)
        if self.mixed is not None:
            loc = self.location(torch.zeros(sizes[-1]))
            prior |= self.mixed.cut_points_prior(loc, torch.full_like(loc, WIDE_ETA))
        for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            scale = torch.tensor(float(self.weight_scale))
            prior[f"weight_{layer}"] = Normal(torch.zeros(n_in, n_out), scale)
            prior[f"bias_{layer}"] = Normal(torch.zeros(n_out), scale)
        return prior

    @property
    def _n_inputs(self):
        return self.n_components + self.n_covariates

    def _noise_shape(self, n_features):
        """Return the shape of the likelihood's own noise: counts have a dispersion a column."""
        by_column = self.cell.has_noise and not self.cell.has_variance
        return (n_features,) if by_column else ()

    def latent_names(self, n_features):
        return [f"latent{i}" for i in range(self.n_components)]

    def global_dims(self):
        columns = {"dispersion": ("feature",)} if self._noise_shape(1) else {}
        return super().global_dims() | columns

    def _variance_prior(self):
        return PriorOfVariance(torch.tensor(1.0), 0.01 * self._output_variance())

    def _output_variance(self):
        """Return the squared output_scale: one mean, or that of each mixed column with noise."""
        scale = 1.0 if self.output_scale is None else self.output_scale
        variance = torch.as_tensor(scale, dtype=torch.float64).square()
        if self.mixed is None:
            return variance.mean()
        return variance.expand(self.mixed.n_predictors)[self.mixed.with_variance]

    @over_ranks
    def adapted(self, X, weights):
        cells = self.cells_of(X)
        self._require_cells(cells, weights)
        mean, variance = cells.mean_and_variance(weights)
        loc, scale = torch.zeros_like(mean), mean.new_tensor(1.0)
        if self.mixed is not None:
            loc, scale = self.mixed.moments_of(cells, weights)
        elif not self.cell.has_variance:
            loc = self.cell.location(mean)
        elif self.noise_sd is None:
            loc, overall = mean, variance.mean().sqrt()
            scale = overall if overall > 1e-12 * mean.abs().mean() else scale
        size = float(scale) if self.mixed is None else scale.cpu().numpy()
        found = {"output_loc": loc.cpu().numpy(), "output_scale": size}
        left_open = {name: value for name, value in found.items() if getattr(self, name) is None}
        left_open["logs_read_"] = self.cell.counts
        if self.n_covariates:
            centre, spread = Cells(self.given_columns(X), None).mean_and_variance(weights)
            left_open["covariate_moments_"] = torch.stack([centre, spread.sqrt()]).cpu().numpy()
        return self.with_arguments(left_open)

    def _standardised(self, covariates):
        moments = torch.as_tensor(self.covariate_moments_).to(covariates)
        return (covariates - moments[0]) / moments[1]

    def location(self, like):
        loc = 0.0 if self.output_loc is None else self.output_loc
        return torch.as_tensor(loc).to(like).expand(like.shape[-1])

    @property
    def reads_predictors(self):
        """Whether functions read cells on the scale of their predictors; of counts these are logs.

        Rows of 100 genes that were held out get -324 nats where counts are read as they are, -241
        by their logs (300 rows of pyPLNmodels' scRNA table fitted).
        """
        return self.logs_read_ or super().reads_predictors

    # --- where to start -------------------------------------------------------------------------

    @over_ranks
    def initial_globals(self, X, weights):
        return self.drawn_globals(X, weights, torch.Generator().manual_seed(0))

    @over_ranks
    def drawn_globals(self, X, weights, generator):
        """Start as a linear model, factor analysis, carried by pairs of units; others are random.

        f(u) - f(-u) = (1 + slope) u for the leaky ReLU f.
        """
        linear = FactorAnalysis(self.n_components, likelihood=self.likelihood, trials=self.trials)
        if self.cell.counts:
            linear.exposure = self.exposure
        if self.columns_.told:
            linear = linear.with_arguments(
                {"covariates": self.covariates, "columns_": self.columns_}
            )
        start = linear.adapted(X, weights).initial_globals(X, weights)
        scale = torch.as_tensor(1.0 if self.output_scale is None else self.output_scale).to(X)
        loadings, mean = start.pop("loadings"), linear.intercepts(start)
        location = self._beside(start, self.location(mean))
        del start["mean"]
        if self.n_covariates:
            slopes, moments = start.pop("coefficients"), torch.as_tensor(self.covariate_moments_)
            centre, spread = moments.to(X)
            loadings, mean = torch.cat([loadings, slopes * spread], 1), mean + slopes @ centre
        loadings, bias = loadings.mT / scale, (mean - location) / scale
        if self.noise_sd is not None:
            start.pop("noise_variance", None)
        elif "noise_variance" in start and self.weights == "posterior":
            least = self._noise_of_first_weights().to(X)
            start["noise_variance"] = torch.maximum(start["noise_variance"], least)
        if "dispersion" in start and self.mixed is None:
            start["dispersion"] = start["dispersion"].expand(self._noise_shape(self.n_explained(X)))
        widths = (self._n_inputs, *self._sizes(), loadings.shape[1])
        return start | linear_layers(widths, self.weight_scale, loadings, bias, generator)

    def _noise_of_first_weights(self):
        """Return about the variance that the last layer's first sds add to the output.

        From less noise a table of one value climbed 19,000 nats in 10,000 steps, and was not there.
        """
        sd = self.start_share * self.weight_scale
        n_inputs = (self._n_inputs, *self._sizes())[-1]
        return (n_inputs + 1) * sd**2 * self._output_variance()

    def initial_locals(self, theta, X):
        """Return the factors that normal cells would have, were the decoder linear.

        Its slopes are secants from -1 to 1: at 0 units have kinks.
        """
        ones = torch.eye(self.n_components).to(X)
        known, usual = self.covariates_of(X), None
        if known is not None:
            usual = torch.as_tensor(self.covariate_moments_)[0].to(X).expand(len(ones), -1)
        ahead, back = self.predictor(theta, ones, usual), self.predictor(theta, -ones, usual)
        loadings = 0.5 * (ahead - back).mT
        zeros = ones.new_zeros(1 if known is None else len(X), self.n_components)
        centre = self.predictor(theta, zeros, known)
        noise = self.noise_at_start(self.cell_globals(theta), ones)
        return linear_start(self._pseudo_cells(X), loadings, centre, noise)

    def cell_globals(self, theta):
        if not self.cell.has_variance or self.noise_sd is None:
            return theta
        any_weight = theta["bias_0"]
        return theta | {"noise_variance": any_weight.new_tensor(float(self.noise_sd) ** 2)}

    def predictor(self, theta, z, covariates=None):
        if covariates is not None:
            z = torch.cat([z, self._standardised(covariates)], -1)
        last = len(self._sizes())
        for layer in range(last + 1):
            z = torch.addmm(theta[f"bias_{layer}"], z, theta[f"weight_{layer}"])
            z = z if layer == last else F.leaky_relu(z, SLOPE)
        scaled = z if self.output_scale is None else z * torch.as_tensor(self.output_scale).to(z)
        return scaled if self.output_loc is None else scaled + self._beside(theta, self.location(z))

    def _beside(self, theta, location):
        """Return what is added to the output: location, or the middle one of cut points."""
        if self.mixed is None:
            return location
        return self.mixed.intercepts(theta | {"mean": location[self.mixed.with_mean]})
