"""Models of rows that share a latent: pupils of a school, visits of a patient."""

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from skavi._data.coupling import UNITS, Coupling
from skavi._data.grouped_rows import GroupedRows
from skavi._data.process_ranks import stacked
from skavi.distributions import defaults_of, log_prob
from skavi.models._base import LIKELIHOOD_NEEDED, HierarchicalModel, overrides
from skavi.models._conditional import ConditionalModel
from skavi.models._global_space import Theta
from skavi.models._group_summary import moments_of_units
from skavi.models._priors_of_rows import for_latents
from skavi.models._written import left_open, require_written


class GroupedModel(ConditionalModel):
    r"""Rows of groups, which share one latent vector a group.

    .. math:: p(\theta) \prod_g p(z_g \mid \theta) \prod_{n \in g} p(x_n \mid z_g, c_n, \theta)

    Subclasses give what those of `HierarchicalModel` give, and name the column of X with the
    labels of the groups in an argument or attribute `groups`. All rows of a group have one latent
    vector and one factor q(z_g). They need not be adjacent, and groups differ in size.

    Attributes
    ----------
    groups : str or int
        Name (X is a data frame then) or place of the column of labels: text, categories or numbers.
    covariates : str, int, or list of them, default=()
        Columns of X that the likelihood is given, row by row: see `ConditionalModel`.
    group_covariates : str, int, or list of them, default=()
        Columns that `local_prior` is given; they must be constant within each group.

    Notes
    -----
    `likelihood` gets each row's group's latents, (n_rows, n_latents), and may leave out the
    argument `covariates` if the model has none; `local_prior` may ask for
    ``group_covariates``, (n_groups, n_group_covariates), after theta. Missing responses (NaN) are
    marginalised. ``log_likelihood(theta, z, X)`` in place of `likelihood` gets rows, too.

    `transform` gives each row its group's latents, `posterior` one entry a group, ``.groups``. A
    group is inferred from its rows in the X at hand. One of which no response is observed there
    takes the factor that the fit gave it, or if the fit did not know it, its prior: so `impute`
    predicts missing responses, for known and for new groups. `score_samples` takes every group as
    new and shares its bound equally among its rows. Inference functions read a symmetric summary
    of a group's rows: count, means and second moments of responses and covariates.

    Examples
    --------
    Three groups, each around a level of its own; the rows of group "a" are apart:

    >>> import numpy as np
    >>> import torch
    >>> from torch.distributions import HalfNormal, Normal
    >>> from skavi import FactorizedVI
    >>> from skavi.models import GroupedModel
    >>> class Levels(GroupedModel):
    ...     groups = 1
    ...     n_latents = 1
    ...
    ...     def global_prior(self, n_features):
    ...         return {"mean": Normal(0.0, 10.0), "sd": HalfNormal(5.0)}
    ...
    ...     def local_prior(self, theta):
    ...         return Normal(theta["mean"].reshape(1), theta["sd"].reshape(1))
    ...
    ...     def likelihood(self, z, theta):
    ...         return Normal(z, 0.5)
    >>> labels = ["a", "b", "a", "c", "b"]
    >>> X = np.array([[1.0, 4.0, 1.4, 2.9, 4.2], labels], dtype=object).T
    >>> vi = FactorizedVI(Levels()).fit(X)
    >>> vi.transform(X).round(1).ravel()  # a row has its group's
    array([1.3, 4.1, 1.3, 2.9, 4.1])
    >>> vi.posterior(X).groups
    array(['a', 'b', 'c'], dtype=object)

    The next response of a known group and of a new one:

    >>> vi.impute([[np.nan, "b"], [np.nan, "d"]])[:, 0].astype(float).round(0)
    array([4., 3.])
    """

    roles: tuple[str, ...] = ("covariates", "group_covariates", "groups")
    covariates: Any = ()
    group_covariates: Any = ()
    groups: Any = None
    coupling: Coupling = UNITS
    allows_missing = True
    fewest_latents = 1
    learned = (*ConditionalModel.learned, "group_factors_")

    #: Raw parameters of the factors that the fit gave the groups, in the order of their labels in
    #: ``columns_``.
    group_factors_: np.ndarray | None = None

    @left_open
    def local_prior(self, theta: Theta, group_covariates: Tensor) -> Distribution:  # type: ignore[override]
        r"""Return :math:`p(z_g \mid \theta)`, event shape (n_latents,)."""
        raise NotImplementedError

    def check_roles(self):
        super(ConditionalModel, self).check_roles()
        need = "the name or the place of the one column of X that holds the groups' labels"
        self._require("groups", len(self.named_columns().get("groups", ())) == 1, need)

    def check_learned(self, n_features):
        super().check_learned(n_features)
        if self.group_factors_ is not None:
            n_groups = len(self.columns_.given["groups"][0].levels)
            self._require_learned("group_factors_", (n_groups, None))

    def check_data(self, X):
        X = GroupedRows.of(X)
        given = self.given_columns(X.table, "group_covariates")
        at_first = X.at_rows(given[X.first])
        off = (given != at_first).nonzero()
        if len(off):
            row, column = off[0].tolist()
            name = self.columns_.labels("group_covariates")[column]
            first, one, other = int(X.first[X.unit[row]]), at_first[row, column], given[row, column]
            raise ValueError(
                f"{type(self).__name__}(group_covariates=...): column {name!r} is not constant "
                f"within its group: rows {first} and {row} are of one group, but have {one:g} and "
                f"{other:g}. A column that differs between the rows of a group is a covariate of "
                "the rows."
            )

    # --- rows and their groups ------------------------------------------------------------------

    def explained(self, X):
        return super().explained(X.table if isinstance(X, GroupedRows) else X)

    def given_columns(self, X, role="covariates"):
        return super().given_columns(X.table if isinstance(X, GroupedRows) else X, role)

    def by_row(self, z, X):
        X = GroupedRows.of(X)
        return X.at_rows(z), X.table

    def is_observed(self, X: GroupedRows) -> Tensor:
        """Say which groups have a response, shape (n_groups,)."""
        seen = ~self.explained(X).isnan().all(1) & (X.weights > 0)
        return X.over_units(seen.to(X.dtype)) > 0

    def unobserved(self, X):
        return ~self.is_observed(X)

    def remember(self, raw, X):
        order = stacked(X.codes).argsort()
        self.group_factors_ = stacked(raw)[order].cpu().numpy().copy()

    def recalled(self, raw, X):
        if self.group_factors_ is None:
            return raw
        asked = ~self.is_observed(X) & (X.codes < len(self.group_factors_))
        known = torch.as_tensor(self.group_factors_).to(raw)
        raw = raw.clone()
        raw[asked] = known[X.codes[asked]]
        return raw

    # --- densities ------------------------------------------------------------------------------

    def latent_prior(self, n_features, theta, *conditions):
        prior = call_with(self.local_prior, theta, *conditions)
        return for_latents(prior, self.count_latents(n_features))

    def prior_of_rows(self, theta, X):
        X = GroupedRows.of(X)
        given = self.given_columns(X.table[X.first], "group_covariates")
        return self.latent_prior(self.n_explained(X), theta, given)

    def observation_of_rows(self, z, theta, X):
        return call_with(self.likelihood, z, theta, self.given_columns(X))

    def log_likelihood(self, theta, z, X):
        r"""Return :math:`\log p(x_n \mid z_g, c_n, \theta)` of rows and their z, (n_rows,)."""
        with defaults_of(z):
            x, observed = filled(self.explained(X))
            likelihood = self.observation_of_rows(z, theta, X)
            if observed is None:
                return log_prob(likelihood, x)
            return log_prob_of_observed(likelihood, x, observed, type(self).__name__)

    def log_local(self, theta, z, X):
        r"""Return :math:`\log p(z_g, x_g \mid \theta)`, shape (n_groups,)."""
        X = GroupedRows.of(X)
        return self.log_prior(theta, z, X) + self._log_units(theta, z, X)

    def _log_units(self, theta, z, X):
        return X.over_units(X.weights * self.log_likelihood(theta, X.at_rows(z), X.table))

    def half_expected_terms(self, theta, z, factors, rest, X):
        if overrides(self, GroupedModel, "log_local"):
            return self.log_terms(theta, z, X)
        X = GroupedRows.of(X)
        with defaults_of(z):
            prior = self.expected_log_prior(theta, z, factors, X)
            return prior + self._log_units(theta, z, X)

    def check_written(self, n_features):
        super().check_written(n_features)
        written_out = overrides(self, GroupedModel, "log_local")
        if not written_out and not overrides(self, GroupedModel, "log_likelihood"):
            require_written(self, "likelihood", LIKELIHOOD_NEEDED)

    def declared(self, theta, z, X):
        found: dict[str, tuple[Distribution, Tensor]] = {}
        if overrides(self, GroupedModel, "log_local"):
            return found
        X = GroupedRows.of(X)
        with defaults_of(z):
            if not overrides(self, HierarchicalModel, "log_prior"):
                found["local_prior"] = self.prior_of_rows(theta, X), z
            if not overrides(self, GroupedModel, "log_likelihood"):
                likelihood = self.observation_of_rows(X.at_rows(z), theta, X.table)
                x, observed = filled(self.explained(X))
                if observed is None or bool(observed.any()):
                    found["likelihood"] = likelihood, x
        return found

    # --- predictions ----------------------------------------------------------------------------

    def predicted_mean(self, theta, z, covariates=None):
        given = z.new_zeros(len(z), 0) if covariates is None else covariates
        with defaults_of(z):
            return call_with(self.likelihood, z, theta, given).mean

    def simulate(self, theta, n_samples, n_features=1, covariates=None, units=None):
        """Draw rows and each one's latents.

        Parameters
        ----------
        theta : Theta
        n_samples, n_features : int
        covariates : Tensor of shape (n_samples, n_covariates), default=None
        units : GroupedRows, default=None
            Groups of the rows, with their covariates; None: each row is a group of its own.
        """
        everything = torch.zeros(n_samples, n_features + self.columns_.width, dtype=torch.float64)
        X = GroupedRows.of(everything) if units is None else units
        prior = self.prior_of_rows(theta, X)
        of_units = len(prior.batch_shape + prior.event_shape) > 1
        each = prior if of_units else prior.expand(torch.Size([len(X), *prior.batch_shape]))
        z = X.at_rows(each.sample())
        given = z.new_zeros(n_samples, 0) if covariates is None else covariates
        return call_with(self.likelihood, z, theta, given).sample(), z

    # --- what functions read --------------------------------------------------------------------

    def sets(self, X):
        """Return each group's rows; those without a response count nothing."""
        X = GroupedRows.of(X)
        return replace(X, weights=X.weights * ~self.explained(X).isnan().all(1))

    def summary(self, X):
        """Return each group's count, and means and second moments of its rows: symmetric in them.

        Of what is explained and given, over the rows with a response; then the group's covariates.
        """
        X = GroupedRows.of(X)
        of_groups = self.given_columns(X.table[X.first], "group_covariates")
        return moments_of_units(X, self.explained(X), self.given_columns(X), of_groups)


