"""Models whose rows are a series in time order."""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from skavi._data.coupling import CHAIN, SERIES, Coupling
from skavi._data.missing_cells import Cells
from skavi.distributions import Flat, defaults_of, innermost, log_prob, unvalidated
from skavi.families import LOG_2PI
from skavi.models._base import (
    LIKELIHOOD_NEEDED,
    HierarchicalModel,
    LatentVariableModel,
    overrides,
)
from skavi.models._global_space import Theta
from skavi.models._own_scale import fixed_noise
from skavi.models._priors_of_rows import for_latents, start_at
from skavi.models._states_in_a_chain import StatesInAChain, in_its_shape, log_prob_of_rows
from skavi.models._written import left_open, require_written

#: Paths of a forecast, and draws of theta among them: a mean is a hundredth of an sd off.
_PATHS, _THETAS = 10_000, 200


class TimeSeriesModel(HierarchicalModel):
    r"""Rows in time order whose latents read the row before: :math:`p(z_n \mid x_{n-1}, \theta)`.

    Subclasses give `n_latents`, `global_prior`, ``local_prior(theta, x_previous)`` and
    `likelihood`. Given theta and X the latents are independent, so that q(z_n) is ideally a
    function of :math:`(x_{n-1}, x_n)`: the default ``context`` is (1, 0).

    Attributes
    ----------
    initial : float, default=0.0
        What :math:`x_0`, the row before the first, reads as.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import Normal
    >>> from skavi import FactorizedVI
    >>> from skavi.models import TimeSeriesModel
    >>> class Follow(TimeSeriesModel):
    ...     def n_latents(self, n_features):
    ...         return 1
    ...
    ...     def global_prior(self, n_features):
    ...         return {}
    ...
    ...     def local_prior(self, theta, x_previous):
    ...         return Normal(x_previous, 1.0)
    ...
    ...     def likelihood(self, z, theta):
    ...         return Normal(z, 1.0)
    >>> FactorizedVI(Follow()).fit_transform([[1.0], [2.0]])
    array([[0.5],
           [1.5]])
    """

    context = ideal_context = (1, 0)
    coupling: Coupling = SERIES
    initial: float = 0.0
    bijects_latents = False

    @property
    def padding(self):  # type: ignore[override]
        """What rows outside the series read as: `initial`."""
        return self.initial

    @left_open
    def local_prior(  # type: ignore[override]  # reads one row more than its base
        self, theta: Theta, x_previous: Tensor
    ) -> Distribution:
        r"""Return :math:`p(z_n \mid x_{n-1}, \theta)`; x_previous is (n_rows, n_features)."""
        raise NotImplementedError

    def previous(self, X: Tensor) -> Tensor:
        """Return the row before each row, `initial` before the first."""
        return torch.cat([torch.full_like(X[:1], self.initial), X[:-1]])

    def prior_of_rows(self, theta, X):
        return self.latent_prior(self.n_explained(X), theta, self.previous(X))

    def simulate(self, theta, n_samples, n_features=1):
        x = torch.full((1, n_features), float(self.initial))
        X, Z = [], []
        for _ in range(n_samples):
            z = self.latent_prior(n_features, theta, x).sample().reshape(1, -1)
            x = self.likelihood(z, theta).sample()
            X.append(x)
            Z.append(z)
        return torch.cat(X), torch.cat(Z)


class SawTimeSeries(TimeSeriesModel):
    r"""A series of one column whose latents read the row before; a flat prior of :math:`\theta`.

    :math:`z_n \sim \mathrm{N}(x_{n-1}, 1)` and :math:`x_n \sim \mathrm{N}(a (\theta + z_n), 1)`.

    Parameters
    ----------
    a : float, default=0.75
        Pull towards zero; the series is stable for abs(a) < 1.
    initial : float, default=0.0
        The value :math:`x_0` before the series.

    Notes
    -----
    One global, "theta", a scalar; `transform` returns the posterior means of :math:`z_n`. The ideal
    inference function is affine in :math:`(x_{n-1}, x_n)`; no function of :math:`x_n` alone closes
    the gap. Source: Margossian & Blei (2024), section 5.3.

    Examples
    --------
    >>> from skavi import AmortizedVI
    >>> from skavi.inference_functions import Polynomial
    >>> from skavi.models import SawTimeSeries
    >>> vi = AmortizedVI(SawTimeSeries(), Polynomial(1)).fit([[1.0], [2.0], [4.0], [3.0]])
    >>> vi.converged_
    True
    """

    def __init__(self, a=0.75, initial=0.0):
        self.a = a
        self.initial = initial

    def check(self):
        super().check()
        self._require_finite("a")
        self._require_finite("initial")

    def n_latents(self, n_features):
        return 1

    def check_data(self, X):
        if X.shape[1] != 1:
            raise ValueError(f"X has {X.shape[1]} features, but SawTimeSeries is of 1 column.")

    def global_prior(self, n_features):
        return {"theta": Flat()}

    def local_prior(self, theta, x_previous):  # type: ignore[override]
        return Normal(x_previous, 1.0)

    def likelihood(self, z, theta):
        return Normal(self.a * (theta["theta"] + z), 1.0)

    def log_local(self, theta, z, X):
        residual = X - self.a * (theta["theta"] + z)
        return (-0.5 * ((z - self.previous(X)) ** 2 + residual**2) - LOG_2PI).sum(-1)


