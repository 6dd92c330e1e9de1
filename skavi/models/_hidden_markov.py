"""Hidden Markov models: rows of a series whose hidden state follows a Markov chain."""

import torch
from torch.distributions import Categorical, Dirichlet, StickBreakingTransform

from skavi.families import Chain, DiagonalFactors, DiagonalNormal, FullFactors
from skavi.models._best_normals import best_weights
from skavi.models._emitting import Emitting
from skavi.models._global_space import expected_log_weights, weights_moments
from skavi.models._mixed_emissions import EMITTED
from skavi.models._time_series import MarkovModel

#: Steps of the chain after which it has forgotten where it began. Not measured.
_LONG_RUN = 1024


class HiddenMarkovModel(Emitting, MarkovModel):
    r"""Regimes: hidden states that follow one another, and a distribution of the row for each.

    :math:`s_1 \sim \mathrm{Categorical}(\text{initial})`, and :math:`s_n` is drawn with the
    probabilities of the row :math:`s_{n-1}` of "transitions".

    Given its state a row's cells are distributed as in `MixtureModel`. `transform` gives the
    probabilities of the states given the whole series, `predict` the most probable one, `forecast`
    the rows that follow. Missing cells, and whole rows of them, are marginalised exactly.

    Parameters
    ----------
    n_states : int, default=2
        Number of states.
    likelihood : str, or dict from str to columns, default="normal"
        Distribution of a cell given the state, as in `MixtureModel`, but for "binomial": rows to
        come have no trials.
    series : str or int, default=None
        Column of X, by name or place, that tells several series apart: each begins anew. The rows
        of a series are together, in time order. Labels that the fit has not seen must be numbers.
    covariance : {"diagonal", "tied", "full"}, default="diagonal"
        Covariance of normal cells within a state.
    concentration : float, default=1.0
        Of the Dirichlet priors of "initial" and of each row of "transitions".
    mean_loc, mean_scale : array of shape (n_features,), default=None
        As in `MixtureModel`. None: from the data.
    variance_shape : float, default=1.5
        As in `MixtureModel`.
    variance_scale : array of shape (n_features,), default=None
        As in `MixtureModel`. None: from the data.

    Notes
    -----
    Globals, in ``global_posterior_``:

    * "initial" (n_states,): probabilities of the first state;
    * "transitions" (n_states, n_states): row i has the probabilities of what follows state i;
    * "means" (n_states, n_features): of cells in each state;
    * "variances" (n_states, n_features), or "covariances" (n_states, n_features, n_features),
      without the first dimension if tied: of normal cells;
    * of other cells, of mixed columns and of levels, those of `MixtureModel`.

    Given q(theta) the factors of `Chain` (the default)
    are those of the forward-backward algorithm, and updates of q(theta) are in closed form (those
    of probabilities by quadrature in one dimension each): variational Baum-Welch (MacKay 1997). The
    best of several starts by `k-means++` is kept; states are ordered by how often the chain is in
    them in the long run, most often first. Weights of rows must be equal within a series.

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import FactorizedVI
    >>> from skavi.models import HiddenMarkovModel
    >>> X = np.array([0.1, -0.2, 0.0, 0.2, np.nan, -0.1, 5.1, 4.9, 5.0]).reshape(-1, 1)
    >>> vi = FactorizedVI(HiddenMarkovModel(2), random_state=0).fit(X)
    >>> vi.predict(X)
    array([0, 0, 0, 0, 0, 0, 1, 1, 1])
    """

    roles = ("series",)
    counted = "n_states"
    known_kinds = tuple(kind for kind in EMITTED if kind != "binomial")  # rows ahead have no trials

    def __init__(
        self,
        n_states=2,
        likelihood="normal",
        series=None,
        *,
        covariance="diagonal",
        concentration=1.0,
        mean_loc=None,
        mean_scale=None,
        variance_shape=1.5,
        variance_scale=None,
    ):
        self.n_states = n_states
        self.likelihood = likelihood
        self.series = series
        self.covariance = covariance
        self.concentration = concentration
        self.mean_loc = mean_loc
        self.mean_scale = mean_scale
        self.variance_shape = variance_shape
        self.variance_scale = variance_scale

    def check_data(self, X):
        super().check_data(X)
        labels = self.given_columns(X, "series")
        n_found = len(torch.unique(labels, dim=0)) if labels.shape[1] else 1
        n_begun = int(self.begins(X).sum())
        if n_begun > n_found:
            raise ValueError(
                f"HiddenMarkovModel(series={self.series!r}): {n_found} series begin {n_begun} "
                "times, but the rows of a series must be together: sort X by series, and by time."
            )

    # --- the model ------------------------------------------------------------------------------

    def begins(self, X):
        labels = self.given_columns(X, "series")
        first = super().begins(X)
        if not labels.shape[1]:
            return first
        first[1:] = (labels[1:] != labels[:-1]).any(1)
        return first

    def latent_names(self, n_features):
        return [f"state{i}" for i in range(self.n_states)]

    def least_globals(self, n_features):
        return self.n_states * (n_features + self.n_states)

    def global_dims(self):
        chain = {"initial": ("component",), "transitions": ("component", "next")}
        return chain | self.emissions.dims

    def global_prior(self, n_features):
        each = torch.full((self.n_states, self.n_states), float(self.concentration))
        chain = {"initial": Dirichlet(each[0]), "transitions": Dirichlet(each)}
        return chain | self.emission_prior(n_features)

    def initial_prior(self, theta):
        return Categorical(theta["initial"])

    def transition(self, z_previous, theta):
        return Categorical(theta["transitions"][z_previous[:, 0].long()])

    def log_terms(self, theta, z, X):
        state, begins = z[:, 0].long(), self.begins(X)
        before = torch.cat([state[:1], state[:-1]])
        moves = theta["transitions"][before, state]
        chain = torch.where(begins, theta["initial"][state], moves)
        return chain.log() + self.log_likelihood(theta, z, X)

    def log_chain(self, theta, atoms):
        return torch.cat([theta["initial"][None], theta["transitions"]]).log()

    def simulate(self, theta, n_samples, n_features=1):
        states = [self.initial_prior(theta).sample()]
        for _ in range(n_samples - 1):
            states.append(Categorical(theta["transitions"][states[-1]]).sample())
        z = torch.stack(states)[:, None]
        return self.observation(z, theta).sample(), z

    def initial_locals(self, theta, X):
        return X.new_zeros(len(X), 1), X.new_ones(len(X), 1)

    def _next_row(self, theta, z):
        return self.emissions.moments(theta, z[:, 0].long())

    def forecast_of_states(self, now, atoms, q_theta, space, n_steps):
        moments = super().forecast_of_states(now, atoms, q_theta, space, n_steps)
        mean, variance = (each.flatten(0, 1) for each in moments)
        cells = self.cells_from(mean, variance, False)
        return tuple(each.unflatten(0, (len(now), n_steps)) for each in cells)

    # --- closed forms ---------------------------------------------------------------------------

    def _parts(self, numbers):
        """Split numbers of q(theta): of "initial", of "transitions", and of the emissions."""
        k = self.n_states
        first, moves, own = numbers.split([k - 1, k * (k - 1), len(numbers) - (k + 1) * (k - 1)])
        return first, moves.reshape(k, k - 1), own

    def has_closed_form(self, family, global_family):
        return isinstance(global_family, DiagonalNormal)

    def expected_log_joints(self, globals_, X):
        """Those of first states and of moves come first, then the rows' log likelihoods."""
        parts = zip(self._parts(globals_.mean), self._parts(globals_.sd), strict=True)
        first, moves, own = parts
        rows = self.emissions.expected_log_likelihoods(*own, self.emitted(X))
        chain = expected_log_weights(*first)[None], expected_log_weights(*moves)
        return torch.cat([*chain, rows])

    def has_coordinate_updates(self, family, global_family):
        known = isinstance(family, Chain) and isinstance(global_family, DiagonalNormal)
        return known and self.emissions.has_optimum

    def global_optimum(self, globals_, factors, X, weights):
        shares, begins = factors.mean * weights[:, None], self.begins(X)
        moved = (factors.pairs() * weights[:, None, None])[~begins].sum(0)
        counts = shares[begins].sum(0), moved
        parts = zip(self._parts(globals_.mean), self._parts(globals_.sd), strict=True)
        first, moves, own = parts
        found = [
            best_weights(counts[0] + self.concentration, *first),
            best_weights(counts[1] + self.concentration, *moves),
            self.emissions.optimum(*own, shares, self.emitted(X)),
        ]
        mean, sd = (torch.cat([p.reshape(-1) for p in part]) for part in zip(*found, strict=True))
        return DiagonalFactors(mean, sd)

    def in_order(self, globals_, n_features):
        """States by how often the chain is in them in the long run, most often first."""
        if isinstance(globals_, FullFactors):
            return None
        first, moves, own = zip(self._parts(globals_.mean), self._parts(globals_.sd), strict=True)
        initial, transitions = weights_moments(*first)[0], weights_moments(*moves)[0]
        often = torch.linalg.matrix_power(transitions, _LONG_RUN)[0]
        if bool((often.diff() <= 0).all()):
            return None
        order, sticks = often.argsort(descending=True), StickBreakingTransform()
        emissions = [self.emissions.permuted(each, order, n_features) for each in own]
        u = sticks.inv(initial[order]), sticks.inv(transitions[order][:, order]).reshape(-1)
        mean = torch.cat([*u, emissions[0]])
        sd = torch.cat([first[1], moves[1][order].reshape(-1), emissions[1]])
        return DiagonalFactors(mean, sd)

    # --- where to start -------------------------------------------------------------------------

    def adapted(self, X, weights):
        begins = self.begins(X)
        uneven = (weights[1:] != weights[:-1]) & ~begins[1:]
        if bool(uneven.any()):
            row = int(uneven.nonzero()[0]) + 1
            raise ValueError(
                f"sample_weight differs within a series (first at row {row}), but "
                "HiddenMarkovModel counts whole series: give all rows of a series one weight."
            )
        return super().adapted(X, weights)

    def globals_of(self, shares, X):
        begins = self.begins(X)
        moves = shares[:-1][~begins[1:]].mT @ (shares[1:] > 0).to(shares)[~begins[1:]] + 1
        initial = shares[begins].sum(0) + 1
        chain = {"initial": initial / initial.sum(), "transitions": moves / moves.sum(1, True)}
        return chain | self.emissions.start(shares, self.emitted(X))
