"""Mixtures: rows of a few kinds, each kind with its own mean (and variance) of every column."""

import torch
from torch.distributions import Categorical, Dirichlet, StickBreakingTransform

from skavi._data.process_ranks import over_ranks, total
from skavi.families import DiagonalFactors, DiagonalNormal, FullFactors
from skavi.models._base import HierarchicalModel
from skavi.models._best_normals import best_weights
from skavi.models._emitting import Emitting
from skavi.models._global_space import expected_log_weights, weights_moments


class MixtureModel(Emitting, HierarchicalModel):
    r"""Clusters: a row is from one of a few components, each with a distribution of its own.

    :math:`s_n \sim \mathrm{Categorical}(\text{weights})` is the component of row :math:`n`.

    Normal rows have a mean and a covariance matrix for each component; other cells are independent
    given it, and so are columns of different kinds. Missing cells (NaN) are marginalised.
    `transform` gives the probabilities of the components, `predict` the most probable one.

    Parameters
    ----------
    n_components : int, default=2
        Number of components.
    likelihood : str, or dict from str to columns, default="normal"
        Distribution of a cell given its component: "normal"; "student_t", where some cells are far
        out and should not decide; "bernoulli", for cells from 0 to 1; "poisson", for counts;
        "negative_binomial", for counts that vary more: of mean m their variance is
        ``m + dispersion * m ** 2``; "ordinal" or "categorical", for levels 0, ..., K - 1 or texts,
        with a chance of each level; "binomial", for successes out of `trials`. A dict names the
        columns, by name or place, of each likelihood: a table of mixed columns (Notes).
    covariance : {"diagonal", "tied", "full"}, default="diagonal"
        Covariance of normal cells within a component: a variance for each component and column, one
        matrix for all components, or one for each. "diagonal" for mixed columns.
    concentration : float, default=1.0
        Of the weights' Dirichlet prior; less than 1 lets components empty.
    mean_loc, mean_scale : array of shape (n_features,), default=None
        Prior mean and sd of the means: of their logs for "poisson" and "negative_binomial", of
        their logits for "bernoulli" and "binomial"; numbers of columns of levels are not read.
        None: the columns' means, and their standard deviations, or 3.
    variance_shape : float, default=1.5
        Shape of the inverse gamma prior of variances, or of squared scales for "student_t". With
        "tied" and "full" covariances the prior is inverse Wishart, with ``2 * variance_shape +
        n_features - 1`` degrees of freedom.
    variance_scale : array of shape (n_features,) or (n_features, n_features), default=None
        Its scale, in squared units of X; a matrix is half the scale of the inverse Wishart prior.
        None: half the columns' variances, or with "tied" and "full" their covariance matrix, over
        ``n_components ** (2 / n_features)``, so that components share the rows' volume (Fraley &
        Raftery 2007).
    trials : str, int or list of them, default=None
        For "binomial": name or place of the column of trials, or of one for each such column.

    Notes
    -----
    Globals, in ``global_posterior_``:

    * "weights" (n_components,): shares of the components;
    * "means" (n_components, n_features): of cells in each component;
    * "variances" (n_components, n_features), or "covariances" (n_components, n_features,
      n_features), without the first dimension if tied: of normal cells;
    * "variances", here squared scales, and "degrees_of_freedom" (n_components,), with prior
      Gamma(2, 0.1): of student_t cells, whose "means" are their centres;
    * "dispersion" (n_components, n_features), with prior Exp(1): of negative_binomial cells.

    In a table of mixed columns, and for "ordinal", "categorical" and "binomial", each kind has its
    own names: "means" and "variances" of the normal columns, "centres", "squared_scales" and
    "degrees_of_freedom" of the student_t ones, "probabilities" of the bernoulli ones, "rates" of
    the poisson ones, "mean_counts" and "dispersion" of the negative_binomial ones, "success_rates"
    of the binomial ones, each but the degrees of freedom of shape (n_components, columns of that
    kind); "levels_3" (n_components, n_levels), for an ordinal or
    categorical column at place 3 of those that are explained, are the chances of its levels, with a
    Dirichlet prior of ones. Ordered levels have a chance each, too, without a cut point: their
    order counts when cells are predicted, by the level to expect, where categories have the most
    probable one. How many levels a column has is learned as in `FactorAnalysis`, and `impute` fills
    each column in its own kind.

    q is normal in the log variance of each column given those before it and in its slopes on them
    (Pourahmadi 1999). Expectations under q(theta) are in closed form, those of log weights by
    quadrature in one dimension each, and so are the updates; of student_t and negative_binomial
    cells both are by quadrature in two dimensions. With covariance matrices, rows with missing
    cells have a lower bound of their term, which is exact where theta is known. Fits start from
    k-means++ (Arthur & Vassilvitskii 2007), and the best of several starts is kept. Components are
    in the order of their expected weights, largest first, so that fits can be compared; a function
    of `AmortizedVI` keeps the order of the factorized fit that it starts from. With a small
    `concentration` components that no row needs empty: their weight is near zero, and their other
    globals follow the prior.

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import FactorizedVI
    >>> from skavi.models import MixtureModel
    >>> X = np.array([[0.0, 1.0], [0.2, np.nan], [0.1, 0.9], [5.0, 7.0], [5.1, 6.8]])
    >>> vi = FactorizedVI(MixtureModel(2), random_state=0).fit(X)
    >>> vi.predict(X)
    array([0, 0, 0, 1, 1])

    A number, and a text that is missing once:

    >>> import pandas as pd
    >>> X = pd.DataFrame({"size": [0.1, 0.3, 0.2, 5.0, 5.1], "kind": ["a", "a", None, "b", "b"]})
    >>> model = MixtureModel(2, likelihood={"normal": ["size"], "categorical": ["kind"]})
    >>> vi = FactorizedVI(model, random_state=0).fit(X)
    >>> str(vi.impute(X)[2, 1])
    'a'
    """

    roles = ("trials",)
    ideal_context = (0, 0)

    def __init__(
        self,
        n_components=2,
        likelihood="normal",
        covariance="diagonal",
        *,
        concentration=1.0,
        mean_loc=None,
        mean_scale=None,
        variance_shape=1.5,
        variance_scale=None,
        trials=None,
    ):
        self.n_components = n_components
        self.likelihood = likelihood
        self.covariance = covariance
        self.concentration = concentration
        self.mean_loc = mean_loc
        self.mean_scale = mean_scale
        self.variance_shape = variance_shape
        self.variance_scale = variance_scale
        self.trials = trials

    def latent_names(self, n_features):
        return [f"component{i}" for i in range(self.n_components)]

    def least_globals(self, n_features):
        return self.n_components * n_features

    def global_dims(self):
        return {"weights": ("component",)} | self.emissions.dims

    def global_prior(self, n_features):
        weights = Dirichlet(torch.full((self.n_components,), float(self.concentration)))
        return {"weights": weights} | self.emission_prior(n_features)

    def local_prior(self, theta):
        return Categorical(theta["weights"])

    def log_prior(self, theta, z, X):
        return theta["weights"][z[:, 0].long()].log()

    def simulate(self, theta, n_samples, n_features=1, trials=None):
        z = Categorical(theta["weights"]).sample((n_samples, 1))
        return self.observation(z, theta, trials).sample(), z

    # --- closed forms ---------------------------------------------------------------------------

    def has_closed_form(self, family, global_family):
        return isinstance(global_family, DiagonalNormal)

    def expected_log_joints(self, globals_, X):
        n = self.n_components - 1
        weights = expected_log_weights(globals_.mean[:n], globals_.sd[:n])
        own = globals_.mean[n:], globals_.sd[n:]
        return weights + self.emissions.expected_log_likelihoods(*own, self.emitted(X))

    def has_coordinate_updates(self, family, global_family):
        return self.emissions.has_optimum and isinstance(global_family, DiagonalNormal)

    @over_ranks
    def global_optimum(self, globals_, factors, X, weights):
        n, shares = self.n_components - 1, factors.mean * weights[:, None]
        mean, sd = globals_.mean, globals_.sd
        counts = total(shares.sum(0)) + self.concentration
        best = best_weights(counts, mean[:n], sd[:n])
        own = self.emissions.optimum(mean[n:], sd[n:], shares, self.emitted(X))
        mean, sd = (torch.cat(pair) for pair in zip(best, own, strict=True))
        return DiagonalFactors(mean, sd)

    def in_order(self, globals_, n_features):
        """Components by their expected weights, largest first."""
        n, mean, sd = self.n_components - 1, globals_.mean, globals_.sd
        weights, _ = weights_moments(mean[:n], sd[:n])
        if isinstance(globals_, FullFactors) or bool((weights.diff() <= 0).all()):
            return None
        order = weights.argsort(descending=True)
        u = StickBreakingTransform().inv(weights[order])
        own = [self.emissions.permuted(each[n:], order, n_features) for each in (mean, sd)]
        return DiagonalFactors(torch.cat([u, own[0]]), torch.cat([sd[:n], own[1]]))

    # --- where to start -------------------------------------------------------------------------

    def globals_of(self, shares, X):
        counts = total(shares.sum(0)) + 1
        return {"weights": counts / counts.sum()} | self.emissions.start(shares, self.emitted(X))
