"""Coordinate ascent by closed-form updates, accelerated, and still monotone."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from skavi._data.process_ranks import over_ranks
from skavi._data.rows import Rows
from skavi.inference_functions import Table
from skavi.solvers._base import Memory, Outcome, Run, Solver
from skavi.solvers._state import State

#: Of the root of tol, in sds: a fit ends when a sweep moves q(theta) by less, since the ELBO no
#: longer changes (to rounding) long before q(theta) is at rest. The ELBO is quadratic in the move.
#: At 1e-5 two fits of equal data could still differ by 2e-8, since slow directions add up.
_STILL = 1e-6
#: Sweeps without a gain that did not halve the move: then the move is rounding, and the fit ends,
#: too (20 before a682cf0).
_STALLED = 50
#: The same for moves so short, in sds, that rounding is likely: of nearly collinear columns it is
#: 1e-9 (breast cancer, tied covariances).
_STALLED_ROUNDED, _ROUNDED_MOVE = 3, 1e-8
#: The same for second-order sweeps, each of which makes the move many times smaller.
_STALLED_NEWTON = 2
#: The same as `_STILL` for them, of the move that would come next.
_STILL_NEWTON = 1.0
#: Relative to the ELBO: smaller gains are rounding, about 50 times that of one number (2e-16).
_ROUNDING = 1e-14
#: The same for what a mixed step may lose: of nearly collinear columns 5e-14 is rounding (breast
#: cancer), by which good steps near the optimum would be refused.
_MAY_LOSE = 1e-13
#: Nats a row: with a larger tol only the gain decides, of two sweeps, not the move of q(theta).
_COARSE = 1e-3
#: Sds: a sweep that moves q(theta) by less has latents in the order in which they stay, mostly.
#: Once at rest, putting them in order costs a dozen sweeps.
_NEARLY_STILL = 1e-2
#: Relative: shorter directions of the history are rounding, about the root of 2e-16.
_RCOND = 1e-8


class CoordinateAscent(Solver):
    """Closed-form updates of q(theta) and of all q(z_n) in turn, where the model offers them.

    Local factors are eliminated (each is optimal given q(theta)), and the sweep's fixed point is
    accelerated by Anderson mixing, which removes the slow directions of factor analysis. A mixed
    step is kept only if the ELBO rises, so the ascent is monotone. Near its end interchangeable
    latents are put in the model's order, once, where it goes on from.

    Parameters
    ----------
    memory : int, default=16
        Sweeps that a mixed step looks back on; 0 gives plain coordinate ascent.

    Notes
    -----
    Source: Bishop (1999) for the updates; Walker & Ni (2011), "Anderson acceleration for
    fixed-point iterations", eq. 2.1-2.3.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> vi = FactorizedVI().fit([[0.0, 1.0], [1.0, 3.0], [2.0, 4.0], [3.0, 3.0]])
    >>> vi.solver_
    CoordinateAscent()
    """

    def __init__(self, memory=16):
        self.memory = memory

    def check(self):
        self._require_integer("memory", 0)

    uses_model_updates = True

    def check_setting(self, setting):
        super().check_setting(setting)
        objective = setting.objective
        families = objective.family, objective.global_family
        if not self.suits(setting):
            raise ValueError(
                "CoordinateAscent needs closed-form updates, which "
                f"{type(objective.model).__name__} does not offer for "
                f"{type(setting.function).__name__}, {families[0]} and {families[1]}: use "
                "solver=LBFGS()."
            )

    def suits(self, setting):
        return isinstance(setting.function, Table) and setting.objective.has_coordinate_updates

    def prepare(self, problem, state):
        """Replace all rows by fewer weighted ones where the model gives equivalent ones."""
        rows, objective = problem.rows, problem.objective
        X, weights = rows.ask(objective.model.compressed, rows.X, rows.weights)
        if X is rows.X:
            return problem, state
        q_theta = objective.global_factor(state.raw_globals)
        best = objective.model.local_optimum(q_theta, X, objective.family)
        fewer = replace(problem, rows=Rows(X, weights), features=X)  # for all ranks, on every rank
        return fewer, replace(state, raw_locals=objective.family.raw(best))

    @over_ranks
    def begin(self, problem, state, tol):
        newton = problem.objective.model.second_order_sweeps  # which mixing would only hold up
        return _Ascent(problem, state, tol, 0 if newton else self.memory)


@dataclass(frozen=True, kw_only=True)
class _Memory(Memory):
    raw_globals: Tensor
    raw: Tensor
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    calm: int = 0
    stalled: int = 0
    least: float = math.inf
    peak: float = -math.inf
    remaining: float = math.inf
    residual: float = math.inf
    ordered: bool = False


class _Ascent(Run):
    """Sweeps over the blocks of q, accelerated by Anderson mixing."""

    def __init__(self, problem, state, tol, n_pairs):
        self.sweeps, self.tol, self.n_pairs = _Sweeps(problem), tol, n_pairs
        self.newton = problem.objective.model.second_order_sweeps
        self.still = (_STILL_NEWTON if self.newton else _STILL) * math.sqrt(tol)
        self.total_weight = problem.total_weight
        start = self.sweeps.factors_at(state.raw_locals, state.raw_globals)
        raw, elbo = self.sweeps.locals_and_elbo(state.raw_globals, start)
        super().__init__(_Memory(elbo=elbo, peak=elbo, raw_globals=state.raw_globals, raw=raw))

    def step(self, memory):
        memory = self._in_order(memory)
        swept, start, promised = self.sweeps.sweep(memory.raw_globals, memory.raw)
        lengths = self.sweeps.lengths(swept)
        residual = float(((swept - memory.raw_globals) / lengths).norm())
        newest = memory.raw_globals, swept
        pairs = [*memory.pairs[-self.n_pairs :], newest] if self.n_pairs else []
        mixed = _anderson(pairs, lengths)
        mixed = mixed if mixed is None else _onward(mixed, swept, memory.raw_globals, lengths)
        raw_globals, raw, elbo = self.sweeps.better_of(mixed, swept, start, memory)
        if mixed is not None and raw_globals is not mixed:
            pairs = pairs[-1:]  # earlier sweeps misled: too far away for a linear map
        gain = elbo - memory.elbo
        # Sweeps that converge at rate r leave r / (1 - r) times the last gain. Half the squared
        # move, in sds, is another estimate of what is left; what a Newton step promises is better.
        newton = self.newton
        remaining = max(gain, promised if newton else 0.5 * residual**2)
        rising = elbo - memory.peak > _ROUNDING * abs(elbo)
        stalled = 0 if rising or residual < 0.5 * memory.least else memory.stalled + 1
        rounded = stalled >= _STALLED_ROUNDED and residual <= _ROUNDED_MOVE
        stopped = rounded or stalled >= (_STALLED_NEWTON if newton else _STALLED)
        still = self._next(residual, memory) <= self.still or stopped or self.tol > _COARSE
        calm = memory.calm + 1 if remaining <= self.tol * self.total_weight and still else 0
        return replace(
            memory,
            n_iter=memory.n_iter + 1,
            elbo=elbo,
            finished=calm >= (2 if self.tol > _COARSE and not newton else 1),
            raw_globals=raw_globals,
            raw=raw,
            pairs=pairs,
            calm=calm,
            stalled=stalled,
            least=min(memory.least, residual),
            peak=max(memory.peak, elbo),
            remaining=remaining,
            residual=residual,
        )

    def _next(self, residual, memory):
        """Return the move, in sds, by which q(theta) is not at rest; of Newton steps, the next one.

        It shrinks as the last one did.
        """
        if not self.newton or not 0 < memory.residual < math.inf:
            return residual
        return residual * min(1.0, residual / memory.residual)

    def _in_order(self, memory):
        """Go on from where interchangeable latents are in the model's order, once, near the end."""
        if memory.ordered or memory.residual > _NEARLY_STILL:
            return memory
        there = self.sweeps.in_order(memory.raw_globals)
        if there is None:
            return replace(memory, ordered=True)
        raw_globals, raw, elbo = there
        begun = {"elbo": elbo, "peak": elbo, "pairs": [], "least": math.inf, "ordered": True}
        return replace(memory, raw_globals=raw_globals, raw=raw, **begun)

    def state(self):
        return State(self.memory.raw, {}, self.memory.raw_globals)

    def outcome(self):
        return Outcome(
            state=self.state(),
            curve=self.curve,
            converged=self.memory.finished,
            suboptimality=self.memory.remaining,
            gradient_norm=self.memory.residual / self.total_weight,
        )


