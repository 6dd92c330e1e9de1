"""A Gaussian process over rows: every latent coupled with every other."""

import torch
from torch.distributions import MultivariateNormal

from skavi._numerics.quadrature import trapezoidal_rule
from skavi.distributions import defaults_of, log_prob
from skavi.models._base import LatentVariableModel, overrides
from skavi.models._gaussian_process_newton import Prior, best_factors
from skavi.models._likelihoods import LIKELIHOODS

#: Of the variance, added to the diagonal: near the root of rounding, so that Cholesky works.
_JITTER = 1e-8
#: Step of the rule that integrates a cell, in sds of its latent: at most this, and at most one on
#: the scale of the latent, at which softplus is integrated to 3e-9 of its range.
_STEP = 0.5
#: Sds up to which that holds: beyond, nodes would be many and the rule is coarser.
_LARGEST_SD = 25.0


class GaussianProcess(LatentVariableModel):
    r"""A smooth curve z at the times in X's first column; the second column has observations of it.

    .. math::

       z \sim \mathrm{GP}(0, k), \quad k(t, t') = a^2 \exp(-(t - t')^2 / (2 l^2))

    with the `amplitude` a and the `lengthscale` l, and observations
    :math:`y_n \sim p(y_n \mid z_n)`. `transform` returns the posterior means of the curve at the
    rows' times.

    Parameters
    ----------
    lengthscale : float, default=1.0
        How far the curve's values are alike (the l above), in units of time.
    amplitude : float, default=1.0
        Prior standard deviation of z.
    likelihood : {"normal", "bernoulli", "poisson"}, default="normal"
        Of :math:`y_n`: with mean :math:`z_n`, with :math:`z_n` as its logit, or with
        :math:`z_n` as its log rate.
    noise_sd : float, default=0.5
        Of the normal likelihood, in units of y.

    Notes
    -----
    No globals. The latents are coupled through the covariance, so F-VI's problem does not fall
    apart into rows and no inference function of a window of rows closes the gap. The ELBO is known
    in closed form, up to an integral over one latent a row ("bernoulli"), and F-VI's optimum is
    found by Newton's method in all rows at once. Memory grows as the square, time as the cube of
    the number of rows. Sources: Rasmussen & Williams (2006), ch. 2 and 3; Opper & Archambeau
    (2009), "The variational Gaussian approximation revisited".

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import GaussianProcess
    >>> X = [[0.0, 1.0], [0.5, 1.2], [1.0, 0.8]]
    >>> FactorizedVI(GaussianProcess()).fit(X).converged_
    True
    """

    ideal_context = None

    def __init__(self, lengthscale=1.0, amplitude=1.0, likelihood="normal", noise_sd=0.5):
        self.lengthscale = lengthscale
        self.amplitude = amplitude
        self.likelihood = likelihood
        self.noise_sd = noise_sd

    def check(self):
        for name in ("lengthscale", "amplitude", "noise_sd"):
            self._require_positive(name)
        known = ("normal", "bernoulli", "poisson")
        self._require("likelihood", self.likelihood in known, f"one of {list(known)}")

    def check_data(self, X):
        if X.shape[1] != 2:
            raise ValueError(
                f"X has {X.shape[1]} features, but GaussianProcess needs 2: time and value."
            )
        asked_by = f"GaussianProcess(likelihood={self.likelihood!r})"
        LIKELIHOODS[self.likelihood].require_valid(X[:, 1:], asked_by, first_column=1)

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        return {}

    def _prior(self, t):
        distance = (t.unsqueeze(0) - t.unsqueeze(1)) / self.lengthscale
        covariance = torch.exp(-0.5 * distance**2) + _JITTER * torch.eye(len(t)).to(t)
        scale = self.amplitude * torch.linalg.cholesky(covariance)
        return MultivariateNormal(torch.zeros_like(t), scale_tril=scale, validate_args=False)

    def _known(self, like):
        return {"noise_variance": like.new_tensor(float(self.noise_sd) ** 2)}

    def _observation(self, z):
        return LIKELIHOODS[self.likelihood].distribution(z, self._known(z))

    # --- closed forms ---------------------------------------------------------------------------

    def has_closed_form(self, family, global_family):
        own = ("log_joint", "log_likelihood", "_prior", "_observation")
        return not any(overrides(self, GaussianProcess, name) for name in own)

    def has_coordinate_updates(self, family, global_family):
        return self.has_closed_form(family, global_family)

    def expected_log_local(self, factors, globals_, X):
        """E_q log p(z, X), a scalar."""
        mean, sd = factors.mean[:, 0], factors.sd[:, 0]
        prior = Prior.of(self._prior(X[:, 0]).scale_tril)
        return prior.expected_log_density(mean, sd) + self._expected_fit(X[:, 1])(mean, sd).sum()

    def local_optimum(self, globals_, X, family, start=None):
        prior, y = Prior.of(self._prior(X[:, 0]).scale_tril), X[:, 1]
        guess = LIKELIHOODS[self.likelihood].pseudo(y)
        return best_factors(prior, self._expected_fit(y), guess, start)

    def global_optimum(self, globals_, factors, X, weights):
        return globals_

    def _expected_fit(self, y):
        step = min(_STEP, max(1 / self.amplitude, 1 / _LARGEST_SD))
        cell = LIKELIHOODS[self.likelihood].with_rule(trapezoidal_rule(step))
        known = self._known(y)

        def fit(mean, sd):
            return cell.expected_kernel(y, mean, sd**2, known) + cell.constant(y, known)

        return fit

    # --- the model ------------------------------------------------------------------------------

    def log_joint(self, theta, z, X):
        with defaults_of(z):
            prior = log_prob(self._prior(X[:, 0]), z[:, 0])
        return prior + self.log_likelihood(theta, z, X).sum()

    def log_likelihood(self, theta, z, X):
        with defaults_of(z):
            return log_prob(self._observation(z), X[:, 1:])

    def replicate(self, theta, z, X):
        with defaults_of(z):
            return torch.cat([X[:, :1], self._observation(z).sample()], 1)

    def simulate(self, theta, n_samples, n_features=1):
        t = torch.linspace(0.0, 0.5 * self.lengthscale * (n_samples - 1), n_samples)
        z = self._prior(t).sample().unsqueeze(-1)
        return torch.cat([t.unsqueeze(-1), self._observation(z).sample()], 1), z

    def predicted_mean(self, theta, z):
        raise NotImplementedError("GaussianProcess predicts values at the times of X: see sample.")
