"""Models of rows given some of their columns."""

import torch
from torch import Tensor
from torch.distributions import Distribution

from skavi.distributions import defaults_of
from skavi.models._base import HierarchicalModel
from skavi.models._bijected_latents import unbounded
from skavi.models._global_space import Theta
from skavi.models._written import left_open


class ConditionalModel(HierarchicalModel):
    r"""Rows that are independent given the globals and the rows' covariates.

    .. math:: p(\theta) \prod_n p(z_n \mid c_n, \theta) \, p(x_n \mid z_n, c_n, \theta)

    Subclasses give what those of `HierarchicalModel` give, with ``local_prior(theta, covariates)``
    and ``likelihood(z, theta, covariates)``, and name the columns of X that are given in an
    argument or attribute `covariates`. ``n_features``, in a model's methods, counts the other
    columns, which are explained; ``n_features_in_`` counts all of them.

    Attributes
    ----------
    covariates : str, int, or list of them
        Names (X is a data frame then) or places of the columns of X that are given. Numbers are
        taken as they are; text and categories are encoded as 0 and 1 for each level but the first,
        with which all are compared (``columns_.labels("covariates")`` names the columns).

    Notes
    -----
    Inference functions read :math:`(x_n, c_n)`. Methods that are given rows X, such as
    ``log_likelihood(theta, z, X)``, take these apart by ``self.explained(X)`` and
    ``self.given_columns(X)``.

    Examples
    --------
    A straight line of x in c, around which each row has a level of its own:

    >>> import torch
    >>> from torch.distributions import Normal
    >>> from skavi import FactorizedVI
    >>> from skavi.models import ConditionalModel
    >>> class Line(ConditionalModel):
    ...     covariates = [1]
    ...     n_latents = 1
    ...
    ...     def global_prior(self, n_features):
    ...         return {"slope": Normal(0.0, 10.0)}
    ...
    ...     def local_prior(self, theta, covariates):
    ...         return Normal(theta["slope"] * covariates, 0.5)
    ...
    ...     def likelihood(self, z, theta, covariates):
    ...         return Normal(z, 0.5)
    >>> X = [[0.1, 0.0], [2.1, 1.0], [3.9, 2.0]]  # x beside c
    >>> vi = FactorizedVI(Line()).fit(X)
    >>> round(float(vi.global_posterior_.mean["slope"]), 2)
    1.98
    >>> vi.inverse_transform([[1.0]], covariates=[[3.0]])
    array([[1.]])
    """

    roles: tuple[str, ...] = ("covariates",)
    covariates = None

    @left_open
    def local_prior(self, theta: Theta, covariates: Tensor) -> Distribution:  # type: ignore[override]
        r"""Return :math:`p(z_n \mid c_n, \theta)` for covariates (n_rows, n_covariates)."""
        raise NotImplementedError

    @left_open
    def likelihood(self, z: Tensor, theta: Theta, covariates: Tensor) -> Distribution:  # type: ignore[override]
        r"""Return :math:`p(x_n \mid z_n, c_n, \theta)` for z (n_rows, n_latents)."""
        raise NotImplementedError

    def check_roles(self):
        super().check_roles()
        need = "name at least one column of X; a model without covariates is a HierarchicalModel"
        self._require("covariates", bool(self.named_columns()), need)

    def prior_of_rows(self, theta, X):
        return self.latent_prior(self.n_explained(X), theta, self.given_columns(X))

    def observation_of_rows(self, z, theta, X):
        return self.likelihood(z, theta, self.given_columns(X))

    def simulate(self, theta, n_samples, n_features=1, covariates=None):
        if covariates is None:
            raise ValueError(f"{type(self).__name__} simulates rows given covariates: pass some.")
        prior = self.latent_prior(n_features, theta, covariates)
        of_rows = len(prior.batch_shape + prior.event_shape) > 1
        rows = prior if of_rows else prior.expand(torch.Size([n_samples, *prior.batch_shape]))
        latents = rows.sample()
        return self.likelihood(latents, theta, covariates).sample(), unbounded(prior, latents)

    def own_given(self, X):
        return (self.given_columns(X),)

    def predicted_mean(self, theta, z, covariates=None):
        with defaults_of(z):
            return self.likelihood(z, theta, covariates).mean