def _filled(cells, X):
    """Return X with an observed value of its column in every missing cell, or 1 if it has none."""
    if cells.observed is None:
        return X
    values = torch.nan_to_num(X.nanmedian(0).values, nan=1.0)
    return torch.where(cells.observed, X, values)


def _log_prob_of_seen(distribution, X):
    """Log density of each row's observed cells: what is missing is left out."""
    cells = Cells.of(X)
    if cells.observed is None:
        return log_prob(distribution, X)
    if distribution.event_shape:
        raise ValueError(
            f"X has missing cells, which {type(innermost(distribution)).__name__} cannot leave "
            "out: a likelihood of independent columns (Normal, Poisson, ...) can; or fill them, or "
            "write log_likelihood."
        )
    density = unvalidated(distribution).log_prob(_filled(cells, X))
    return cells.masked(density).sum(-1)


class CouplingBiasWarning(UserWarning):
    """A `MarkovModel` was fitted whose unknown globals are biased by independent factors.

    Factors q(z_n) that are independent ignore how neighbouring latents vary together: estimates of
    variances and of persistence are off by many of their sds, corrected ones included. To go on
    with them all the same:
    ``warnings.simplefilter("ignore", skavi.models.CouplingBiasWarning)``.

    Examples
    --------
    >>> import warnings
    >>> from skavi import FactorizedVI
    >>> from skavi.families import DiagonalNormal
    >>> from skavi.models import CouplingBiasWarning, LocalLevel
    >>> X = [[1.0], [2.0], [1.5], [3.0]]
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always", CouplingBiasWarning)
    ...     unknown = FactorizedVI(LocalLevel(), family=DiagonalNormal()).fit(X)
    ...     chain = FactorizedVI(LocalLevel()).fit(X)
    >>> [w.category.__name__ for w in caught]
    ['CouplingBiasWarning']
    """


