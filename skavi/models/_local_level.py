"""The local level model: a Gaussian random walk observed in noise."""

import math

import torch
from torch.distributions import Distribution, Normal

from skavi._data.missing_cells import Cells
from skavi.distributions import PriorOfVariance
from skavi.families import LOG_2PI, Chain, DiagonalFactors, DiagonalNormal
from skavi.models._base import FAR
from skavi.models._closed_forms import log_inverse_gamma
from skavi.models._time_series import MarkovModel
from skavi.models._tridiagonal import smoothed

#: Of the inverse gamma prior of a variance: 1 counts as two observations; its mean is infinite.
_PRIOR_SHAPE = 1.0
#: Of the square of the series' steps: the scale of that prior.
_PRIOR_SHARE = 0.1
#: Sds of the series: how wide the prior of the first level is, so that it hardly counts.
_SPREADS = 10.0


class LocalLevel(MarkovModel):
    r"""A level that walks at random, observed in noise: one series, one column.

    :math:`z_n \sim \mathrm{N}(z_{n-1}, \mathrm{level\_sd}^2)` and
    :math:`x_n \sim \mathrm{N}(z_n, \mathrm{noise\_sd}^2)`, with a normal first level :math:`z_1`.
    `transform` returns the posterior means of the levels given the whole series (smoothed), and
    `forecast` what follows it. Missing observations (NaN in X) are marginalised.

    Parameters
    ----------
    level_sd, noise_sd : float, default=None
        Standard deviations of the walk's steps and of the observations, in units of X. None: the
        variance is latent (globals "level_variance", "noise_variance").
    initial_mean, initial_sd : float, default=None
        Prior mean and standard deviation of the first level. None: the series' mean, and ten times
        its standard deviation (or the size of its steps, if that is more).
    level_scale, noise_scale : float or Distribution, default=None
        Priors of the latent variances: a `torch.distributions.Distribution` of the variance, or a
        number s for an inverse gamma distribution of shape 1 and scale :math:`s^2/10`. None: s is
        the root mean square of the series' steps.

    Notes
    -----
    Globals, in ``global_posterior_``: "level_variance" and "noise_variance", scalars, where their
    sds are left at None.

    With fixed variances the factors of `skavi.families.Chain` (the default) are the Kalman
    smoother's and the ELBO is the log likelihood. Independent factors (`DiagonalNormal`) have the
    same means, and variances of one over the diagonal of the posterior precision (a tridiagonal
    matrix). Source for the model: Durbin & Koopman (2012), chapter 2.

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LocalLevel
    >>> X = [[1.0], [2.0], [np.nan], [1.5]]
    >>> vi = FactorizedVI(LocalLevel(level_sd=1.0, noise_sd=1.0)).fit(X)
    >>> vi.transform(X).round(3)
    array([[1.32 ],
           [1.637],
           [1.591],
           [1.546]])
    """

    learned = (*MarkovModel.learned, "variance_scale_", "initial_mean_", "initial_sd_")
    #: Mean square of the training series' steps.
    variance_scale_: float = 1.0
    #: Prior of the first level, where it is left open.
    initial_mean_: float = 0.0
    initial_sd_: float = 10.0

    def __init__(
        self,
        level_sd=None,
        noise_sd=None,
        initial_mean=None,
        initial_sd=None,
        level_scale=None,
        noise_scale=None,
    ):
        self.level_sd = level_sd
        self.noise_sd = noise_sd
        self.initial_mean = initial_mean
        self.initial_sd = initial_sd
        self.level_scale = level_scale
        self.noise_scale = noise_scale

    # --- arguments, and what is learned of the data ---------------------------------------------

    def check_learned(self, n_features):
        super().check_learned(n_features)
        for name in ("variance_scale_", "initial_sd_"):
            self._require_positive(name)
        self._require_finite("initial_mean_")

    def check(self):
        if self.initial_mean is not None:
            self._require_finite("initial_mean")
        for name in ("level_sd", "noise_sd", "initial_sd"):
            if getattr(self, name) is not None:
                self._require_positive(name)
        for name in ("level_scale", "noise_scale"):
            scale = getattr(self, name)
            if scale is not None and not isinstance(scale, Distribution):
                self._require_positive(name)

    def check_data(self, X):
        if X.shape[1] != 1:
            raise ValueError(f"X has {X.shape[1]} features, but LocalLevel is of 1 column.")

    def adapted(self, X, weights):
        model = type(self)(**self.get_params())
        seen = (~X[:, 0].isnan()).nonzero()[:, 0]
        if not len(seen):
            raise ValueError("X has no observed cell: LocalLevel has nothing to fit.")
        x = X[seen, 0]
        steps = (x[1:] - x[:-1]) ** 2 / (seen[1:] - seen[:-1])
        scale = float(steps.mean()) if len(steps) else float((x**2).mean())
        model.variance_scale_ = scale if scale > 0 else 1.0
        model.initial_mean_ = float(x.mean())
        spread = max(float(x.var(correction=0)), model.variance_scale_)
        model.initial_sd_ = _SPREADS * math.sqrt(spread)
        return model

    def prior_conflict(self, X, weights):
        seen = X[:, 0][~X[:, 0].isnan()]
        if not len(seen) or None in (self.initial_mean, self.initial_sd):
            return ""
        away = abs(float(seen[0]) - self.initial_mean) / self.initial_sd
        if away <= FAR:
            return ""
        return (
            f"LocalLevel(initial_mean={self.initial_mean:g}, initial_sd={self.initial_sd:g}): the "
            f"series begins at {float(seen[0]):.3g}, {away:.3g} prior sds of the first level away "
            "from its prior mean, which so decides the fit: leave initial_mean and initial_sd "
            "open, or set them in units of X."
        )

    def _first_level(self):
        """Return the prior mean and sd of the first level."""
        mean = self.initial_mean_ if self.initial_mean is None else self.initial_mean
        sd = self.initial_sd_ if self.initial_sd is None else self.initial_sd
        return float(mean), float(sd)

    # --- the model ------------------------------------------------------------------------------

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {name: self._prior_of(name) for name in self._latent_variances()}

    def _prior_of(self, name):
        given = {"level_variance": self.level_scale, "noise_variance": self.noise_scale}[name]
        if isinstance(given, Distribution):
            return given
        return PriorOfVariance(torch.tensor(_PRIOR_SHAPE), torch.tensor(self._prior_scale(name)))

    def _prior_scale(self, name):
        """Return the scale of a variance's inverse gamma prior."""
        given = {"level_variance": self.level_scale, "noise_variance": self.noise_scale}[name]
        return _PRIOR_SHARE * (self.variance_scale_ if given is None else float(given) ** 2)

    def _latent_variances(self):
        named = {"level_variance": self.level_sd, "noise_variance": self.noise_sd}
        return [name for name, sd in named.items() if sd is None]

    def initial_globals(self, X, weights):
        start = X.new_tensor(self.variance_scale_ / 3)
        return {name: start for name in self._latent_variances()}

    def _variance(self, theta, name, sd, like):
        return theta[name] if sd is None else like.new_tensor(float(sd)) ** 2

    def initial_prior(self, theta):
        mean, sd = self._first_level()
        return Normal(torch.full((1,), mean), sd)

    def transition(self, z_previous, theta):
        variance = self._variance(theta, "level_variance", self.level_sd, z_previous)
        return Normal(z_previous, variance.sqrt())

    def likelihood(self, z, theta):
        return Normal(z, self._variance(theta, "noise_variance", self.noise_sd, z).sqrt())

    # --- closed forms ---------------------------------------------------------------------------

    def has_closed_form(self, family, global_family):
        return isinstance(global_family, DiagonalNormal)

    def has_coordinate_updates(self, family, global_family):
        known = isinstance(family, DiagonalNormal | Chain)
        scales = self.level_scale, self.noise_scale
        conjugate = not any(isinstance(scale, Distribution) for scale in scales)
        return known and conjugate and isinstance(global_family, DiagonalNormal)

    def expected_log_local(self, factors, globals_, X):
        moments = self._moments(globals_, X)
        (level_precision, level_log), (noise_precision, noise_log) = moments
        m, s2, cells = factors.mean[:, 0], factors.sd[:, 0] ** 2, Cells.of(X)
        mean, sd = self._first_level()
        first = ((m[:1] - mean) ** 2 + s2[:1]) / sd**2
        first = first + 2 * torch.log(X.new_tensor(sd))
        steps = _square_steps(factors) * level_precision + level_log
        noise = ((cells.values[:, 0] - m) ** 2 + s2) * noise_precision + noise_log + LOG_2PI
        noise = cells.masked(noise.unsqueeze(-1))[:, 0]
        return -0.5 * (torch.cat([first, steps]) + noise + LOG_2PI)

    def local_optimum(self, globals_, X, family, start=None):
        """Solve the tridiagonal posterior precision; independent factors keep its diagonal."""
        (level, _), (noise, _) = self._moments(globals_, X)
        n, cells, (initial_mean, initial_sd) = len(X), Cells.of(X), self._first_level()
        noise = cells.masked(noise.expand(n, 1))[:, 0]
        diagonal, right = noise.clone(), noise * cells.values[:, 0]
        diagonal[1:] += level
        diagonal[:-1] += level
        diagonal[0] += initial_sd**-2
        right[0] += initial_mean / initial_sd**2
        chain = smoothed(diagonal, -level.expand(n - 1), right)
        if isinstance(family, Chain):
            return chain
        return DiagonalFactors(chain.mean, diagonal.rsqrt().unsqueeze(-1))

    def global_optimum(self, globals_, factors, X, weights):
        m, s2, cells = factors.mean[:, 0], factors.sd[:, 0] ** 2, Cells.of(X)
        noise = cells.masked(((cells.values[:, 0] - m) ** 2 + s2).unsqueeze(-1))
        seen = weights if cells.observed is None else weights * cells.observed[:, 0]
        level, noise = weights[1:] @ _square_steps(factors), weights @ noise[:, 0]
        sums = {"level_variance": level, "noise_variance": noise}
        counts = {"level_variance": weights[1:].sum(), "noise_variance": seen.sum()}
        mean, sd = [], []
        for name in self._latent_variances():
            shape = counts[name] / 2 + _PRIOR_SHAPE
            log_mean, log_variance = log_inverse_gamma(
                shape, sums[name] / 2 + self._prior_scale(name)
            )
            mean.append(log_mean)
            sd.append(log_variance.sqrt())
        empty = X.new_zeros(0)
        return DiagonalFactors(
            torch.stack(mean) if mean else empty, torch.stack(sd) if sd else empty
        )

    def forecast(self, last, q_theta, space, n_steps):
        """Add the means of the variances: theta and the last level are independent in q."""
        level, noise = self._mean_variances(q_theta)
        ahead = torch.arange(1, n_steps + 1).to(last.mean).unsqueeze(-1)
        return last.mean.expand(n_steps, 1), last.sd**2 + ahead * level + noise

    def _mean_variances(self, globals_):
        """E[v] of the level's and the noise's variance."""
        latent, means = self._latent_variances(), []
        for name, sd in (("level_variance", self.level_sd), ("noise_variance", self.noise_sd)):
            if sd is None:
                i = latent.index(name)
                means.append((globals_.mean[i] + 0.5 * globals_.sd[i] ** 2).exp())
            else:
                means.append(globals_.mean.new_tensor(float(sd)) ** 2)
        return means

    def _moments(self, globals_, X):
        """E[1/v] and E[log v] of the level's and the noise's variance."""
        latent, moments = self._latent_variances(), []
        for name, sd in (("level_variance", self.level_sd), ("noise_variance", self.noise_sd)):
            if sd is None:
                i = latent.index(name)
                log, spread = globals_.mean[i], globals_.sd[i] ** 2
                moments.append(((0.5 * spread - log).exp(), log))
            else:
                variance = X.new_tensor(float(sd)) ** 2
                moments.append((1 / variance, variance.log()))
        return moments


def _square_steps(factors):
    """E_q (z_n - z_{n-1})^2 for every row but the first."""
    m, s2 = factors.mean[:, 0], factors.sd[:, 0] ** 2
    together = factors.neighbour_covariance()[1:, 0, 0]
    return (m[1:] - m[:-1]) ** 2 + s2[1:] + s2[:-1] - 2 * together
