"""A fit as an object: its components and parameters, and its factors of any rows."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.distributions.transforms import Transform

from skavi._data.blockwise import evaluate_blockwise
from skavi._data.missing_cells import Cells
from skavi._data.rows import Rows, cells_a_row, first_places
from skavi._fit.defaults import evaluation_noise
from skavi._fit.local_problems import approached, chunk_size, refined, solve_rows
from skavi._fit.nonfinite import named_singularity, require_finite
from skavi._fit.problem import Problem, windows_of, with_mask
from skavi._numerics.aligned import aligned
from skavi._platform.user_warnings import warn
from skavi.families import Family
from skavi.inference_functions import InferenceFunction, Parameters, Table
from skavi.models import LatentVariableModel
from skavi.models._own_scale import bijected_moments
from skavi.noise import Noise
from skavi.objective import Objective, bind
from skavi.solvers import State

#: Nats a row to which rows are solved after a fit, or the fit's own tol where it is smaller:
#: Newton's last step costs little. Not measured: order of magnitude.
_TOL = 1e-9


@dataclass(frozen=True)
class FittedModel:
    """The result of a fit, as numpy arrays, and its application to rows.

    Attributes
    ----------
    model : LatentVariableModel
    family, global_family : Family
    function : InferenceFunction
    noise : Noise
    parameters : dict of str to ndarray
        Of the function; empty for a table, where every row has its own factor.
    raw_globals : ndarray
        Unconstrained parameters of q(theta).
    n_features : int
    tol : float
        Nats a row.
    device : torch.device
    refine : float or None
        Nats by which a row's factor by the function may miss; others are solved. None: any.
    """

    model: LatentVariableModel
    family: Family
    global_family: Family
    function: InferenceFunction
    noise: Noise
    parameters: dict[str, np.ndarray]
    raw_globals: np.ndarray
    n_features: int
    tol: float
    device: torch.device
    refine: float | None = None

    @cached_property
    def objective(self) -> Objective:
        """The ELBO of the fitted components."""
        like = torch.zeros(1, self.n_features, dtype=torch.float64, device=self.device)
        return bind(self.model, self.family, self.global_family, like)

    def raw_globals_like(self, like: Tensor) -> Tensor:
        """Return the parameters of q(theta) as a tensor with the dtype and device of `like`."""
        return aligned(self.raw_globals).to(like)

    def shared_like(self, like: Tensor) -> Parameters:
        """Return the function's parameters as tensors with the dtype and device of `like`."""
        return {name: aligned(value).to(like) for name, value in self.parameters.items()}

    def on_cpu(self) -> "FittedModel":
        """Return the same fit for rows on the CPU."""
        return replace(self, device=torch.device("cpu"))

    # --- given rows -----------------------------------------------------------------------------

    def at(self, rows: Rows, recall: bool = True) -> "Position":
        """Return the fit's position on rows: their factors, with q(theta) given.

        `recall`: a group without a response in these rows has the factor that the fit gave it.
        """
        self.model.check_data(rows.X)
        raw = self.raw_locals(rows)
        raw = self.model.recalled(raw, rows.X) if recall else raw
        return Position(self, rows, raw, self.raw_globals_like(rows.weights))

    def raw_of_training(self, rows: Rows, raw: Tensor) -> Tensor:
        """Return the raw factors of the fit's rows; those of groups without a response are solved.

        Such groups do not count in a fit, which leaves them where they were.
        """
        unobserved, raw = self.model.unobserved(rows.X), raw.detach().clone()
        if unobserved is not None and bool(unobserved.any()):
            raw[unobserved] = self._solve(rows[unobserved])
        return raw

    def state(self, rows: Rows) -> State:
        """Return the state from which a fit of further rows continues."""
        raw_globals = self.raw_globals_like(rows.weights)
        if self.parameters:
            return State(None, self.shared_like(rows.weights), raw_globals)
        return State(self.raw_locals(rows), {}, raw_globals)

    def start_for(self, objective: Objective, rows: Rows, giver: str = "init") -> State:
        """Return this fit's factors of rows, as raw parameters of another objective's families.

        `giver` is the argument that asks for it.

        Raises
        ------
        ValueError
            If it was fitted on other features, or with a model of other latents or globals.
        """
        if self.n_features != rows.X.shape[1]:
            raise ValueError(
                f"{giver} starts from a fit on {self.n_features} features, but X has "
                f"{rows.X.shape[1]}."
            )
        own = self.objective
        if own.n_latents != objective.n_latents or own.space.shapes != objective.space.shapes:
            raise ValueError(
                f"{giver} starts from a fit of a model of other latents or globals: "
                f"{own.n_latents} latents, globals {dict(own.space.shapes)}; here "
                f"{objective.n_latents} latents, globals {dict(objective.space.shapes)}."
            )
        factors = own.local_factors(self.raw_locals(rows))
        q_theta = own.global_factor(self.raw_globals_like(rows.weights))
        raw_globals = objective.global_family.raw(q_theta)
        return State(objective.family.raw(factors), {}, raw_globals)

    def frozen_problem(self, rows: Rows) -> Problem:
        """Return the factorized problem of rows, with q(theta) frozen."""
        noise = self.noise
        if not noise.deterministic:
            noise = evaluation_noise(self.objective, len(rows))
        generator = torch.Generator().manual_seed(0)
        return Problem(self.objective, Table(), rows, rows.X, noise, generator, frozen_globals=True)

    def pieces(self, rows: Rows) -> list[slice]:
        """Cut rows into slices of bounded memory; coupled rows stay in one slice."""
        noise = self.noise
        if not noise.deterministic:
            noise = evaluation_noise(self.objective, len(rows))
        size = chunk_size(self.objective, noise, cells_a_row(rows.X))
        return self.model.coupling.pieces(len(rows), size)

    def raw_locals(self, rows: Rows) -> Tensor:
        """Return raw factors of any rows: the function's output, or their optimal factors."""
        return self.function.row_factors(self, rows)

    def evaluate_locals(self, rows: Rows) -> Tensor:
        """Return the function's output.

        Where a row misses a cell in a column that was complete at fit, its local problem is solved
        instead, since the function has not learned such rows.
        """
        function, shared = self.function, self.shared_like(rows.weights)
        windows = windows_of(self.model, function, rows.X)
        inputs = with_mask(self.model, function, windows)
        with torch.no_grad():
            raw = evaluate_blockwise(
                lambda part: function.evaluate(shared, function.features(part)), inputs
            )
        solved = self.model.unobserved(rows.X)
        if solved is not None or self._may_miss_cells(rows.X):
            unreadable = function.unreadable(windows)
            solved = unreadable if solved is None else solved | unreadable
            if bool(solved.any()):
                raw[solved] = self._solve(rows[solved])
        return raw if self.refine is None else self._refined(rows, raw, self.refine)

    def _may_miss_cells(self, X):
        return self.model.allows_missing and Cells.of(X).observed is not None

    def _refined(self, rows, raw, nats):
        what, name = f"refine={nats} needs rows that are", type(self.model).__name__
        self.model.coupling.require_separable(what, name, "leave refine at None")
        rows = replace(rows, weights=torch.ones_like(rows.weights))
        raw_globals, tol = self.raw_globals_like(rows.weights), self._row_tol
        parts = []
        for piece in self._approached_pieces(rows):
            near = approached(self.objective, rows[piece].X, raw[piece], raw_globals, nats)
            if near is None:
                problem = self.frozen_problem(rows[piece])
                near = refined(problem, raw[piece], raw_globals, nats, tol)
            parts.append(near)
        return torch.cat(parts)

    def _approached_pieces(self, rows):
        bounded = self.model.approaches_all_rows and self.objective.has_coordinate_updates
        return [slice(0, len(rows))] if bounded else self.pieces(rows)

    @property
    def _row_tol(self):
        """Nats a row to solve rows to after a fit."""
        return max(min(self.tol, _TOL), self.model.coarsest_tol)

    def solve_locals(self, rows: Rows) -> Tensor:
        """Return the rows' optimal factors, with q(theta) given."""
        with named_singularity("X"):
            return self._solve(rows)

    def _solve(self, rows):
        raw_globals, solved, converged = self.raw_globals_like(rows.weights), [], True
        # Each distinct row is solved once, so that equal rows get equal results, in any order.
        X, index = self.model.coupling.distinct(rows.X)
        rows = Rows(X, rows.weights.new_ones(len(X)))
        for piece in self.pieces(rows):
            problem = self.frozen_problem(rows[piece])
            raw, fine = solve_rows(problem, raw_globals, self._row_tol)
            solved.append(raw)
            converged &= fine
        if not converged:
            warn(
                "Some rows' local problems did not converge: their posteriors are approximate.",
                ConvergenceWarning,
            )
        return torch.cat(solved)[index]


