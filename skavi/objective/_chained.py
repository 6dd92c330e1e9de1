"""The ELBO of latents that take finitely many values, each reading the one of the row before."""

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skavi._data.coupling import SERIES
from skavi._numerics.aligned import aligned
from skavi._numerics.forward_backward import covariance_of_sums, messages, most_probable_path
from skavi.families import Categorical, CategoricalFactors, ChainedStates
from skavi.inference_functions import Table
from skavi.objective._chain_integrals import FiniteSeriesIntegral
from skavi.objective._finite import LEAST_LOG, FiniteObjective

#: Sweeps over even and odd rows in turn, each of which leaves a share of the error: of a start for
#: other solvers, and where they are all there is. Not measured: orders of magnitude.
_FEW_SWEEPS, _MOST_SWEEPS = 20, 2000
#: Change of every probability below which sweeps end.
_STILL = 1e-13
#: Starts drawn by chance, beside one of each state and the marginals of the exact posterior.
_DRAWN_STARTS = 16


class StatesInAChain(FiniteObjective):
    """What both kinds of factors read: the expected log potentials of all steps.

    `log_joints_at` and `expected_log_joints` have the log probabilities of first states and of
    transitions above the rows' log likelihoods: shape (1 + n_states + n_rows, n_states).
    """

    def log_joints_at(self, theta, X):
        k, likelihoods = len(self.atoms), []
        for z in self._values(X):
            likelihoods.append(self.model.log_likelihood(theta, z, X))
        chain = self.model.log_chain(theta, self.atoms.to(X.device))
        logs = torch.cat([chain.reshape(1 + k, k), torch.stack(likelihoods, -1)])
        return logs.clamp_min(LEAST_LOG)

    def potentials(self, logs: Tensor, X: Tensor) -> Tensor:
        """Return log potentials of states i of the row before and j of each row, (n, K, K)."""
        k = len(self.atoms)
        first, moves, rows = logs.split([1, k, len(logs) - 1 - k])
        begins = self.model.begins(X)[:, None, None]
        return torch.where(begins, first, moves) + rows.unsqueeze(1)

    def integral(self, X, factors, u, agreement=None):
        return FiniteSeriesIntegral(self, X)

    def typical_latents(self, raw, raw_globals, X):
        """Return the most probable path at the mean of q(theta)."""
        return self.atoms.to(X.device)[most_probable_path(self._at_mean(raw_globals, X))]

    def _at_mean(self, raw_globals, X):
        theta = self.space.constrain(self.global_factor(raw_globals).mean)
        return self.potentials(self.log_joints_at(theta, X), X)

    def terms_of(self, raw, logs, X):
        if not raw.shape[1]:
            return messages(self.potentials(logs, X)).terms()
        factors = self.local_factors(raw)
        return self.expected_at(factors, logs, X) + factors.entropy()

    def expected_at(self, factors, logs, X):
        return (self.pairs(factors, X) * self.potentials(logs, X)).sum((-2, -1))

    @abstractmethod
    def pairs(self, factors, X) -> Tensor:
        """Return probabilities of states of the row before and of each row, (n, K, K)."""

    def forecast(self, raw, last_rows, q_theta, n_steps):
        """Follow the states' probabilities, given each of some draws of theta."""
        now = self.local_factors(raw).mean[last_rows]
        return self.model.forecast_of_states(now, self.atoms, q_theta, self.space, n_steps)


class ChainObjective(StatesInAChain):
    """Factors that know their neighbours: given q(theta), forward-backward is exact."""

    def coupling_under(self, function):
        """With the best factors put in, as factorized VI has them, rows meet in theta alone."""
        return SERIES if isinstance(function, Table) else self.model.coupling

    @property
    def n_outputs(self):
        return ChainedStates.n_parameters(len(self.atoms))

    def local_factors(self, raw):
        if raw.shape[1]:
            return ChainedStates.of_logits(raw, self.atoms.to(raw.device))
        none = raw.new_zeros(len(raw), 1)  # no number describes a factor
        return ChainedStates(none, self.atoms[:1], none.unsqueeze(1))

    def pairs(self, factors, X):
        return ChainedStates.apart(factors).pairs()

    def covariance(self, factors, slopes, X, weights):
        k, begins = len(self.atoms), self.model.begins(X)[:, None, None, None]
        chain, rows = slopes[: k + 1], slopes[k + 1 :]

        def of_steps(part):
            return torch.where(begins[part], chain[0], chain[1:]) + rows[part].unsqueeze(1)

        pairs = factors.pairs() * weights[:, None, None]
        return covariance_of_sums(factors.log_conditionals.exp(), pairs, of_steps)

    def best_given(self, logs, X, start=None):
        return self.best_with_terms(logs, X)[0]

    def best_with_terms(self, logs, X):
        found = messages(self.potentials(logs, X))
        atoms = self.atoms.to(logs.device)
        best = ChainedStates(found.log_states(), atoms, found.log_conditionals())
        return best, found.terms()