class MarkovModel(StatesInAChain, LatentVariableModel):
    r"""Latents in a Markov chain, and rows in time order that depend on them.

    .. math::

       p(\theta) \, p(z_1 \mid \theta) \prod_{n>1} p(z_n \mid z_{n-1}, \theta)
       \prod_n p(x_n \mid z_n, \theta)

    Subclasses give `n_latents`, `global_prior`, `initial_prior`, `transition` and `likelihood`.
    Neighbouring latents are coupled, so no function of a window of rows closes the amortization
    gap; a wider window narrows it. The default ``context`` is (2, 2). The factors of `FactorizedVI`
    know their neighbours (`skavi.families.Chain`). Independent ones bias unknown variances and
    persistence among the globals, which a fit warns of (`CouplingBiasWarning`). Missing cells (NaN
    in X) are left out of a likelihood of independent columns.

    Latents may take finitely many values (`initial_prior` and `transition` are Categorical,
    Bernoulli, ...): then factors are exact given theta, `predict` gives each row's most probable
    state, and z holds one of the values for all rows. A `transition` of batch shape (n_rows,)
    serves a single latent.

    Examples
    --------
    >>> import torch
    >>> from torch.distributions import Normal
    >>> from skavi import FactorizedVI
    >>> from skavi.models import MarkovModel
    >>> class Walk(MarkovModel):
    ...     def n_latents(self, n_features):
    ...         return 1
    ...
    ...     def global_prior(self, n_features):
    ...         return {}
    ...
    ...     def initial_prior(self, theta):
    ...         return Normal(torch.zeros(1), 1.0)
    ...
    ...     def transition(self, z_previous, theta):
    ...         return Normal(z_previous, 1.0)
    ...
    ...     def likelihood(self, z, theta):
    ...         return Normal(z, 1.0)
    >>> FactorizedVI(Walk()).fit_transform([[1.0], [2.0]]).round(3)
    array([[0.8],
           [1.4]])

    Two regimes with known parameters:

    >>> from torch.distributions import Categorical
    >>> class Regimes(MarkovModel):
    ...     n_latents = 1
    ...
    ...     def global_prior(self, n_features):
    ...         return {}
    ...
    ...     def initial_prior(self, theta):
    ...         return Categorical(torch.tensor([0.5, 0.5]))
    ...
    ...     def transition(self, z_previous, theta):
    ...         return Categorical(torch.tensor([[0.9, 0.1], [0.2, 0.8]])[z_previous[:, 0].long()])
    ...
    ...     def likelihood(self, z, theta):
    ...         return Normal(4.0 * z, 1.0)
    >>> vi = FactorizedVI(Regimes()).fit([[0.2], [1.9], [3.1]])
    >>> vi.predict([[0.2], [1.9], [3.1]]), vi.transform([[2.1]]).round(2)
    (array([0, 0, 1]), array([[0.4, 0.6]]))
    """

    context = (2, 2)
    ideal_context = None
    coupling: Coupling = CHAIN
    fewest_latents = 1
    bias_of_globals = (
        "independent factors of latents in a chain bias estimates of unknown variances and "
        "persistence, not only their sds, and corrected sds do not cover that: estimate these by "
        "FactorizedVI with factors that know their neighbours, family=Chain() (its default); see "
        "the how-to on time series"
    )

    @property
    def allows_missing(self):  # type: ignore[override]
        """Whether missing cells can be left out of `likelihood`: not where it is written out."""
        written_out = ("log_terms", "log_likelihood")
        return not any(overrides(self, MarkovModel, name) for name in written_out)

    @abstractmethod
    def initial_prior(self, theta: Theta) -> Distribution:
        r"""Return :math:`p(z_1 \mid \theta)`, event shape (n_latents,)."""

    @abstractmethod
    def transition(self, z_previous: Tensor, theta: Theta) -> Distribution:
        r"""Return :math:`p(z_n \mid z_{n-1}, \theta)`; z_previous is (n_rows, n_latents)."""

    @left_open
    def likelihood(self, z: Tensor, theta: Theta) -> Distribution:
        r"""Return :math:`p(x_n \mid z_n, \theta)` for z of shape (n_rows, n_latents)."""
        raise NotImplementedError

    def check_written(self, n_features):
        super().check_written(n_features)
        written_out = overrides(self, MarkovModel, "log_terms")
        if not written_out and not overrides(self, MarkovModel, "log_likelihood"):
            require_written(self, "likelihood", LIKELIHOOD_NEEDED)

    def first_prior(self, theta, n_latents):
        """Return `initial_prior` of n_latents latents."""
        return for_latents(self.initial_prior(theta), n_latents)

    def declared(self, theta, z, X):
        if overrides(self, MarkovModel, "log_terms"):
            return {}
        with defaults_of(z):
            found = {
                "initial_prior": (self.first_prior(theta, z.shape[1]), z[:1]),
            }
            later = self.transition(z[:-1], theta)
            found["transition"] = later, in_its_shape(later, z[1:])
            if not overrides(self, MarkovModel, "log_likelihood"):
                found["likelihood"] = self.likelihood(z, theta), _filled(Cells.of(X), X)
        return found

    def log_terms(self, theta, z, X):
        with defaults_of(z):
            first = log_prob(self.initial_prior(theta), z[:1])
            later = log_prob_of_rows(self.transition(z[:-1], theta), z[1:])
            return torch.cat([first, later]) + self.log_likelihood(theta, z, X)

    def log_likelihood(self, theta, z, X):
        with defaults_of(z):
            return _log_prob_of_seen(self.likelihood(z, theta), X)

    def replicate(self, theta, z, X):
        with defaults_of(z):
            return self.likelihood(z, theta).sample()

    def cell_moments(self, theta, z, X):
        with defaults_of(z):
            rows = self.likelihood(z, theta)
            return rows.mean.expand_as(X), rows.variance.expand_as(X)

    def log_joint(self, theta, z, X):
        return self.log_terms(theta, z, X).sum()

    def initial_locals(self, theta, X):
        with defaults_of(X):
            return start_at(self.initial_prior(theta), (len(X), self.count_latents(X.shape[1])), X)

    def simulate(self, theta, n_samples, n_features=1):
        Z = [self.initial_prior(theta).sample().reshape(1, -1)]
        for _ in range(n_samples - 1):
            Z.append(self.transition(Z[-1], theta).sample().reshape(1, -1))
        z = torch.cat(Z)
        return self.likelihood(z, theta).sample(), z

    def predicted_mean(self, theta, z):
        with defaults_of(z):
            return self.likelihood(z, theta).mean

    def forecast(self, last, q_theta, space, n_steps):
        """Follow paths from draws of theta and of the last latent."""
        n_thetas = _THETAS if space.size else 1
        n_paths, (_, k) = _PATHS // n_thetas, last.mean.shape
        points = fixed_noise(n_thetas, max(space.size, 1))[:, 0, : space.size]
        means, variances = [], []
        for u in q_theta.draw(points.to(q_theta.mean)):
            theta = space.constrain(u)
            z = last.draw(torch.randn(n_paths, 1, k, dtype=u.dtype, device=u.device))[:, 0]
            ahead = [
                self._next_row(theta, z := self._next_latent(theta, z)) for _ in range(n_steps)
            ]
            mean, variance = (torch.stack(each) for each in zip(*ahead, strict=True))
            means.append(mean)
            variances.append(variance)
        mean, variance = torch.cat(means, 1), torch.cat(variances, 1)  # (steps, paths, features)
        return mean.mean(1), variance.mean(1) + mean.var(1, correction=0)

    def _next_latent(self, theta, z):
        with defaults_of(z):
            return self.transition(z, theta).sample()

    def _next_row(self, theta, z):
        with defaults_of(next(iter(theta.values()), z)):
            row = self.likelihood(z, theta)
            return row.mean, row.variance