@dataclass(frozen=True)
class Position:
    """A fit's factors of some rows.

    Attributes
    ----------
    fit : FittedModel
    rows : Rows
    raw : Tensor of shape (n_rows, P)
        Raw factors of the rows.
    raw_globals : Tensor
        Raw parameters of q(theta), which is frozen.
    """

    fit: FittedModel
    rows: Rows
    raw: Tensor
    raw_globals: Tensor

    @cached_property
    def problem(self) -> Problem:
        """The factorized problem of these rows, with q(theta) frozen."""
        return self.fit.frozen_problem(self.rows)

    @property
    def objective(self) -> Objective:
        """The ELBO of the fitted components."""
        return self.fit.objective

    def factors(self) -> Any:
        """Return the rows' factors.

        Raises
        ------
        FloatingPointError
            If a factor is not finite.
        """
        with torch.no_grad():
            factors = self.objective.local_factors(self.raw)
        size = factors.size()  # not finite where a factor is none
        if not bool(torch.isfinite(self.raw.sum() + size.sum())):
            require_finite(self.raw + size.unsqueeze(-1), "posterior")
        return factors

    def raw_states(self) -> np.ndarray:
        """Return the number of each row's most probable state."""
        return self.factors().mean.argmax(-1).cpu().numpy()

    def latent_bijection(self) -> Transform | None:
        """Return the bijection from the rows' z to latents with bounds, or None."""
        theta = self.objective.space.constrain(self.objective.global_factor(self.raw_globals).mean)
        return self.objective.model.latent_bijection(theta, self.rows.X)

    def own_moments(self) -> tuple[Tensor, Tensor]:
        """Return the rows' posterior means and sds on the model's own scale."""
        objective = self.objective
        with torch.no_grad():
            q_theta = objective.global_factor(self.raw_globals)
            if (bijection := self.latent_bijection()) is not None:
                factors = self.factors()
                return bijected_moments(bijection, factors.mean, factors.sd)
            given = objective.model.own_given(self.rows.X)
            return objective.model.own_moments(self.factors(), q_theta, *given)

    def terms(self) -> Tensor:
        """Return the rows' ELBO terms, shape (n_rows,), or a scalar for one joint term."""
        fit, parts = self.fit, []
        rows, raw, index = self._distinct()
        with torch.no_grad():
            for piece in fit.pieces(rows):
                problem = fit.frozen_problem(rows[piece])
                parts.append(problem.row_terms(raw[piece], self.raw_globals))
        terms = torch.cat(parts) if len(parts) > 1 else parts[0]
        return terms if index is None else terms[index]

    def _distinct(self):
        """Return one of each kind of row, their factors, and the index that puts them back."""
        X, index = self.fit.model.coupling.distinct(self.rows.X)
        if len(X) == len(index):
            return self.rows, self.raw, None
        first = first_places(index, len(X))
        if not torch.equal(self.raw[first][index], self.raw):  # a function may read neighbours
            return self.rows, self.raw, None
        return self.rows[first], self.raw[first], index