class IndependentObjective(StatesInAChain):
    """Factors that know nothing of one another: what is lost is the ELBO's gap to the evidence."""

    has_own_numbers = True

    def start_locals(self, raw_globals, X):
        steps = self._at_mean(raw_globals, X)
        return self.family.raw(self._factors(_few_sweeps(steps, _marginals(steps))[0]))

    def free(self, raw):
        return raw

    def pairs(self, factors, X):
        return _independent_pairs(factors.mean)

    def best_given(self, logs, X, start=None):
        """Sweep over even and odd rows in turn, from several starts; keep each series' best."""
        steps, n, k = self.potentials(logs, X), len(X), len(self.atoms)
        drawn = aligned(np.random.default_rng(0).random((_DRAWN_STARTS, n, k)) ** 2).to(steps)
        single = torch.eye(k).unsqueeze(1).expand(k, n, k).to(steps)
        given = [] if start is None else [self.local_factors(start).mean.unsqueeze(0)]
        q = torch.cat([_marginals(steps), single, drawn, *given])
        found = _sweeps(steps, q / q.sum(-1, keepdim=True))
        terms = (_independent_pairs(found.exp()) * steps).sum((-2, -1))
        terms = terms + torch.special.entr(found.exp()).sum(-1)
        series = self.model.begins(X).long().cumsum(0) - 1
        totals = terms.new_zeros(len(found), int(series.max()) + 1).index_add(1, series, terms)
        return self._factors(found[totals.argmax(0)[series], torch.arange(n)])

    def better_raw(self, raw, raw_globals, X, nodes, margin):
        best = self.best_raw(raw_globals, X, nodes, raw)
        here, there = (self.row_terms(each, raw_globals, X, nodes).sum() for each in (raw, best))
        return best if bool(there > here + margin) else None

    def _factors(self, logs):
        return CategoricalFactors(logs, self.atoms.to(logs.device))


def _marginals(steps):
    """Return the probabilities of the states by forward-backward, as one start (1, n, K)."""
    return messages(steps).log_states().exp().unsqueeze(0)


def _independent_pairs(q):
    """Return pairs of neighbours, (..., n, K, K); where a series begins any states before serve."""
    before = torch.cat([torch.full_like(q[..., :1, :], 1 / q.shape[-1]), q[..., :-1, :]], -2)
    return before.unsqueeze(-1) * q.unsqueeze(-2)


def _sweep(steps, q):
    """Return log probabilities, (n_starts, n, K), after a sweep over even rows, then odd ones."""
    logs, row = q.clamp_min(1e-300).log(), torch.arange(len(steps), device=q.device)
    next_steps = torch.cat([steps[1:], torch.zeros_like(steps[:1])])
    for parity in (0, 1):
        earlier = torch.cat([torch.full_like(q[:, :1], 1 / q.shape[-1]), q[:, :-1]], 1)
        later = torch.cat([q[:, 1:], torch.zeros_like(q[:, :1])], 1)
        own = torch.einsum("sni,nij->snj", earlier, steps)
        own = own + torch.einsum("nij,snj->sni", next_steps, later)
        logs = torch.where((row % 2 == parity)[:, None], torch.log_softmax(own, -1), logs)
        q = logs.exp()
    return logs


def _few_sweeps(steps, q):
    for _ in range(_FEW_SWEEPS):
        logs = _sweep(steps, q)
        q = logs.exp()
    return logs


def _sweeps(steps, q):
    for _ in range(_MOST_SWEEPS):
        logs, before = _sweep(steps, q), q
        q = logs.exp()
        if bool((q - before).abs().max() <= _STILL):
            break
    return logs


def chained(family: Any) -> type[StatesInAChain]:
    """Return the class of objectives for a family of states in a chain."""
    return IndependentObjective if isinstance(family, Categorical) else ChainObjective
