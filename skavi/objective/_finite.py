"""The ELBO of latents that take finitely many values, each row's apart from the others'."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from skavi._curvature import gradient_of, jacobian
from skavi._data.latent_moves import FiniteLatents
from skavi._numerics.sums import inner
from skavi.distributions import refuses_parameters
from skavi.families import Categorical, CategoricalFactors
from skavi.objective._elbo import Objective
from skavi.objective._integrals import FiniteIntegral

#: Nats: stands for the log of zero, whose derivatives are not finite.
LEAST_LOG = -1e12
#: Slopes of log joints that are held at once: 400 MB. Not measured: order of magnitude.
_MOST_SLOPES = 50_000_000


@dataclass(frozen=True)
class FiniteObjective(Objective):
    """The ELBO of a model whose latents take finitely many values: exact sums over the states.

    Given q(theta), the best factor of a row is the softmax over the states of E log p(x_n, s |
    theta), and its term of the ELBO their log sum of exponentials. So rows of raw parameters
    without columns stand for the best factors: factorized VI then moves theta alone.

    Attributes
    ----------
    atoms : Tensor of shape (n_states, a row's latents)
        The values. No noise is drawn for them, so that `n_latents` is 0.
    """

    atoms: Tensor = field(default_factory=lambda: torch.zeros(1, 1), kw_only=True)

    has_own_numbers = False
    has_states = True

    def some_latents(self, like, n_rows):
        return self.atoms[:1].to(like.device).expand(n_rows, -1)

    def local_factors(self, raw):
        n_states = raw.shape[1] + 1
        return Categorical.of_logits(raw, self.atoms[:n_states].to(raw.device))

    def typical_latents(self, raw, raw_globals, X):
        """Return the rows' most probable states at the mean of q(theta)."""
        u = self.global_factor(raw_globals).mean
        logs = self.log_joints_at(self.space.constrain(u), X)
        return self.atoms.to(raw.device)[logs.argmax(-1)]

    @property
    def n_columns(self):
        return len(self.atoms)

    @property
    def n_outputs(self):
        return self.family.n_parameters(len(self.atoms))

    @property
    def has_factors(self):
        return True

    @property
    def width(self):
        return len(self.atoms)

    def probed_latents(self, theta, X):
        return FiniteLatents(self.atoms.to(X.device), len(X))

    def column_names(self, n_features):
        names = self.model.latent_names(n_features)
        return [f"state{i}" for i in range(len(self.atoms))] if names is None else names

    # --- the ELBO -------------------------------------------------------------------------------

    def log_joints_at(self, theta, X) -> Tensor:
        """Return log p(x_n, s | theta) at all states, shape (n_rows, n_states), for one theta."""
        parts = [self.model.log_terms(theta, z, X) for z in self._values(X)]
        return torch.stack(parts, -1).clamp_min(LEAST_LOG)

    def expected_log_joints(self, q_theta, X, nodes) -> Tensor:
        """Return E log p(x_n, s | theta) at all states, shape (n_rows, n_states)."""
        if nodes is None:
            return self.model.expected_log_joints(q_theta, X)
        drawn = self.n_drawn_globals
        u = q_theta.draw(nodes.globals_) if drawn else q_theta.mean.unsqueeze(0)
        if len(u) == 1:
            return self.log_joints_at(self.space.constrain(u[0]), X)

        return torch.tensordot(nodes.weights, self.log_joints_of_states(u, X), 1)

    def log_joints_of_states(self, u, X) -> Tensor:
        """Return log p(x_n, s | theta) at unconstrained globals, (n_draws, n_rows, n_states)."""
        return self._evaluate(self.density(None, None, X), u, u)

    def integral(self, X, factors, u, agreement=None):
        return FiniteIntegral(self, X)

    def density(self, factors, rest, X):
        """Return the rows' terms at all states, (n_rows, n_states); draws of states are ignored."""
        return lambda u, _: self.log_joints_at(self.space.constrain(u), X)

    def evaluate_batch(self, u, z, X):
        """States are never in a batch: each is evaluated on its own."""
        return torch.func.vmap(lambda u: self.model.log_terms(self.space.constrain(u), z[0], X))(u)

    def row_terms(self, raw, raw_globals, X, nodes):
        q_theta = self.global_factor(raw_globals)
        try:
            logs = self.expected_log_joints(q_theta, X, nodes)
        except ValueError as error:
            if not refuses_parameters(error):
                raise
            return math.nan * (raw.sum() + raw_globals.sum()).expand(len(raw))
        return self.terms_of(raw, logs, X)

    def row_derivatives(self, raw, raw_globals, X, nodes, weights, frozen):
        """Differentiate the terms of the best factors: a log of sums has covariances for curvature.

        The slopes of the terms are expectations of those of the log joints, and the Hessian is the
        expectation of theirs plus the covariance of the slopes (Louis 1982, section 3).
        """
        size = len(raw) * len(self.atoms) * len(raw_globals)
        if raw.shape[1] or nodes is not None or size > _MOST_SLOPES:
            return None

        with torch.enable_grad():
            u = raw_globals.detach().requires_grad_(True)
            logs = self.expected_log_joints(self.global_factor(u), X, None)
            best = self.best_given(logs.detach(), X)
            expected = inner(weights, self.expected_at(best, logs, X))
            v = gradient_of(expected, (logs,))[0].detach().requires_grad_(True)
            # Linear in v: its derivatives in v are the slopes of the log joints.
            (g_globals,) = gradient_of((logs * v).sum(), (u,), create_graph=True)
            slopes, H_globals = jacobian(g_globals, (v, u))
        covariance = self.covariance(best, slopes.detach().movedim(0, -1), X, weights)
        none = raw.new_zeros(*raw.shape, len(u))
        H = (covariance + H_globals).detach()
        return raw, raw.new_zeros(*raw.shape, 0), none, g_globals.detach(), H

    def expected_at(self, factors, logs, X) -> Tensor:
        """Return the expectations of the rows' log joints under factors, shape (n_rows,)."""
        return (factors.mean * logs).sum(-1)

    def covariance(self, factors, slopes, X, weights) -> Tensor:
        """Return the covariance of slopes of the log joints, (..., Q), summed over rows."""
        chances = factors.mean.unsqueeze(-1)
        away = slopes - (chances * slopes).sum(1, keepdim=True)
        scaled = (chances * weights[:, None, None] * away).flatten(0, 1)
        return scaled.mT @ away.flatten(0, 1)

    def terms_of(self, raw, logs, X) -> Tensor:
        """Return the rows' terms, given the expected log joints at all states."""
        if not raw.shape[1]:
            return torch.logsumexp(logs, -1)
        factors = self.local_factors(raw)
        return self.expected_at(factors, logs, X) + factors.entropy()

    def optimum(self, raw_globals, X, nodes, start=None):
        logs = self.expected_log_joints(self.global_factor(raw_globals), X, nodes)
        return X.new_zeros(len(X), 0), *self.best_with_terms(logs, X)

    def factors_at(self, raw, raw_globals, X, nodes):
        return self.local_factors(raw) if raw.shape[1] else self.optimum(raw_globals, X, nodes)[1]

    def best_with_terms(self, logs, X) -> tuple[Any, Tensor]:
        """Return the rows' best factors and their terms, given the expected log joints."""
        return self.best_given(logs, X), torch.logsumexp(logs, -1)

    def best_raw(self, raw_globals, X, nodes, start=None):
        logs = self.expected_log_joints(self.global_factor(raw_globals), X, nodes)
        return self.family.raw(self.best_given(logs, X, start))

    def best_given(self, logs, X, start=None) -> Any:
        """Return the rows' best factors, given the expected log joints at all states."""
        return CategoricalFactors(torch.log_softmax(logs, -1), self.atoms)

    def start_locals(self, raw_globals, X):
        return X.new_zeros(len(X), 0)

    def free(self, raw):
        return raw[:, :0]

    def explicit(self, raw, raw_globals, X, nodes):
        return raw if raw.shape[1] else self.best_raw(raw_globals, X, nodes)

    def _values(self, X):
        """Yield the rows' latents in each state, shape (n_rows, a row's latents)."""
        return (atom.expand(len(X), -1) for atom in self.atoms.to(_device(X)))

    # --- predictions ----------------------------------------------------------------------------

    def predicted_mean(self, theta, values, *given):
        means = [self.model.predicted_mean(theta, z, *given) for z in self._values(values)]
        return torch.einsum("ns,snd->nd", values, torch.stack(means))

    def cell_moments(self, theta, factors, noise, X):
        each = [self.model.cell_moments(theta, z, X) for z in self._values(X)]
        means, variances = (torch.stack(part) for part in zip(*each, strict=True))
        mean = torch.einsum("ns,snd->nd", factors.mean, means)
        square = torch.einsum("ns,snd->nd", factors.mean, variances + (means - mean) ** 2)
        return mean, square

    def log_weights(self, theta, factors, noise, X):
        return torch.logsumexp(self.log_joints_at(theta, X), -1)


def _device(X):
    return X.device if isinstance(X, Tensor) else "cpu"