class _Sweeps:
    """One sweep over the blocks of q, and the ELBO after it."""

    def __init__(self, problem):
        self.problem, self.objective = problem, problem.objective
        self.rows, self.model = problem.rows, problem.objective.model
        #: The last rows' factors as raw numbers, and read: of chains that takes as long as a sweep.
        self.last = None, None

    def factors_at(self, raw, raw_globals):
        """Return the rows' factors."""
        known, factors = self.last
        if known is raw:
            return factors
        nodes = self.problem.current_nodes()
        return self.objective.factors_at(raw, raw_globals, self.rows.X, nodes)

    def locals_and_elbo(self, raw_globals, start):
        """Return the rows' best raw factors given q(theta), no worse than `start`, and the ELBO."""
        nodes = self.problem.current_nodes()
        raw, factors, terms = self.objective.optimum(raw_globals, self.rows.X, nodes, start)
        self.last = raw, factors
        return raw, float(self.problem.elbo_from(terms, raw_globals))

    def sweep(self, raw_globals, raw):
        """Return q(theta) after a sweep, what the rows start from, and the gain it promises."""
        objective, factors = self.objective, self.factors_at(raw, raw_globals)
        if self.problem.frozen_globals:
            return raw_globals, factors, 0.0
        before = objective.global_factor(raw_globals)
        factor, start, promised = self.rows.ask(
            self.model.swept, before, factors, self.rows.X, self.rows.weights
        )
        return objective.global_family.raw(factor), start, promised

    def in_order(self, raw_globals):
        """Return q(theta) in the model's order, the rows' factors, and the ELBO; None: it is."""
        objective, X = self.objective, self.rows.X
        there = objective.global_factor(raw_globals)
        ordered = self.model.in_order(there, self.model.n_explained(X))
        if ordered is None or self.problem.frozen_globals:
            return None
        raw_globals = objective.global_family.raw(ordered)
        start = self.factors_at(objective.start_locals(raw_globals, X), raw_globals)
        return raw_globals, *self.locals_and_elbo(raw_globals, start)

    def lengths(self, raw_globals):
        return self.objective.global_family.steps(self.objective.global_factor(raw_globals))

    def better_of(self, mixed, swept, start, memory):
        """Return the mixed step if the ELBO rises (to rounding), else the plain sweep."""
        value = memory.elbo
        if mixed is not None:
            here = self.factors_at(memory.raw, memory.raw_globals)
            raw, new = self.locals_and_elbo(mixed, here)
            if math.isfinite(new) and new >= value - _MAY_LOSE * abs(value):
                return mixed, raw, new
        return swept, *self.locals_and_elbo(swept, start)


def _onward(mixed, swept, start, lengths):
    """Return the mixed step, mirrored at the sweep if it goes back from there.

    Mixing looks for a place where sweeps rest. Where they still grow from one to the next (the ELBO
    is not concave: a component that dies out), that place lies behind, and the ELBO rises ahead.
    """
    ahead = ((swept - start) / lengths) @ ((mixed - swept) / lengths)
    return mixed if ahead >= 0 else 2 * swept - mixed


def _anderson(pairs, lengths):
    """Mix the last sweeps so that their linearised residual is least.

    None if the history is too short or not finite, which LAPACK would reject.
    """
    if len(pairs) < 2:
        return None
    before, after = (torch.stack(part) for part in zip(*pairs, strict=True))
    residuals = (after - before) / lengths
    differences = (residuals[1:] - residuals[:-1]).mT
    if not bool(torch.isfinite(differences).all()):
        return None
    newest = residuals[-1].unsqueeze(-1)
    coefficients = torch.linalg.lstsq(differences, newest, rcond=_RCOND, driver="gelsd")
    return after[-1] - (after[1:] - after[:-1]).mT @ coefficients.solution[:, 0]
