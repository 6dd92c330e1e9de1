"""The evidence lower bound, in nats, with every constant.

    ELBO = sum_n w_n { E_q[log p(z_n, x_n | theta)] + H[q(z_n)] } + E_q[log p(theta)] + H[q(theta)]

One formula covers every model, family, inference function and noise rule, which supplies nodes
(draws or quadrature points, with weights), or none where the expectation is in closed form.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skavi._curvature import gradient_of
from skavi._data.coupling import Coupling, of_kind
from skavi._data.latent_moves import RealLatents
from skavi._numerics.sums import inner
from skavi.distributions import LeavesTorchError, refuses_parameters
from skavi.families import DiagonalFactors, Family, NormalFactors
from skavi.inference_functions import InferenceFunction
from skavi.models import LatentVariableModel
from skavi.models._global_space import GlobalSpace
from skavi.noise import Nodes
from skavi.objective._chain_integrals import REAL_INTEGRALS
from skavi.objective._integrals import AGREEMENT

#: Of a predictor, so that its root has a slope: of a row that does not read theta it is zero.
_LEAST_VARIANCE = 1e-30


@dataclass(frozen=True)
class Objective:
    """The ELBO of one model with families for its local and global factors.

    Attributes
    ----------
    model : LatentVariableModel
    space : GlobalSpace
    family, global_family : Family
    n_latents : int
    batched : bool
        Whether the log joint works under `torch.func.vmap`; else the draws are evaluated in a loop.
    known_term : Tensor or None
        The value of `global_term` for a given q(theta), if it is fixed.
    shared : tuple of int or None
        A dimension of noise for each global, if some of them can share one; None: not known.
    meet : Tensor of shape (n_globals, n_globals), or None
        With `shared`: which globals a row's term was seen to hold together.
    linear_predictor : bool
        Whether each row is known to read theta through one number, linear in it, and no latents.
    """

    model: LatentVariableModel
    space: GlobalSpace
    family: Family
    global_family: Family
    n_latents: int
    batched: bool = True
    known_term: Tensor | None = None
    shared: tuple[int, ...] | None = None
    meet: Tensor | None = None
    linear_predictor: bool = False

    def given(self, raw_globals: Tensor) -> "Objective":
        """Return the objective for a fixed q(theta), with all that depends on it precomputed."""
        model = self.model.given(self.global_factor(raw_globals))
        return replace(self, model=model, known_term=self.global_term(raw_globals))

    def local_factors(self, raw: Tensor) -> Any:
        """Read raw parameters (n_rows, P) as factors q(z_n)."""
        return self.family.factors(raw, self.n_latents)

    def typical_latents(self, raw: Tensor, raw_globals: Tensor, X: Tensor) -> Tensor:
        """Return a value of the rows' latents that is typical of their factors."""
        return self.local_factors(raw).mean

    @property
    def n_outputs(self) -> int:
        """Count the raw parameters of a row's factor."""
        return self.family.n_parameters(self.n_latents)

    @property
    def n_columns(self) -> int:
        """Count the numbers by which a row's posterior is told: its latents."""
        return self.n_latents

    @property
    def has_factors(self) -> bool:
        """Whether a row has a factor at all."""
        return self.n_latents > 0

    #: Whether the rows' factors of factorized VI have numbers that a solver moves.
    has_own_numbers = True
    #: Whether latents take finitely many values, so that factors are told by probabilities.
    has_states = False

    def coupling_under(self, function: InferenceFunction) -> Coupling:
        """Return how rows meet given theta, as far as a solver of that function sees it."""
        return self.model.coupling

    def some_latents(self, like: Tensor, n_rows: int) -> Tensor:
        """Return values that the latents of rows may have, to try a model with."""
        return like.new_zeros(n_rows, self.n_latents)

    def probed_latents(self, theta, X: Tensor) -> Any:
        """Return how the latents of rows X are moved to see on what their factors depend."""
        centre, sd = self.model.initial_locals(theta, X)
        return RealLatents(torch.nan_to_num(centre), torch.nan_to_num(sd, nan=1.0))

    def column_names(self, n_features: int) -> list[str] | None:
        """Return the names of these numbers; None: the estimator's own."""
        return self.model.latent_names(n_features)

    # --- factors that are known given q(theta) --------------------------------------------------

    def best_raw(
        self, raw_globals: Tensor, X: Tensor, nodes: Nodes | None, start: Tensor | None = None
    ) -> Tensor | None:
        """Return the rows' best raw factors given q(theta), no worse than `start`, or None."""
        if not self.has_coordinate_updates:
            return None
        known = None if start is None else self.local_factors(start)
        best = self.model.best_locals(self.global_factor(raw_globals), X, self.family, known)
        return self.family.raw(best)

    def optimum(self, raw_globals, X: Tensor, nodes: Nodes | None, start=None):
        """Return the rows' best factors, no worse than `start`: as raw numbers, read, and terms."""
        q_theta = self.global_factor(raw_globals)
        raw = self.family.raw(self.model.local_optimum(q_theta, X, self.family, start))
        factors = self.local_factors(raw)
        return raw, factors, self.terms_at(factors, q_theta, X, nodes)

    def factors_at(self, raw: Tensor, raw_globals, X: Tensor, nodes: Nodes | None) -> Any:
        """Return the rows' factors, also of raw numbers without columns."""
        return self.local_factors(raw)

    def start_locals(self, raw_globals: Tensor, X: Tensor) -> Tensor:
        """Return raw local parameters at the closed-form optimum, or at the model's own start."""
        model, family, factor = self.model, self.family, self.global_factor(raw_globals)
        mean, sd = model.initial_locals(self.space.constrain(factor.mean), X)
        mean, sd = mean.to(factor.mean), sd.to(factor.mean)
        mean, sd = torch.nan_to_num(mean), torch.nan_to_num(sd, nan=1.0).clamp_min(1e-8)
        start: NormalFactors = DiagonalFactors(mean, sd)
        if self.has_coordinate_updates:
            start = model.local_optimum(factor, X, family, start)
        return family.raw(start)

    def better_raw(
        self, raw: Tensor, raw_globals: Tensor, X: Tensor, nodes: Nodes | None, margin: float
    ) -> Tensor | None:
        """Return raw factors that are better by more than `margin` nats, where a search finds any.

        For rows that are coupled; `skavi._fit.other_optima` searches others.
        """
        return None

    def free(self, raw: Tensor) -> Tensor:
        """Return the numbers of the rows that factorized VI moves."""
        return raw

    def explicit(self, raw: Tensor, raw_globals: Tensor, X: Tensor, nodes: Nodes | None) -> Tensor:
        """Return all raw parameters of the rows' factors."""
        return raw

    # --- predictions ----------------------------------------------------------------------------

    def predicted_mean(self, theta, values: Tensor, *given: Tensor) -> Tensor:
        """Return E[x | z, theta] for latents as `transform` returns them."""
        z = self.model.latents_of(theta, values, *given)
        return self.model.predicted_mean(theta, z, *given)

    def cell_moments(self, theta, factors, noise, X) -> tuple[Tensor, Tensor]:
        """Return mean and variance of every cell given theta, at a draw of the latents."""
        return self.model.cell_moments(theta, *self.model.by_row(factors.draw(noise), X))

    def forecast(self, raw: Tensor, last_rows: Tensor, q_theta, n_steps: int):
        """Return means and variances, (n_series, n_steps, n_features), of what follows series."""
        each = (self.local_factors(raw[row].unsqueeze(0)) for row in last_rows)
        found = [self.model.forecast(last, q_theta, self.space, n_steps) for last in each]
        return map(torch.stack, zip(*found, strict=True))

    def log_weights(self, theta, factors, noise, X) -> Tensor:
        """Return log p(x_n, z_n | theta) - log q(z_n) at a draw of the latents, (n_rows,)."""
        return self.model.log_terms(theta, factors.draw(noise), X) - factors.log_prob(noise)

    # --- the ELBO -------------------------------------------------------------------------------

    def global_factor(self, raw: Tensor) -> NormalFactors:
        """Read raw parameters as q(u), the factor of the unconstrained globals."""
        return self.global_family.factors(raw, self.space.size)

    @property
    def n_drawn_globals(self) -> int:
        """Count the globals that need noise: not those integrated out, and none for a point."""
        if not self.global_family.random:
            return 0
        kept = set(self.space.slices) - set(self.model.integrated(self.global_family))
        return max((self.space.slices[name].stop for name in kept), default=0)

    @property
    def width(self) -> int:
        """Count the numbers a row of one draw, at least one: a row's term."""
        return max(1, self.n_latents)

    @property
    def has_coordinate_updates(self) -> bool:
        """Whether the model has the optimal factors of these families in closed form."""
        return self.model.has_coordinate_updates(self.family, self.global_family)

    @property
    def knows_row_derivatives(self) -> bool:
        """Whether the model has the rows' second derivatives without automatic ones."""
        return self.model.knows_row_derivatives(self.family, self.global_family)

    def n_colours(self, n_rows: int) -> int:
        """Count the rows that share a term of the log joint, and so need independent noise.

        One where rows are independent given theta, two in a chain, all in one log joint.
        """
        return self.model.coupling.n_colours(n_rows)

    def row_terms(self, raw: Tensor, raw_globals: Tensor, X: Tensor, nodes: Nodes | None) -> Tensor:
        """E_q[log p(z_n, x_n | theta)] + H[q(z_n)], (n_rows,); of a bare log joint, a scalar."""
        factors, q_theta = self.local_factors(raw), self.global_factor(raw_globals)
        return self.terms_at(factors, q_theta, X, nodes)

    def terms_at(self, factors, q_theta, X: Tensor, nodes: Nodes | None) -> Tensor:
        """Return the same of factors that have been read."""
        try:
            expected = self.expected_log_terms(factors, q_theta, X, nodes)
        except (ValueError, torch.linalg.LinAlgError) as error:
            if isinstance(error, ValueError) and not refuses_parameters(error):
                raise
            # torch rejects a distribution's parameters, or a matrix: the terms become NaN.
            nan = math.nan * (factors.mean.sum() + q_theta.mean.sum())
            expected = self.model.coupling.terms(nan, len(factors.mean))
        entropy = factors.entropy()
        return expected + entropy if expected.dim() else expected + entropy.sum()

    def row_derivatives(self, raw, raw_globals, X, nodes, weights, frozen):
        """Return what `ClosedForms.row_derivatives` knows of the rows' terms, or None."""
        if nodes is not None and self.n_drawn_globals:
            return None
        factors, q_theta = self.local_factors(raw), self.global_factor(raw_globals)
        return self.model.row_derivatives(factors, q_theta, X, nodes, weights, frozen)

    def expected_log_terms(self, factors, q_theta, X, nodes):
        """E_q[log p(z, X | theta)], one term per row, or a scalar."""
        if nodes is None:
            if not self.model.has_closed_form(self.family, self.global_family):
                raise ValueError(
                    f"noise=ClosedForm(): {type(self.model).__name__} has no closed form for "
                    f"{self.family} and {self.global_family}; leave noise at None."
                )
            return self.model.expected_log_local(factors, q_theta, X)

        if nodes.slopes_at is not None:
            if self.knows_row_derivatives:
                return self.model.expected_along_predictors(factors, q_theta, X, nodes)
            return self._expected_along_slopes(q_theta, X, nodes)
        drawn = self.n_drawn_globals
        density = self.density(factors, q_theta.given_first(drawn), X)
        noise = nodes.globals_
        if drawn < self.space.size:
            noise = torch.nn.functional.pad(noise, (0, self.space.size - drawn))
        u = q_theta.draw(noise) if drawn else q_theta.mean.unsqueeze(0)
        expected = None
        for z, served in factors.term_draws(nodes.locals_):
            terms = self._average(density, u, z, nodes.weights)
            expected = terms if expected is None else torch.where(served, terms, expected)
        return expected

    def density(self, factors, rest, X):
        """Return the rows' terms as a function of draws of theta and of the latents."""

        def terms(u, z):
            theta = self.space.constrain(u)
            return self.model.half_expected_terms(theta, z, factors, rest, X)

        return terms

    def slopes(self, X: Tensor, points: Tensor) -> Tensor:
        """Return the unit vector along which each row's log joint is steepest, (n_rows, size).

        Without latents: at the steepest of the unconstrained `points`; zeros where none has slope.
        """
        with torch.enable_grad():
            u = points.unsqueeze(1).repeat(1, len(X), 1).requires_grad_(True)
            value = self.log_joints_of_rows(u, X).sum()
            (slopes,) = gradient_of(value, (u,))
        lengths = torch.nan_to_num(slopes.norm(dim=-1), nan=0.0, posinf=0.0)
        best, which = lengths.max(0)
        steepest = slopes[which, torch.arange(len(X), device=X.device)]
        unit = steepest / best.clamp_min(1e-300).unsqueeze(-1)
        return torch.where(best.unsqueeze(-1) > 0, unit, torch.zeros_like(unit))

    def log_joints_of_rows(self, u: Tensor, X: Tensor) -> Tensor:
        """Return the log joint of each row at unconstrained globals of its own, without latents.

        Parameters
        ----------
        u : Tensor of shape (n_points, n_rows, size)
        X : Tensor of shape (n_rows, n_features)

        Returns
        -------
        Tensor of shape (n_points, n_rows)
        """
        at_points = torch.func.vmap(self._log_joint_of_row, (0, None))
        return torch.func.vmap(at_points, (1, 0), 1)(u, X)

    def _log_joint_of_row(self, u, x):
        z = u.new_zeros(1, 0)
        return self.model.log_terms(self.space.constrain(u), z, x[None]).reshape(())

    def _expected_along_slopes(self, q_theta, X, nodes):
        """E_q log p(x_n | theta), where it is a function f(e) of one e = d_n'u: a number a row.

        e is normal. With derivatives, the expectation is returned as its Taylor polynomial of
        second degree in the mean and variance of e, at their values: value, gradient and Hessian in
        q(theta) are exact, and cost a few passes over the nodes, not one for each parameter.
        """
        with torch.no_grad():
            direction = self.slopes(X, nodes.slopes_at)
        centre, everything = q_theta.mean.detach(), torch.arange(self.space.size, device=X.device)
        mean = direction @ (q_theta.mean - centre)
        variance = q_theta.variance_along(direction, everything[None])[:, 0]

        def expectation(mean, variance):
            along = mean + variance.clamp_min(_LEAST_VARIANCE).sqrt() * nodes.globals_
            u = centre + along.unsqueeze(-1) * direction
            return nodes.weights @ self.log_joints_of_rows(u, X)

        if not (mean.requires_grad or variance.requires_grad):
            return expectation(mean, variance)
        return _expanded(expectation, mean, variance)

    def _average(self, density, u, z, weights):
        """Average the terms over draws."""
        if len(z) == 1:  # a single draw has weight one
            return density(u.squeeze(0), z.squeeze(0))
        return torch.tensordot(weights, self._evaluate(density, u, z), 1)

    def _evaluate(self, density, u, z):
        """Evaluate at every pair of draws; a single u is paired with every z."""
        if self.batched:
            try:
                if len(u) == 1:
                    return torch.func.vmap(lambda row: density(u[0], row))(z)
                return torch.func.vmap(density)(u, z)
            except LeavesTorchError:
                raise
            except RuntimeError:  # no vmap (Multinomial), or the model's error: the loop repeats it
                pass
        return torch.stack([density(*pair) for pair in zip(u.expand(len(z), -1), z, strict=True)])

    def log_terms_at(self, u: Tensor, z: Tensor, X: Tensor) -> Tensor:
        """Return log p(x_n, z_n | theta) at pairs of draws, shape (n_draws, n_rows)."""
        return self._evaluate(self._terms_of(X), u, z)

    def _terms_of(self, X):
        return lambda u, z: self.model.log_terms(self.space.constrain(u), z, X)

    def integral(self, X: Tensor, factors, u: Tensor, agreement: float = AGREEMENT) -> Any:
        """Return integrals over rows' latents, by rules that agree to these nats at globals u."""
        return of_kind(REAL_INTEGRALS, self.model.coupling).of(self, X, factors, u, agreement)

    def evaluate_batch(self, u: Tensor, z: Tensor, X: Tensor) -> Tensor:
        """Evaluate the log joint at pairs of draws, under vmap as a fit does."""
        return torch.func.vmap(self._terms_of(X))(u, z)

    def global_term(self, raw_globals: Tensor) -> Tensor:
        """E_q[log p(theta)] + H[q(theta)], a scalar."""
        if self.known_term is not None:
            return self.known_term
        factor = self.global_factor(raw_globals)
        return self.space.expected_log_prior(factor) + factor.entropy()

    def summed(self, terms, raw_globals, weights) -> Tensor:
        """Return the weighted sum of the rows' terms, plus the globals' term."""
        rows = inner(weights, terms) if terms.dim() else terms
        return rows + self.global_term(raw_globals)


def _expanded(function, mean, variance):
    """Return the second-degree Taylor polynomial of each entry's own function of two numbers."""
    with torch.enable_grad():
        at = [each.detach().requires_grad_(True) for each in (mean, variance)]
        value = function(*at)
        slopes = gradient_of(value.sum(), at, create_graph=True)
        curved = [gradient_of(each.sum(), at) for each in slopes]
    value = value.detach()
    moves = [each - start.detach() for each, start in zip((mean, variance), at, strict=True)]
    for i, move in enumerate(moves):
        bend = sum(0.5 * h * other for h, other in zip(curved[i], moves, strict=True))
        value = value + (slopes[i].detach() + bend) * move
    return value
