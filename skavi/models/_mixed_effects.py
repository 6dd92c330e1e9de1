"""Mixed models: fixed effects of all rows, and random effects of each group."""

import torch
from torch.distributions import MultivariateNormal, Normal

from skavi._data.grouped_rows import GroupedRows
from skavi._numerics.positive_definite import root_or_nan
from skavi._numerics.quadrature import hermite_rule
from skavi.distributions import defaults_of
from skavi.families import LOG_2PI, DiagonalNormal, FullNormal
from skavi.models._group_summary import moments_of_units
from skavi.models._mixed_effects_moments import GlobalMoments, correlation_moments, product_rule
from skavi.models._mixed_effects_priors import MixedPriors

#: Nodes for eta, and for each sd that multiplies a latent or is of the likelihood's own.
_N_ETA_NODES, _N_SD_NODES = 15, 7


class MixedEffects(MixedPriors):
    r"""Fixed effects of all rows and random effects of each group, with any likelihood of a cell.

    Row :math:`n` of group :math:`g` has the linear predictor

    .. math:: \eta_n = (1, f_n) \, \beta + (1, r_n) \, z_g, \quad z_g \sim \mathrm{N}(G w_g, \Sigma)

    with its `fixed` columns :math:`f_n`, its `random` ones :math:`r_n` and the group's covariates
    :math:`w_g`; the response is :math:`\eta_n` with normal noise, or as `likelihood` has it.

    Parameters
    ----------
    response : str or int
        Name (X is a data frame then) or place of the column to explain. Columns that no argument
        names are left out.
    groups : str or int
        The column of the groups' labels.
    fixed, random : str, int, or list of them, default=()
        Columns with one effect for all rows, and with an effect for each group; a column may be in
        both, as usual. Each has an intercept. Text and categories are encoded as 0 and 1.
    group_covariates : str, int, or list of them, default=()
        Columns, constant within a group, that the mean of the group's effects depends on.
    likelihood : str, default="normal"
        "normal", "student_t", "bernoulli", "binomial", "poisson" or "negative_binomial".
    trials : str or int, default=None
        Column of the number of trials, for "binomial".
    correlated : bool, default=True
        Whether the effects of a group are correlated a priori.
    centred : bool or sequence of bool, default=None
        Of each effect, or of all: whether the latent is the effect with its mean, or its distance
        from the mean in units of its sd. None: for each effect in turn the choice with the higher
        ELBO under factorized VI, on ``model_.centred``.
    fixed_scale, random_scale, noise_scale : float, array or Distribution, default=None
        Prior sd of fixed effects; scale of the half-normal priors of the effects' sds and of the
        noise's; or these priors themselves. None: 2.5 sds of the response over that of the column.

    Notes
    -----
    Globals, in ``global_posterior_``:

    * "fixed" (1 + n_fixed,): fixed effects :math:`\beta`, the intercept first;
    * "random_sd" (1 + n_random,): sds of the groups' effects, the intercept's first;
    * "correlation": their correlation matrix, with prior LKJ(2), where there are several;
    * "group_coefficients" (1 + n_random, n_group_covariates): :math:`G`, where there are such;
    * "noise_sd" where there is noise, "degrees_of_freedom" or "dispersion" where the likelihood
      has one: scalars.

    `posterior` returns the effects :math:`z_g`, one entry a group, and `transform` gives each row
    its group's. ``global_posterior_.summary()`` lists the fixed effects and
    the variance components with both sds; for fixed effects trust ``corrected_sd``.

    Sources: Gelman & Hill (2007); on centring Papaspiliopoulos, Roberts & Skold (2007).

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import FactorizedVI
    >>> from skavi.models import MixedEffects
    >>> rng = np.random.default_rng(0)
    >>> group = np.repeat(np.arange(30), 8)
    >>> x = rng.normal(size=240)
    >>> y = 2.0 + 0.5 * x + rng.normal(size=30)[group] + 0.4 * rng.normal(size=240)
    >>> X = np.column_stack([y, x, group])
    >>> vi = FactorizedVI(MixedEffects(response=0, groups=2, fixed=[1])).fit(X)
    >>> vi.global_posterior_.mean["fixed"].round(2), vi.posterior(X).mean.shape
    (array([2.05, 0.52]), (30, 1))
    """

    has_own_scale = own_scale_reads_theta = True

    def __init__(
        self,
        response=0,
        groups=1,
        fixed=(),
        random=(),
        group_covariates=(),
        likelihood="normal",
        trials=None,
        correlated=True,
        centred=None,
        fixed_scale=None,
        random_scale=None,
        noise_scale=None,
    ):
        self.response = response
        self.groups = groups
        self.fixed = fixed
        self.random = random
        self.group_covariates = group_covariates
        self.likelihood = likelihood
        self.trials = trials
        self.correlated = correlated
        self.centred = centred
        self.fixed_scale = fixed_scale
        self.random_scale = random_scale
        self.noise_scale = noise_scale

    @property
    def concave_in_latents(self):  # type: ignore[override]
        """Whether all terms are concave in eta, in which latents are linear: but for Student t."""
        return self.likelihood != "student_t"

    # --- densities ------------------------------------------------------------------------------

    def local_prior(self, theta, group_covariates):
        sd = theta["random_sd"]
        centred, absorbed = self._centring(sd)
        mean = (absorbed @ theta["fixed"]).unsqueeze(0)
        if self._n_given("group_covariates"):
            mean = mean + centred * (group_covariates @ theta["group_coefficients"].mT)
        scale = torch.where(centred > 0, sd, torch.ones_like(sd))
        if not self._n_correlations:
            return Normal(mean, scale)
        lower = root_or_nan(theta["correlation"])
        return MultivariateNormal(mean, scale_tril=scale.unsqueeze(-1) * lower, validate_args=False)

    def likelihood_of(self, theta, effects, F, R, trials):
        """Return eta of rows with given effects, and what the likelihood needs beside it."""
        eta = F @ theta["fixed"] + (R * effects).sum(-1)
        own = dict(theta) | {"trials": trials}
        if "noise_sd" in theta:
            own["noise_variance"] = theta["noise_sd"] ** 2
        return eta, own

    def log_likelihood(self, theta, z, X):
        with defaults_of(z):
            eta, own = self._predicted(theta, z, X)
            y = self.explained(X)[:, 0]
            seen = ~y.isnan()
            y = torch.where(seen, y, torch.zeros_like(y))
            density = self.cell.kernel(y, eta, own) + self.cell.constant(y, own)
            return torch.where(seen, density, torch.zeros_like(density))

    def _log_units(self, theta, z, X):
        if self.likelihood != "normal":
            return super()._log_units(theta, z, X)
        gram, count = X.kept("gram", self._sums)
        H = self.given_columns(X.table[X.first], "group_covariates")
        effects = self.own_scale(theta, z, H)
        fixed = theta["fixed"].expand(len(effects), -1)
        factors = torch.cat([fixed, effects, -torch.ones_like(effects[:, :1])], 1)
        squares = ((gram @ factors.unsqueeze(-1))[..., 0] * factors).sum(1)
        sd = theta["noise_sd"]
        return -0.5 * (count * (LOG_2PI + 2 * sd.log()) + squares / sd**2)

    def _predicted(self, theta, z, X):
        effects = self.own_scale(theta, z, self.given_columns(X, "group_covariates"))
        trials = self.given_columns(X, "trials").sum(1)
        F, R = self._designs(X)
        return self.likelihood_of(theta, effects, F, R, trials)

    def has_closed_form(self, family, global_family):
        kinds = type(family) in (DiagonalNormal, FullNormal), type(global_family) is DiagonalNormal
        return all(kinds)

    def moments_of_globals(self, q) -> GlobalMoments:
        """Return what `expected_log_local` needs of q(theta)."""
        mean, variance = self._named(q.mean), self._named(q.sd**2)
        k, none = self.n_latents(1), q.mean.new_zeros(0)
        shape = k, self._n_given("group_covariates")
        precision, log_det = torch.eye(k).to(q.mean), q.mean.new_zeros(())
        if self._n_correlations:
            precision, log_det = correlation_moments(
                mean["correlation"], variance["correlation"].sqrt()
            )
        centred, absorbed = self._centring(q.mean)
        return GlobalMoments(
            centred,
            mean["fixed"],
            variance["fixed"],
            mean.get("group_coefficients", none).reshape(shape),
            variance.get("group_coefficients", none).reshape(shape),
            absorbed,
            mean["random_sd"],
            variance["random_sd"],
            precision,
            log_det,
        )

    def _named(self, numbers):
        """Return unconstrained numbers of the globals by name."""
        k = self.n_latents(1)
        sizes = {"random_sd": k, "correlation": self._n_correlations}
        sizes |= {"noise_sd": int(self.cell.has_variance)}
        sizes |= {"degrees_of_freedom": int(self.likelihood == "student_t")}
        sizes |= {"dispersion": int(self.likelihood == "negative_binomial")}
        sizes |= {"fixed": 1 + self._n_given("fixed")}
        sizes |= {"group_coefficients": k * self._n_given("group_covariates")}
        parts = numbers.split(list(sizes.values()))
        return {name: part for name, part in zip(sizes, parts, strict=True) if len(part)}

    def expected_log_local(self, factors, globals_, X):
        X, moments = GroupedRows.of(X), self.moments_of_globals(globals_)
        H = self.given_columns(X.table[X.first], "group_covariates")
        u, S = factors.mean, factors.covariance()
        prior = moments.expected_log_prior(u, S, H)
        if self.likelihood != "normal":
            return prior + self._expected_cells(moments, globals_, X, u, S, H)
        gram, count = X.kept("gram", self._sums)
        mean, variance = self._named(globals_.mean), self._named(globals_.sd**2)
        log_sd, spread = mean["noise_sd"], variance["noise_sd"]
        squares = moments.expected_squares(gram, u, S, H)
        precision = (-2 * log_sd + 2 * spread).exp()
        return prior - 0.5 * (count * (LOG_2PI + 2 * log_sd) + precision * squares)

    def _sums(self, X):
        """Return each group's sums of products of (F, R, y) over its rows, and their count."""
        y = self.explained(X)
        seen = ~y.isnan()
        w = (X.weights[:, None] * seen).to(X.dtype)
        columns = torch.cat([*self._designs(X.table), torch.where(seen, y, torch.zeros_like(y))], 1)
        products = X.over_units(((w * columns).unsqueeze(-1) * columns.unsqueeze(-2)).flatten(1))
        p = columns.shape[1]
        return products.reshape(len(X), p, p), X.over_units(w)[:, 0]

    def _expected_cells(self, moments, globals_, X, u, S, H):
        """E_q log p(x_g | z_g, theta) by quadrature over eta and over the sds that multiply."""
        named, spread = self._named(globals_.mean), self._named(globals_.sd)
        k, free = self.n_latents(1), [i for i, c in enumerate(moments.centred.tolist()) if not c]
        own = [name for name in ("noise_sd", "degrees_of_freedom", "dispersion") if name in named]
        means = torch.cat([named["random_sd"][free], *(named[name] for name in own)])
        sds = torch.cat([spread["random_sd"][free], *(spread[name] for name in own)])
        nodes, weights = product_rule(means, sds, _N_SD_NODES)
        scales = nodes.new_ones(len(nodes), k).index_copy(
            1,
            torch.tensor(free, dtype=torch.long, device=nodes.device),
            nodes[:, : len(free)].exp(),
        )
        F, R = self._designs(X.table)
        mean, variance = moments.predictor(F, R, X.unit, u, S, H, scales)
        theta = {name: nodes[:, len(free) + i, None].exp() for i, name in enumerate(own)}
        theta["trials"] = self.given_columns(X, "trials").sum(1)
        if "noise_sd" in theta:
            theta["noise_variance"] = theta["noise_sd"] ** 2
        y = self.explained(X)[:, 0]
        seen = ~y.isnan()
        y = torch.where(seen, y, torch.zeros_like(y)).expand(mean.shape)
        cell = self.cell.with_rule(hermite_rule(_N_ETA_NODES))
        density = cell.expected_kernel(y, mean, variance, theta) + cell.constant(y, theta)
        of_rows = torch.where(seen, X.weights * (weights @ density), torch.zeros_like(density[0]))
        return X.over_units(of_rows)

    # --- effects --------------------------------------------------------------------------------

    def own_given(self, X):
        X = GroupedRows.of(X)
        return (self.given_columns(X.table[X.first], "group_covariates"),)

    def own_scale(self, theta, z, *given):
        centred, absorbed = self._centring(theta["random_sd"])
        effects = torch.where(centred > 0, z - absorbed @ theta["fixed"], theta["random_sd"] * z)
        if self._n_given("group_covariates"):
            mean = given[0] @ theta["group_coefficients"].mT
            effects = effects + (1 - centred) * mean
        return effects

    def latents_of(self, theta, values, *given):
        return values  # predictions take effects

    def own_moments(self, factors, globals_, *given):
        moments = self.moments_of_globals(globals_)
        mean, variance = moments.effects(factors.mean, factors.sd**2, *given)
        return mean, variance.sqrt()

    def latent_names(self, n_features):
        return ["intercept", *self.columns_.labels("random")]

    def global_dims(self):
        return {}

    def global_labels(self):
        effects = self.latent_names(1)
        fixed = ["intercept", *self.columns_.labels("fixed")]
        given = self.columns_.labels("group_covariates")
        return {
            "fixed": (fixed,),
            "random_sd": (effects,),
            "correlation": (effects, effects),
            "group_coefficients": (effects, given),
        }

    # --- predictions ----------------------------------------------------------------------------

    def _cells_of(self, theta, effects, given):
        """Return the likelihood's mean and variance, and its distribution, of rows."""
        n_fixed, n_random = self._n_given("fixed"), self._n_given("random")
        fixed, random = given[:, :n_fixed], given[:, n_fixed : n_fixed + n_random]
        trials = given[:, n_fixed + n_random :].sum(1)
        F, R = self._with_ones(fixed, random)
        eta, own = self.likelihood_of(theta, effects, F, R, trials)
        return self.cell.distribution(eta.unsqueeze(-1), own | {"trials": trials.unsqueeze(-1)})

    def predicted_mean(self, theta, z, covariates=None):
        given = z.new_zeros(len(z), 0) if covariates is None else covariates
        with defaults_of(z):
            return self._cells_of(theta, z, given).mean

    def observation_of_rows(self, z, theta, X):
        effects = self.own_scale(theta, z, self.given_columns(X, "group_covariates"))
        given = torch.cat([self.given_columns(X, role) for role in self.row_roles], 1)
        return self._cells_of(theta, effects, given)

    def simulate(self, theta, n_samples, n_features=1, covariates=None, units=None):
        width = n_features + self.columns_.width
        X = GroupedRows.of(torch.zeros(n_samples, width)) if units is None else units
        u = self.prior_of_rows(theta, X).sample()
        u = u if len(u) == len(X) else self.prior_of_rows(theta, X).sample((len(X),))[:, 0]
        H = self.given_columns(X.table[X.first], "group_covariates")
        effects = X.at_rows(self.own_scale(theta, u, H))
        given = effects.new_zeros(n_samples, 0) if covariates is None else covariates
        return self._cells_of(theta, effects, given).sample(), effects

    def declared(self, theta, z, X):
        return {}

    def summary(self, X):
        X = GroupedRows.of(X)
        fixed, random, trials = (self.given_columns(X, role) for role in self.row_roles)
        known = self.columns_.labels("fixed")
        new = [i for i, name in enumerate(self.columns_.labels("random")) if name not in known]
        of_groups = self.given_columns(X.table[X.first], "group_covariates")
        rows = torch.cat([fixed, random[:, new], trials], 1)
        return moments_of_units(X, self.explained(X), rows, of_groups)
