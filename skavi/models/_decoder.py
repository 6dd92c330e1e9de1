"""A Bayesian neural network from latents to rows."""

import itertools

import torch
from torch.distributions import InverseGamma, Normal
from torch.nn import functional as F

from skavi._data.missing_cells import Cells
from skavi._data.process_ranks import over_ranks
from skavi._numerics.whole_numbers import is_whole
from skavi.families import Point
from skavi.models._cellwise import CellwiseModel

#: Slope of a unit below zero, as in the paper's decoder (Margossian & Blei 2024).
_SLOPE = 0.2


class BayesianDecoder(CellwiseModel):
    """x_n ~ likelihood(decoder(z_n)), z_n ~ N(0, I), with weights and biases of the decoder latent.

    ``weights="point"`` replaces their posterior by point estimates: with `AmortizedVI` this is the
    usual variational autoencoder. Missing cells (NaN) are marginalised exactly.

    Parameters
    ----------
    n_components : int, default=2
        Number of latents a row.
    hidden_layer_sizes : tuple of int, default=(64, 64)
        Widths of the decoder's hidden layers (leaky ReLU, slope 0.2).
    likelihood : {"normal", "student_t", "bernoulli", "poisson", "negative_binomial"}, \
default="normal"
        Distribution of a cell around the decoder's output, which is a logit for "bernoulli" and the
        log of a rate for counts, as in `FactorAnalysis`.
    weight_scale : float, default=1.0
        Prior standard deviation of weights and biases.
    weights : {"posterior", "point"}, default="posterior"
        "posterior": a variational factor of every weight and bias. "point": the maximum of the
        bound plus their log prior density; ``global_posterior_.sd`` is then 0, and ``elbo_`` has no
        entropy of theta, so that it is not a bound on the evidence.
    noise_sd : float or None, default=1.0
        Scale of "normal" and "student_t" cells around the decoder's output, in units of X. None:
        a global "noise_variance" ~ InverseGamma(1, 0.01), for columns of a variance about 1.
    output_loc : float or array of shape (n_features,), default=None
        Added to the decoder's output. None: 0, and for logits and log rates the columns' own.
    exposure : {"total", "unit"}, default=None
        For counts, as in `FactorAnalysis`; relative to output_loc.

    Notes
    -----
    Globals: "weight_0", "bias_0", ... for every layer, after the likelihood's own as in
    `FactorAnalysis` (one for all columns). Source: Margossian & Blei (2024), section 5.4, which has
    normal cells of unit variance; Kingma & Welling (2014) for point estimates.

    Examples
    --------
    >>> from skavi.models import BayesianDecoder
    >>> list(BayesianDecoder(2, (8,)).global_prior(n_features=5))
    ['weight_0', 'bias_0', 'weight_1', 'bias_1']

    A variational autoencoder:

    >>> import numpy as np
    >>> from skavi import AmortizedVI
    >>> from skavi.solvers import Adam
    >>> X = (np.random.default_rng(0).random((60, 5)) < 0.3).astype(float)
    >>> model = BayesianDecoder(1, (8,), "bernoulli", weights="point")
    >>> vi = AmortizedVI(model, random_state=0, tol=1e-4).fit(X)
    >>> float(vi.global_posterior_.sd["bias_1"].max())
    0.0
    """

    def __init__(
        self,
        n_components=2,
        hidden_layer_sizes=(64, 64),
        likelihood="normal",
        weight_scale=1.0,
        *,
        weights="posterior",
        noise_sd=1.0,
        output_loc=None,
        exposure=None,
    ):
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.likelihood = likelihood
        self.weight_scale = weight_scale
        self.weights = weights
        self.noise_sd = noise_sd
        self.output_loc = output_loc
        self.exposure = exposure

    def check(self):
        super().check()
        self._require_positive("weight_scale")
        self._require("weights", self.weights in ("posterior", "point"), '"posterior" or "point"')
        if self.noise_sd is not None:
            self._require_positive("noise_sd")
        unused = f"left alone: likelihood={self.likelihood!r} has no such parameter"
        self._require("noise_sd", self.cell.has_variance or self.noise_sd == 1.0, unused)
        self._require_vector("output_loc")
        sizes = self._sizes()
        valid = all(is_whole(size, 1) for size in sizes)
        self._require("hidden_layer_sizes", valid, "integers >= 1")

    def check_data(self, X):
        super().check_data(X)
        self._require_size("output_loc", X.shape[1])

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

    def least_globals(self, n_features):
        widths = (self.n_components, *self._sizes(), n_features)
        return sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(widths))

    def global_prior(self, n_features):
        sizes = (self.n_components, *self._sizes(), n_features)
        unknown = self.cell.has_variance and self.noise_sd is None
        variance = InverseGamma(torch.tensor(1.0), torch.tensor(0.01)) if unknown else None
        prior = self.cell.global_prior((), variance)
        for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            scale = torch.tensor(float(self.weight_scale))
            prior[f"weight_{layer}"] = Normal(torch.zeros(n_in, n_out), scale)
            prior[f"bias_{layer}"] = Normal(torch.zeros(n_out), scale)
        return prior

    @over_ranks
    def adapted(self, X, weights):
        if self.output_loc is not None:
            return self
        cells = Cells.of(X)
        self._require_cells(cells, weights)
        if self.cell.has_variance:
            return self
        loc = self.cell.location(cells.mean_and_variance(weights)[0]).cpu().numpy()
        return type(self)(**(self.get_params() | {"output_loc": loc}))

    def location(self, like):
        loc = 0.0 if self.output_loc is None else self.output_loc
        return torch.as_tensor(loc).to(like).expand(like.shape[-1])

    def cell_globals(self, theta):
        if not self.cell.has_variance or self.noise_sd is None:
            return theta
        any_weight = theta["bias_0"]
        return theta | {"noise_variance": any_weight.new_tensor(float(self.noise_sd) ** 2)}

    def predictor(self, theta, z):
        last = len(self._sizes())
        for layer in range(last + 1):
            z = torch.addmm(theta[f"bias_{layer}"], z, theta[f"weight_{layer}"])
            z = z if layer == last else F.leaky_relu(z, _SLOPE)
        return z if self.output_loc is None else z + self.location(z)
