"""The local level model: a Gaussian random walk observed in noise."""

import math

import torch
from scipy.linalg import solveh_banded
from torch.distributions import Normal

from skavi._numerics.aligned import aligned
from skavi.distributions import PriorOfVariance
from skavi.families import LOG_2PI, DiagonalFactors, DiagonalNormal
from skavi.models._base import FAR
from skavi.models._closed_forms import log_inverse_gamma
from skavi.models._time_series import MarkovModel

#: Of the inverse gamma prior of a variance: 1 counts as two observations; its mean is infinite.
_PRIOR_SHAPE = 1.0


class LocalLevel(MarkovModel):
    """z_1 ~ N(initial_mean, initial_sd^2), z_n ~ N(z_{n-1}, level_sd^2), x_n ~ N(z_n, noise_sd^2).

    Parameters
    ----------
    level_sd, noise_sd : float, default=None
        Standard deviations of the walk's steps and of the observations, in units of X. None: the
        variance is latent (globals "level_variance", "noise_variance"), with an inverse gamma
        prior of shape 1 scaled to the variance of the series' differences.
    initial_mean : float, default=0.0
        Prior mean of the first level.
    initial_sd : float, default=10.0
        Its prior standard deviation.

    Notes
    -----
    With fixed variances the factorized optimum is known: its means are the Kalman smoother's, its
    variances one over the diagonal of the posterior precision (a tridiagonal matrix). Source for
    the model: Durbin & Koopman (2012), chapter 2.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LocalLevel
    >>> vi = FactorizedVI(LocalLevel(level_sd=1.0, noise_sd=1.0)).fit([[1.0], [2.0], [1.5]])
    >>> vi.transform([[1.0], [2.0], [1.5]]).round(3)
    array([[1.304],
           [1.622],
           [1.561]])
    """

    learned = (*MarkovModel.learned, "variance_scale_")
    #: Mean square of the training series' steps.
    variance_scale_: float = 1.0

    def __init__(self, level_sd=None, noise_sd=None, initial_mean=0.0, initial_sd=10.0):
        self.level_sd = level_sd
        self.noise_sd = noise_sd
        self.initial_mean = initial_mean
        self.initial_sd = initial_sd

    def check_learned(self, n_features):
        super().check_learned(n_features)
        self._require_number("variance_scale_")
        self._require("variance_scale_", 0 < self.variance_scale_ < math.inf, "positive and finite")

    def check(self):
        self._require_finite("initial_mean")
        self._require_positive("initial_sd")
        for name in ("level_sd", "noise_sd"):
            if getattr(self, name) is not None:
                self._require_positive(name)

    def check_data(self, X):
        if X.shape[1] != 1:
            raise ValueError(f"X has {X.shape[1]} features, but LocalLevel is of 1 column.")

    def adapted(self, X, weights):
        model = type(self)(**self.get_params())
        steps = X[1:] - X[:-1]
        scale = float((steps**2).mean()) if len(steps) else float((X**2).mean())
        model.variance_scale_ = scale if scale > 0 else 1.0
        return model

    def prior_conflict(self, X, weights):
        away = abs(float(X[0, 0]) - self.initial_mean) / self.initial_sd
        if away <= FAR:
            return ""
        return (
            f"LocalLevel(initial_mean={self.initial_mean:g}, initial_sd={self.initial_sd:g}): the "
            f"series begins at {float(X[0, 0]):.3g}, {away:.3g} prior sds of the first level away "
            "from its prior mean, which so decides the fit: set initial_mean and initial_sd in "
            "units of X, or subtract the series' mean."
        )

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        scale = 0.1 * self.variance_scale_
        prior = PriorOfVariance(torch.tensor(_PRIOR_SHAPE), torch.tensor(scale))
        return {name: prior for name in self._latent_variances()}

    def _latent_variances(self):
        named = {"level_variance": self.level_sd, "noise_variance": self.noise_sd}
        return [name for name, sd in named.items() if sd is None]

    def initial_globals(self, X, weights):
        start = X.new_tensor(self.variance_scale_ / 3)
        return {name: start for name in self._latent_variances()}

    def _variance(self, theta, name, sd, like):
        return theta[name] if sd is None else like.new_tensor(float(sd)) ** 2

    def initial_prior(self, theta):
        return Normal(torch.full((1,), float(self.initial_mean)), float(self.initial_sd))

    def transition(self, z_previous, theta):
        variance = self._variance(theta, "level_variance", self.level_sd, z_previous)
        return Normal(z_previous, variance.sqrt())

    def likelihood(self, z, theta):
        return Normal(z, self._variance(theta, "noise_variance", self.noise_sd, z).sqrt())

    # --- closed forms ---------------------------------------------------------------------------

    def has_closed_form(self, family, global_family):
        return isinstance(global_family, DiagonalNormal)

    def has_coordinate_updates(self, family, global_family):
        return isinstance(family, DiagonalNormal) and isinstance(global_family, DiagonalNormal)

    def expected_log_local(self, factors, globals_, X):
        moments = self._moments(globals_, X)
        (level_precision, level_log), (noise_precision, noise_log) = moments
        m, s2 = factors.mean[:, 0], factors.sd[:, 0] ** 2
        first = ((m[:1] - self.initial_mean) ** 2 + s2[:1]) / self.initial_sd**2
        first = first + 2 * torch.log(X.new_tensor(float(self.initial_sd)))
        steps = ((m[1:] - m[:-1]) ** 2 + s2[1:] + s2[:-1]) * level_precision + level_log
        noise = ((X[:, 0] - m) ** 2 + s2) * noise_precision + noise_log
        return -0.5 * (torch.cat([first, steps]) + noise + 2 * LOG_2PI)

    def local_optimum(self, globals_, X, family, start=None):
        """Solve the tridiagonal posterior precision for the means; its diagonal gives the sds."""
        (level, _), (noise, _) = self._moments(globals_, X)
        n = len(X)
        diagonal = noise + level * ((torch.arange(n) > 0).to(X) + (torch.arange(n) < n - 1).to(X))
        diagonal = diagonal.to(X.device)
        diagonal[0] = diagonal[0] + self.initial_sd**-2
        right = noise * X[:, 0]
        right[0] = right[0] + self.initial_mean / self.initial_sd**2
        mean = _solve_tridiagonal(diagonal, -level.expand(n - 1), right)
        return DiagonalFactors(mean.unsqueeze(-1), diagonal.rsqrt().unsqueeze(-1))

    def global_optimum(self, globals_, factors, X, weights):
        m, s2 = factors.mean[:, 0], factors.sd[:, 0] ** 2
        sums = {
            "level_variance": ((m[1:] - m[:-1]) ** 2 + s2[1:] + s2[:-1]).sum(),
            "noise_variance": ((X[:, 0] - m) ** 2 + s2).sum(),
        }
        counts = {"level_variance": len(X) - 1, "noise_variance": len(X)}
        mean, sd = [], []
        for name in self._latent_variances():
            shape = X.new_tensor(counts[name] / 2 + _PRIOR_SHAPE)
            log_mean, log_variance = log_inverse_gamma(
                shape, sums[name] / 2 + 0.1 * self.variance_scale_
            )
            mean.append(log_mean)
            sd.append(log_variance.sqrt())
        empty = X.new_zeros(0)
        return DiagonalFactors(
            torch.stack(mean) if mean else empty, torch.stack(sd) if sd else empty
        )

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


def _solve_tridiagonal(diagonal, off, right):
    """Solve a symmetric positive definite tridiagonal system in time linear in its size."""
    if not len(off):
        return right / diagonal
    banded = torch.stack([torch.cat([off.new_zeros(1), off]), diagonal]).cpu().numpy()
    return aligned(solveh_banded(banded, right.cpu().numpy())).to(right)
