"""The row-wise models of Margossian & Blei (2024), section 5: one column, one latent a row."""

import torch
from torch.distributions import Normal

from skavi._data.process_ranks import over_ranks, total
from skavi._numerics.sums import add_up, inner
from skavi.distributions import Flat
from skavi.families import LOG_2PI, DiagonalFactors
from skavi.models._base import HierarchicalModel

#: Rows times nodes at once: 160 kB an array stay in the cache. Not measured: order of magnitude.
_NUMBERS = 20_000


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
    term :math:`-\cos z_n` of the log likelihood, which the published density omits. Given z_n the
    expectation over theta is known; z_n has the nodes.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import NonlinearModel
    >>> FactorizedVI(NonlinearModel()).fit([[0.0], [1.0], [5.0]]).converged_
    True
    """

    learned = (*_OneColumnModel.learned, "theta_integrated_")
    #: Whether theta is integrated out. Files from before it was say nothing, and score rows by the
    #: draws that they were fitted with.
    theta_integrated_: bool = False

    @over_ranks
    def adapted(self, X, weights):
        return self.with_arguments({"theta_integrated_": True})

    def check_learned(self, n_features):
        super().check_learned(n_features)
        known = self.theta_integrated_ in (True, False)
        self._require("theta_integrated_", known, "True or False")

    def _as_written(self):
        """Say whether the density is the one below, of which more is known."""
        return self.theta_integrated_ and type(self).log_local is NonlinearModel.log_local

    def integrated(self, global_family):
        return ("theta",) if self._as_written() else ()

    def likelihood(self, z, theta):
        return Normal(theta["theta"] + z * torch.sin(z) + z, torch.exp(torch.cos(z)))

    def log_local(self, theta, z, X):
        return self._log_density(theta, z, X, 0.0)

    def _log_density(self, theta, z, X, variance):
        """Return the expected log density for a theta of some variance around the one given.

        theta is in a square, whose expectation adds its variance.
        """
        log_sd = torch.cos(z)
        residual, precision = X - theta["theta"] - z * torch.sin(z) - z, torch.exp(-2 * log_sd)
        return (-0.5 * (z**2 + precision * (residual**2 + variance)) - LOG_2PI - log_sd).sum(-1)

    def half_expected_terms(self, theta, z, factors, rest, X):
        """Integrate theta out, given z."""
        if not self._as_written():
            return self.log_local(theta, z, X)
        return self._log_density(theta, z, X, rest.sd[-1] ** 2)

    def row_derivatives(self, factors, globals_, X, nodes, weights, frozen):
        normal = type(factors) is type(globals_) is DiagonalFactors
        if not (normal and self._as_written()) or len(nodes.locals_[0]) != 1:
            return None
        size = max(1, _NUMBERS // len(nodes.weights))
        noise, theta = nodes.locals_[:, :, 0], (globals_.mean, globals_.sd**2)
        parts = [slice(first, first + size) for first in range(0, len(X), size)]
        found = [
            _derivatives(
                factors.mean[p, 0], factors.sd[p, 0], *theta, X[p, 0], noise, nodes.weights
            )
            for p in parts or [slice(0, 0)]
        ]
        slope, block, border, of_theta, curved = map(torch.cat, zip(*found, strict=True))
        each = weights.unsqueeze(-1)
        of_rows = each * slope, each.unsqueeze(-1) * block
        if frozen:
            return *of_rows, None, None, None
        C = each.unsqueeze(-1) * border
        return *of_rows, C, weights @ of_theta, torch.diag(weights @ curved)


def _derivatives(mean, sd, centre, variance, x, noise, weights):
    """Differentiate the rows' terms in m and log s, and in q(theta)'s mean and log sd.

    At z = m + s e a term is l(z) = -(z^2 + w (r^2 + v)) / 2 - cos z, where w = exp(-2 cos z) and
    r = x - E theta - z sin z - z, and v is the variance of theta: w' = 2 w sin z, and
    r' = -(sin z + z cos z + 1).

    Returns
    -------
    slope, block, border : Tensor of shape (n_rows, 2), (n_rows, 2, 2), (n_rows, 2, 2)
    of_theta, curved : Tensor of shape (n_rows, 2)
        Slopes in q(theta), and second derivatives; no mixed one.
    """
    spread = noise * sd
    z = mean + spread
    sin, cos = z.sin(), z.cos()
    w, r = torch.exp(-2 * cos), x - centre - z * sin - z
    dw, dr = 2 * w * sin, -(sin + z * cos + 1)
    ddw, ddr = 2 * w * cos + 2 * dw * sin, z * sin - 2 * cos
    square, dsquare = r**2 + variance, 2 * r * dr
    first = sin - z - 0.5 * (dw * square + w * dsquare)
    second = cos - 1 - 0.5 * (ddw * square + 2 * dw * dsquare + 2 * w * (dr**2 + r * ddr))
    along, steep = second * spread, first * spread
    in_centre, in_log = dw * r + w * dr, -variance * dw
    values = [first, steep, second, along, along * spread + steep, in_centre, in_log]
    values += [in_centre * spread, in_log * spread, w * r, w]
    m, t, mm, mt, tt, m_centre, m_log, t_centre, t_log, of_centre, weight = (
        weights @ each for each in values
    )
    block = torch.stack([mm, mt, mt, tt], -1).unflatten(-1, (2, 2))
    border = torch.stack([m_centre, m_log, t_centre, t_log], -1).unflatten(-1, (2, 2))
    of_theta = torch.stack([of_centre, -variance * weight], -1)
    curved = torch.stack([-weight, -2 * variance * weight], -1)
    return torch.stack([m, t + 1], -1), block, border, of_theta, curved