def call_with(method, *arguments):
    """Call a method with as many of the arguments as it takes, at least all but the last."""
    parameters = inspect.signature(method).parameters.values()
    several = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    count = sum(
        each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters
    )
    return method(*(arguments if several or count >= len(arguments) else arguments[:-1]))


def filled(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return cells with some observed value where one is missing, and which are observed.

    Any value of the column will do, since it is in the support; None: all are observed.
    """
    observed = ~x.isnan()
    if bool(observed.all()):
        return x, None
    some = x[observed][:1] if bool(observed.any()) else x.new_zeros(1)
    first = observed.to(torch.uint8).argmax(0, keepdim=True)
    of_column = torch.where(observed.any(0), x.gather(0, first)[0], some)
    return torch.where(observed, x, of_column), observed


def log_prob_of_observed(distribution, x, observed, name):
    """Return the log density of each row's observed cells, shape (n_rows,)."""
    if not bool(observed.any()):
        return x.new_zeros(len(x))
    if not distribution.event_shape:
        density = distribution.log_prob(x)
        return torch.where(observed, density, torch.zeros_like(density)).sum(-1)
    whole = observed.all(-1)
    if bool((observed.any(-1) != whole).any()):
        raise ValueError(
            f"{name}.likelihood is a distribution of whole rows, of which X has some with missing "
            "cells beside observed ones: fill these rows, or leave them out."
        )
    density = log_prob(distribution, x)
    return torch.where(whole, density, torch.zeros_like(density))
