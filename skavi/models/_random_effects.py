"""Random-effects meta-analysis."""

import numpy as np
import torch
from torch.distributions import HalfCauchy, HalfNormal, Normal

from skavi._data.process_ranks import over_ranks, stacked
from skavi.families import LOG_2PI
from skavi.models._base import FAR, HierarchicalModel
from skavi.models._scale_priors import WEAK, check_scale, scale_prior

#: Of the median standard error: where effects do not seem to vary, tau starts there. Not measured.
_LEAST_TAU = 0.3
#: Of a covariate's variance: added where slopes are solved for. Not measured.
_RIDGE = 1e-6
_TAU_PRIORS = {"half_cauchy": HalfCauchy, "half_normal": HalfNormal}


class RandomEffects(HierarchicalModel):
    r"""Effects of studies around a common mean; rows of X are (estimate, standard error).

    The true effect of a row is :math:`e_n \sim \mathrm{N}(\mu, \tau^2)`, and its estimate is normal
    around it with the row's standard error. With `covariates` :math:`c_n` in further columns it is
    a meta-regression: :math:`e_n \sim \mathrm{N}(\mu + c_n b, \tau^2)`. `transform`, `posterior`,
    `inverse_transform` and `sample` speak of the effects. (Inside, a latent is what an effect is
    away from its mean, in units of :math:`\tau`, or with ``centred=True`` the effect itself.)

    Parameters
    ----------
    mu_scale : float, default=5.0
        Prior standard deviation of mu, whose prior mean is 0, in units of the estimates.
    tau_scale : float, default=5.0
        Scale of tau's prior, in units of the estimates.
    centred : bool, default=None
        Whether the latent is the effect itself. None: both forms are fitted by factorized VI, and
        the one with the higher ELBO is kept, on ``model_.centred``. Mean-field factors fit the
        non-centred form better unless standard errors are small beside tau.
    tau_prior : {"half_cauchy", "half_normal"}, default="half_cauchy"
        Family of tau's prior.
    covariates : str, int or list of them, default=None
        Names or places of columns of X on which the mean effect depends; the two others are
        estimate and standard error, in this order.
    coefficient_scale : float, array of shape (n_covariates,) or Distribution, default=None
        Prior sd of the coefficients b, or their prior. None: 2.5 standard deviations of the
        estimates over that of the covariate.

    Notes
    -----
    Globals, in ``global_posterior_``: "mu" and "tau", scalars, and with covariates "coefficients"
    (n_covariates,), the :math:`b` above; mu is then the mean effect where all covariates are 0.

    Source: Rubin (1981), "Estimation in parallel randomized experiments"; priors as in Gelman
    (2006); on the two forms Papaspiliopoulos, Roberts & Skold (2007). Under the non-centred form an
    effect is :math:`\mu + c_n b + \tau z_n`; its mean and sd under q are exact.

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

    roles = ("covariates",)
    own_scale_reads_theta = True
    learned = (*HierarchicalModel.learned, "standard_errors_")

    #: Those of the training rows.
    standard_errors_: np.ndarray | None = None

    def __init__(
        self,
        mu_scale=5.0,
        tau_scale=5.0,
        centred=None,
        tau_prior="half_cauchy",
        *,
        covariates=None,
        coefficient_scale=None,
    ):
        self.mu_scale = mu_scale
        self.tau_scale = tau_scale
        self.centred = centred
        self.tau_prior = tau_prior
        self.covariates = covariates
        self.coefficient_scale = coefficient_scale

    def check(self):
        self._require_positive("mu_scale")
        self._require_positive("tau_scale")
        known = self.centred is None or isinstance(self.centred, bool | np.bool_)
        self._require("centred", known, "True, False or None")
        self._require("tau_prior", self.tau_prior in _TAU_PRIORS, f"one of {list(_TAU_PRIORS)}")
        check_scale(self, "coefficient_scale")

    def check_learned(self, n_features):
        super().check_learned(n_features)
        self._require_learned("standard_errors_", (None,), positive=True)

    def check_data(self, X):
        if self.n_explained(X) != 2:
            beside = " beside its covariates" if self.columns_.width else ""
            raise ValueError(
                f"X has {self.n_explained(X)} features{beside}, but RandomEffects needs 2: "
                "estimate, standard error."
            )
        bad = (X[:, 1] <= 0).nonzero()
        if len(bad):
            raise ValueError(
                f"X has {len(bad)} standard errors that are not positive (first at row "
                f"{int(bad[0, 0])}, column 1), but RandomEffects needs them > 0."
            )

    @over_ranks
    def adapted(self, X, weights):
        model = self.with_arguments({"standard_errors_": stacked(X[:, 1]).cpu().numpy().copy()})
        if self._n_covariates and self.coefficient_scale is None:
            known, estimate = stacked(self.given_columns(X)), stacked(X[:, 0])
            scale = WEAK * estimate.std(correction=0) / known.std(0, correction=0)
            model.coefficient_scale = scale.cpu().numpy()
        return model

    @property
    def _n_covariates(self):
        return self.columns_.widths.get("covariates", 0)

    @over_ranks
    def initial_globals(self, X, weights):
        """Return the moment estimates of DerSimonian & Laird (1986), equations 6 and 8.

        With covariates mu and b are weighted least squares, and tau's estimate is from what is left
        of the estimates after that.
        """
        estimate, se, counts = (stacked(each) for each in (X[:, 0], X[:, 1], weights))
        slopes, known = {}, stacked(self.given_columns(X))
        if self._n_covariates:
            slopes["coefficients"] = self._slopes(estimate, known, counts / se**2)
            estimate = estimate - known @ slopes["coefficients"]
        fixed = counts / se**2
        total = fixed.sum()
        centre = (fixed * estimate).sum() / total
        heterogeneity = (fixed * (estimate - centre) ** 2).sum() - (counts.sum() - 1)
        tau2 = heterogeneity / (total - (fixed**2 / counts.clamp_min(1e-300)).sum() / total)
        least = (_LEAST_TAU * se.median()) ** 2
        tau2 = torch.nan_to_num(tau2, nan=0.0, posinf=0.0).clamp_min(least)
        random = counts / (se**2 + tau2)
        return {"mu": (random * estimate).sum() / random.sum(), "tau": tau2.sqrt(), **slopes}

    def _slopes(self, estimate, known, precision):
        """Return weighted least-squares slopes; a trace of ridge is for collinear covariates."""
        share = precision / precision.sum()
        centred = known - share @ known
        squares = (centred.mT * share) @ centred
        ridge = _RIDGE * torch.diag(squares.diagonal())
        return torch.linalg.solve(squares + ridge, (centred.mT * share) @ (estimate))

    def prior_conflict(self, X, weights):
        centre = float(self.initial_globals(X, weights)["mu"])
        if abs(centre) <= FAR * self.mu_scale:
            return ""
        if self._n_covariates:
            return (
                f"RandomEffects(mu_scale={self.mu_scale:g}): mu, the mean effect where all "
                f"covariates are 0, would be {centre:.3g}, {abs(centre) / self.mu_scale:.3g} prior "
                "sds away from 0, so the prior decides where it is: subtract from each covariate a "
                "usual value, or set mu_scale."
            )
        return (
            f"RandomEffects(mu_scale={self.mu_scale:g}): the estimates' mean, {centre:.3g}, is "
            f"{abs(centre) / self.mu_scale:.3g} prior sds of mu away from 0, so the prior decides "
            "where mu is: set mu_scale and tau_scale in units of the estimates, or give estimates "
            "and standard errors in other units."
        )

    def first_form(self):
        return (False,) if self.centred is None else ()

    def in_form(self, chosen):
        return self.with_arguments({"centred": chosen[0]}) if chosen else self

    def n_latents(self, n_features):
        return 1

    def global_prior(self, n_features):
        tau = _TAU_PRIORS[self.tau_prior](self.tau_scale)
        prior = {"mu": Normal(0.0, self.mu_scale), "tau": tau}
        if self._n_covariates:
            slopes = scale_prior(self.coefficient_scale, (self._n_covariates,))
            prior["coefficients"] = slopes
        return prior

    def global_dims(self):
        return {"coefficients": ("covariate",)} if self._n_covariates else {}

    def local_prior(self, theta, *given):
        if self.centred:
            return Normal(self._centre(theta, *given).reshape(-1, 1), theta["tau"].reshape(1, 1))
        return Normal(torch.zeros(1), 1.0)

    def prior_of_rows(self, theta, X):
        return self.latent_prior(2, theta, *self.own_given(X))

    def _centre(self, theta, *given):
        """Return the mean effect of each row, shape (n_rows, 1), or (1, 1) for all."""
        centre = theta["mu"].reshape(1, 1)
        return centre + (given[0] @ theta["coefficients"]).unsqueeze(-1) if given else centre

    def effect(self, theta, z, *given):
        """Return the effects, shape (n_rows,), for latents z of shape (n_rows, 1)."""
        return self.own_scale(theta, z, *given)[:, 0]

    # --- effects --------------------------------------------------------------------------------

    @property
    def has_own_scale(self):  # type: ignore[override]
        """Whether the latents are not the effects themselves."""
        return not self.centred

    def latent_names(self, n_features):
        return ["effect"]

    def own_given(self, X):
        return (self.given_columns(X),) if self._n_covariates else ()

    def own_scale(self, theta, z, *given):
        """Return the effects, of the shape of z."""
        return z if self.centred else self._centre(theta, *given) + theta["tau"] * z

    def latents_of(self, theta, values, *given):
        return values if self.centred else (values - self._centre(theta, *given)) / theta["tau"]

    def own_moments(self, factors, globals_, *given):
        """Return means and sds of the effects a u + tau z, exact as z is independent of theta.

        Here a = (1, c) and u = (mu, b). With e = a u + tau E z given theta: Var e + E tau^2 Var z,
        where by Stein's identity Cov(u, tau) = Cov(u, log tau) E tau for a normal q(u, log tau).
        """
        if self.centred:
            return factors.mean, factors.sd
        space = self.global_space(globals_.mean.new_zeros(1, 2 + self._n_covariates))
        tau, tau_sd = space.moments("tau", globals_)
        z, whole = factors.mean, globals_.covariance()
        a = torch.cat([torch.ones_like(z), *given], -1)
        at = [0, *range(2, 2 + self._n_covariates)]  # tau is the second global
        centre = (a @ globals_.mean[at]).unsqueeze(-1)
        spread = ((a @ whole[at][:, at]) * a).sum(-1, keepdim=True)
        covariance = (a @ whole[at, 1]).unsqueeze(-1) * tau
        of_theta = spread + 2 * covariance * z + tau_sd**2 * z**2
        within = (tau**2 + tau_sd**2) * factors.sd**2
        return centre + tau * z, (of_theta + within).sqrt()

    # --- rows -----------------------------------------------------------------------------------

    def likelihood(self, z, theta):
        raise NotImplementedError("RandomEffects takes the standard errors from X: see log_local.")

    def log_likelihood(self, theta, z, X):
        estimate, se = X[:, 0], X[:, 1]
        return (
            -0.5 * (((estimate - self.effect(theta, z, *self.own_given(X))) / se) ** 2 + LOG_2PI)
            - se.log()
        )

    def replicate(self, theta, z, X):
        estimate = Normal(self.effect(theta, z, *self.own_given(X)), X[:, 1]).sample()
        return torch.cat([estimate.unsqueeze(-1), X[:, 1:]], -1)

    def predicted_mean(self, theta, z, *given):
        assert self.standard_errors_ is not None
        se = float(np.quantile(self.standard_errors_, 0.5))
        effect = self.effect(theta, z, *given)
        return torch.stack([effect, torch.full_like(effect, se)], -1)

    def simulate(self, theta, n_samples, n_features=2, *given, standard_errors=None):
        """Draw rows; standard errors, which are not modelled, are drawn from those of X.

        Before a fit they are drawn from a grid from half to twice the scale of tau.
        """
        grid = np.linspace(0.5, 2.0, 16) * self.tau_scale
        known = grid if self.standard_errors_ is None else self.standard_errors_
        known = known if standard_errors is None else standard_errors
        known = torch.as_tensor(np.asarray(known, dtype=float)).to(theta["mu"])
        prior = self.local_prior(theta, *given)
        z = prior.expand((n_samples, 1)).sample()
        se = known[torch.randint(len(known), (n_samples,))]
        return torch.stack([Normal(self.effect(theta, z, *given), se).sample(), se], -1), z
