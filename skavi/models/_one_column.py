"""The row-wise models of Margossian & Blei (2024), section 5: one column, one latent a row."""

import torch
from torch.distributions import Normal

from skavi._data.process_ranks import over_ranks, total
from skavi._numerics.sums import add_up, inner
from skavi.distributions import Flat
from skavi.families import LOG_2PI
from skavi.models._base import HierarchicalModel


class _OneColumnModel(HierarchicalModel):
    """theta flat, z_n ~ N(0, 1), x_n ~ N(location, sd^2) with one column in X."""

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {"theta": Flat()}

    def check_data(self, X):
        if X.shape[1] != 1:
            raise ValueError(
                f"X has {X.shape[1]} features, but {type(self).__name__} is a model of 1 column."
            )

    def local_prior(self, theta):
        return Normal(torch.zeros(1), 1.0)

    @over_ranks
    def initial_globals(self, X, weights):
        return {"theta": total(inner(weights, X[:, 0])) / total(add_up(weights))}


class LinearModel(_OneColumnModel):
    r"""One column around :math:`\theta + \tau z_n`, with a flat prior of :math:`\theta`.

    :math:`x_n \sim \mathrm{N}(\theta + \tau z_n, \sigma^2)` with :math:`z_n \sim \mathrm{N}(0, 1)`.

    Parameters
    ----------
    tau : float, default=1.155
        Effect of the latent, in units of X.
    sigma : float, default=2.43
        Noise standard deviation, in units of X.

    Notes
    -----
    One global, "theta", a scalar; `transform` returns the posterior means of :math:`z_n`. The ideal
    inference function is affine in :math:`x_n`. Source: Margossian & Blei (2024), section 5.1.

    Examples
    --------
    >>> from skavi import AmortizedVI
    >>> from skavi.inference_functions import Polynomial
    >>> from skavi.models import LinearModel
    >>> vi = AmortizedVI(LinearModel(), Polynomial(degree=1)).fit([[0.0], [1.0], [5.0]])
    >>> round(float(vi.global_posterior_.mean["theta"]), 6)
    2.0
    """

    def __init__(self, tau=1.155, sigma=2.43):
        self.tau = tau
        self.sigma = sigma

    def check(self):
        self._require_finite("tau")
        self._require_positive("sigma")

    def likelihood(self, z, theta):
        return Normal(theta["theta"] + self.tau * z, self.sigma)

    def log_local(self, theta, z, X):
        residual = (X - theta["theta"] - self.tau * z) / self.sigma
        log_sd = torch.log(X.new_tensor(self.sigma))
        return (-0.5 * (z**2 + residual**2) - LOG_2PI - log_sd).sum(-1)


class NonlinearModel(_OneColumnModel):
    r"""One column around :math:`\theta + z_n \sin z_n + z_n`, with a flat prior of :math:`\theta`.

    :math:`x_n \sim \mathrm{N}(\theta + z_n \sin z_n + z_n, \exp(\cos z_n)^2)` with
    :math:`z_n \sim \mathrm{N}(0, 1)`. There are no parameters.

    Notes
    -----
    One global, "theta", a scalar; `transform` returns the posterior means of :math:`z_n`. A row's
    factor may have several local optima. Source: Margossian & Blei (2024), section 5.2, with the
    term :math:`-\cos z_n` of the log likelihood, which the published density omits.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import NonlinearModel
    >>> FactorizedVI(NonlinearModel()).fit([[0.0], [1.0], [5.0]]).converged_
    True
    """

    def likelihood(self, z, theta):
        return Normal(theta["theta"] + z * torch.sin(z) + z, torch.exp(torch.cos(z)))

    def log_local(self, theta, z, X):
        log_sd = torch.cos(z)
        residual = (X - theta["theta"] - z * torch.sin(z) - z) * torch.exp(-log_sd)
        return (-0.5 * (z**2 + residual**2) - LOG_2PI - log_sd).sum(-1)
