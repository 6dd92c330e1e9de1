"""Random-effects meta-analysis."""

import copy

import numpy as np
import torch
from torch.distributions import HalfCauchy, HalfNormal, Normal

from skavi._data.process_ranks import over_ranks, stacked
from skavi.families import LOG_2PI
from skavi.models._base import FAR, HierarchicalModel

#: Of the median standard error: where effects do not seem to vary, tau starts there. Not measured.
_LEAST_TAU = 0.3
_TAU_PRIORS = {"half_cauchy": HalfCauchy, "half_normal": HalfNormal}


class RandomEffects(HierarchicalModel):
    """Effects of studies around a common mean; rows of X are (estimate, standard error).

    effect_n ~ N(mu, tau^2), estimate_n ~ N(effect_n, se_n^2), mu ~ N(0, mu_scale^2) and
    tau ~ HalfCauchy(tau_scale). Inside, the latent z_n is (effect_n - mu) / tau, or with
    ``centred=True`` the effect itself; `transform`, `posterior`, `inverse_transform` and `sample`
    speak of effects either way.

    Parameters
    ----------
    mu_scale : float, default=5.0
        Prior standard deviation of mu, in units of the estimates.
    tau_scale : float, default=5.0
        Scale of tau's prior, in units of the estimates.
    centred : bool, default=None
        Whether the latent is the effect itself. None: both forms are fitted by factorized VI, and
        the one with the higher ELBO is kept, on ``model_.centred``. Mean-field factors fit the
        non-centred form better unless standard errors are small beside tau.
    tau_prior : {"half_cauchy", "half_normal"}, default="half_cauchy"
        Family of tau's prior.

    Notes
    -----
    Source: Rubin (1981), "Estimation in parallel randomized experiments"; priors as in Gelman
    (2006); on the two forms Papaspiliopoulos, Roberts & Skold (2007). Globals: "mu" and "tau",
    scalars. Under the non-centred form's q = q(theta) q(z) an effect is mu + tau z, whose mean and
    sd are exact: E tau z = E tau E z, and so on.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import RandomEffects
    >>> schools = [[28, 15], [8, 10], [-3, 16], [7, 11], [-1, 9], [1, 11], [18, 10], [12, 18]]
    >>> vi = FactorizedVI(RandomEffects()).fit(schools)
    >>> round(vi.elbo_, 2), vi.model_.centred
    (-31.6, False)
    >>> vi.posterior(schools).to_frame(quantiles=()).round(1).head(2)
       effect_mean  effect_sd
    0          5.4        4.9
    1          4.8        4.8
    """

    own_scale_reads_theta = True
    learned = (*HierarchicalModel.learned, "standard_errors_")

    #: Those of the training rows.
    standard_errors_: np.ndarray | None = None

    def __init__(self, mu_scale=5.0, tau_scale=5.0, centred=None, tau_prior="half_cauchy"):
        self.mu_scale = mu_scale
        self.tau_scale = tau_scale
        self.centred = centred
        self.tau_prior = tau_prior

    def check(self):
        self._require_positive("mu_scale")
        self._require_positive("tau_scale")
        known = self.centred is None or isinstance(self.centred, bool | np.bool_)
        self._require("centred", known, "True, False or None")
        self._require("tau_prior", self.tau_prior in _TAU_PRIORS, f"one of {list(_TAU_PRIORS)}")

    def check_learned(self, n_features):
        super().check_learned(n_features)
        self._require_learned("standard_errors_", (None,), positive=True)

    def check_data(self, X):
        if X.shape[1] != 2:
            raise ValueError(
                f"X has {X.shape[1]} features, but RandomEffects needs 2: estimate, standard error."
            )
        bad = (X[:, 1] <= 0).nonzero()
        if len(bad):
            raise ValueError(
                f"X has {len(bad)} standard errors that are not positive (first at row "
                f"{int(bad[0, 0])}, column 1), but RandomEffects needs them > 0."
            )

    @over_ranks
    def adapted(self, X, weights):
        model = type(self)(**self.get_params())
        model.standard_errors_ = stacked(X[:, 1]).cpu().numpy().copy()
        return model

    @over_ranks
    def initial_globals(self, X, weights):
        """Return the moment estimates of DerSimonian & Laird (1986), equations 6 and 8."""
        estimate, se, counts = (stacked(each) for each in (*X.T, weights))
        fixed = counts / se**2
        total = fixed.sum()
        centre = (fixed * estimate).sum() / total
        heterogeneity = (fixed * (estimate - centre) ** 2).sum() - (counts.sum() - 1)
        tau2 = heterogeneity / (total - (fixed**2 / counts.clamp_min(1e-300)).sum() / total)
        least = (_LEAST_TAU * se.median()) ** 2
        tau2 = torch.nan_to_num(tau2, nan=0.0, posinf=0.0).clamp_min(least)
        random = counts / (se**2 + tau2)
        return {"mu": (random * estimate).sum() / random.sum(), "tau": tau2.sqrt()}

    def prior_conflict(self, X, weights):
        centre = float(self.initial_globals(X, weights)["mu"])
        if abs(centre) <= FAR * self.mu_scale:
            return ""
        return (
            f"RandomEffects(mu_scale={self.mu_scale:g}): the estimates' mean, {centre:.3g}, is "
            f"{abs(centre) / self.mu_scale:.3g} prior sds of mu away from 0, so the prior decides "
            "where mu is: set mu_scale and tau_scale in units of the estimates, or give estimates "
            "and standard errors in other units."
        )

    def alternatives(self):
        if self.centred is not None:
            return [self]
        models = [copy.copy(self), copy.copy(self)]
        models[0].centred, models[1].centred = False, True
        return list(models)

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        tau = _TAU_PRIORS[self.tau_prior](self.tau_scale)
        return {"mu": Normal(0.0, self.mu_scale), "tau": tau}

    def local_prior(self, theta):
        if self.centred:
            return Normal(theta["mu"].reshape(1), theta["tau"].reshape(1))
        return Normal(torch.zeros(1), 1.0)

    def effect(self, theta, z):
        """Return the effects, shape (n_rows,), for latents z of shape (n_rows, 1)."""
        return self.own_scale(theta, z)[:, 0]

    # --- effects --------------------------------------------------------------------------------

    @property
    def has_own_scale(self):  # type: ignore[override]
        """Whether the latents are not the effects themselves."""
        return not self.centred

    def latent_names(self, n_features):
        return ["effect"]

    def own_scale(self, theta, z):
        """Return the effects, of the shape of z."""
        return z if self.centred else theta["mu"] + theta["tau"] * z

    def latents_of(self, theta, values):
        return values if self.centred else (values - theta["mu"]) / theta["tau"]

    def own_moments(self, factors, globals_):
        """Return means and sds of the effects mu + tau z, exact as z is independent of theta.

        With e = mu + tau E z given theta: Var e + E tau^2 Var z, where by Stein's identity
        Cov(mu, tau) = Cov(mu, log tau) E tau for a normal q(mu, log tau).
        """
        if self.centred:
            return factors.mean, factors.sd
        space = self.global_space(globals_.mean.new_zeros(1, 2))
        (mu, mu_sd), (tau, tau_sd) = (space.moments(name, globals_) for name in ("mu", "tau"))
        covariance = globals_.covariance()[0, 1] * tau
        z = factors.mean
        given = mu_sd**2 + 2 * covariance * z + tau_sd**2 * z**2
        within = (tau**2 + tau_sd**2) * factors.sd**2
        return mu + tau * z, (given + within).sqrt()

    # --- rows -----------------------------------------------------------------------------------

    def likelihood(self, z, theta):
        raise NotImplementedError("RandomEffects takes the standard errors from X: see log_local.")

    def log_likelihood(self, theta, z, X):
        estimate, se = X[:, 0], X[:, 1]
        return -0.5 * (((estimate - self.effect(theta, z)) / se) ** 2 + LOG_2PI) - se.log()

    def replicate(self, theta, z, X):
        estimate = Normal(self.effect(theta, z), X[:, 1]).sample()
        return torch.stack([estimate, X[:, 1]], -1)

    def predicted_mean(self, theta, z):
        assert self.standard_errors_ is not None
        se = float(np.quantile(self.standard_errors_, 0.5))
        effect = self.effect(theta, z)
        return torch.stack([effect, torch.full_like(effect, se)], -1)

    def simulate(self, theta, n_samples, n_features=2, standard_errors=None):
        """Draw rows; standard errors, which are not modelled, are drawn from those of X.

        Before a fit they are drawn from a grid from half to twice the scale of tau.
        """
        grid = np.linspace(0.5, 2.0, 16) * self.tau_scale
        known = grid if self.standard_errors_ is None else self.standard_errors_
        known = known if standard_errors is None else standard_errors
        known = torch.as_tensor(np.asarray(known, dtype=float)).to(theta["mu"])
        prior = self.local_prior(theta)
        z = prior.expand((n_samples, 1)).sample()
        se = known[torch.randint(len(known), (n_samples,))]
        return torch.stack([Normal(self.effect(theta, z), se).sample(), se], -1), z
