"""A Bayesian neural network from latents to rows."""

import itertools
from numbers import Integral

import torch
from torch.distributions import Normal
from torch.nn import functional as F

from skavi.families import LOG_2PI
from skavi.models._base import HierarchicalModel

_SLOPE = 0.2


class BayesianDecoder(HierarchicalModel):
    """x_n ~ N(decoder(z_n), 1), z_n ~ N(0, I), with every weight and bias of the decoder latent.

    Parameters
    ----------
    n_components : int, default=2
        Number of latents a row.
    hidden_layer_sizes : tuple of int, default=(64, 64)
        Widths of the decoder's hidden layers (leaky ReLU, slope 0.2).
    likelihood : {"normal"}, default="normal"
        Distribution of a cell around the decoder's output; unit variance.
    weight_scale : float, default=1.0
        Prior standard deviation of weights and biases.

    Notes
    -----
    Globals: "weight_0", "bias_0", ... for every layer. Source: Margossian & Blei (2024),
    section 5.4.

    Examples
    --------
    >>> from skavi.models import BayesianDecoder
    >>> list(BayesianDecoder(2, (8,)).global_prior(n_features=5))
    ['weight_0', 'bias_0', 'weight_1', 'bias_1']
    """

    likelihood = "normal"  # type: ignore[assignment]  # an argument: see observation

    def __init__(
        self, n_components=2, hidden_layer_sizes=(64, 64), likelihood="normal", weight_scale=1.0
    ):
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.likelihood = likelihood
        self.weight_scale = weight_scale

    def check(self):
        self._require_integer("n_components", 1)
        self._require_positive("weight_scale")
        self._require("likelihood", self.likelihood == "normal", '"normal"')
        sizes = self._sizes()
        valid = all(
            isinstance(s, Integral) and not isinstance(s, bool) and int(s) >= 1 for s in sizes
        )
        self._require("hidden_layer_sizes", valid, "integers >= 1")

    def _sizes(self):
        sizes = self.hidden_layer_sizes
        return tuple(sizes) if isinstance(sizes, tuple | list) else (sizes,)

    def n_latents(self, n_features):
        return self.n_components

    def global_prior(self, n_features):
        sizes = (self.n_components, *self._sizes(), n_features)
        prior = {}
        for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            scale = torch.tensor(float(self.weight_scale))
            prior[f"weight_{layer}"] = Normal(torch.zeros(n_in, n_out), scale)
            prior[f"bias_{layer}"] = Normal(torch.zeros(n_out), scale)
        return prior

    def local_prior(self, theta):
        return Normal(torch.zeros(self.n_components), 1.0)

    def predicted_mean(self, theta, z):
        """Return the decoder's output for latents z, shape (n_rows, n_features)."""
        last = len(self._sizes())
        for layer in range(last + 1):
            z = torch.addmm(theta[f"bias_{layer}"], z, theta[f"weight_{layer}"])
            z = z if layer == last else F.leaky_relu(z, _SLOPE)
        return z

    def observation(self, z, theta):
        return Normal(self.predicted_mean(theta, z), 1.0)

    def log_likelihood(self, theta, z, X):
        residual = X - self.predicted_mean(theta, z)
        return -0.5 * (residual**2 + LOG_2PI).sum(-1)
