"""Coordinate ascent on closed-form updates, with an accelerated, still monotone, fixed point."""

import math

import torch

from skavi.solvers._base import Outcome, Solver, State

# The ELBO is flat to rounding long before its maximiser stands still, so a fit also waits until a
# sweep moves q(theta) by less than this share of tol (in sds), or the move is down to rounding: the
# ELBO no longer rises, and that many sweeps have not halved the move.
_STILL, _STALLED, _ROUNDING = 0.01, 50, 1e-14
#: Directions of the history that are shorter than this, relative, are rounding.
_RCOND = 1e-8


class CoordinateAscent(Solver):
    """Closed-form updates of q(theta) and of all q(z_n) in turn, where the model offers them.

    Local factors are eliminated (each is optimal given q(theta)), and the sweep's fixed point is
    accelerated by Anderson mixing, which removes the slow directions of factor analysis. A mixed
    step is kept only if the ELBO rises, so the ascent is monotone.

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

    def check_problem(self, problem):
        super().check_problem(problem)
        objective = problem.objective
        families = objective.family, objective.global_family
        if not objective.model.has_coordinate_updates(*families) or not problem.function.tabular:
            raise ValueError(
                "CoordinateAscent needs closed-form updates, which "
                f"{type(objective.model).__name__} does not offer for "
                f"{type(problem.function).__name__}, {families[0]} and {families[1]}: use "
                "solver=LBFGS()."
            )

    def solve(self, problem, state, tol, max_iter, progress):
        ascent = _Ascent(problem)
        globals_, calm = state.globals_, 0
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        curve: list[float] = []
        raw, value = ascent.locals_and_elbo(globals_)
        tolerance, remaining, residual = tol * problem.total_weight, math.inf, math.inf
        best, stalled = math.inf, 0
        while len(curve) < max_iter and calm < 2:
            swept = ascent.sweep(globals_, raw)
            lengths = ascent.lengths(swept)
            move = (swept - globals_) / lengths
            residual = float(move.norm())
            pairs = [*pairs[-self.memory :], (globals_, swept)] if self.memory else []
            mixed = _anderson(pairs, lengths)
            new, new_raw, new_value = ascent.better_of(mixed, swept, value)
            gain = new_value - value
            # A sweep of rate r leaves r / (1 - r) times its own gain; the move bounds it as well.
            remaining = max(gain, 0.5 * residual**2)
            globals_, raw, value = new, new_raw, new_value
            curve.append(value)
            rising = gain > _ROUNDING * abs(value)
            stalled = 0 if rising or residual < 0.5 * best else stalled + 1
            best = min(best, residual)
            still = residual <= _STILL * tol or stalled >= _STALLED
            calm = calm + 1 if remaining <= tolerance and still else 0
            if progress(State({"values": raw}, globals_), value):
                break
        return Outcome(
            state=State({"values": raw}, globals_),
            curve=curve,
            converged=calm >= 2,
            suboptimality=remaining,
            gradient_norm=residual / problem.total_weight,
        )


class _Ascent:
    """One sweep over the blocks of q, and the ELBO of what it leaves."""

    def __init__(self, problem):
        self.problem, self.objective = problem, problem.objective
        self.rows, self.model = problem.rows, problem.objective.model

    def locals_and_elbo(self, globals_):
        objective = self.objective
        factor = objective.global_factor(globals_)
        factors = self.model.local_optimum(factor, self.rows.X, objective.family)
        raw = objective.family.raw(factors)
        return raw, float(self.problem.elbo_of(raw, globals_))

    def sweep(self, globals_, raw):
        if self.problem.frozen_globals:
            return globals_
        objective = self.objective
        factor = self.model.global_optimum(
            objective.global_factor(globals_),
            objective.local_factors(raw),
            self.rows.X,
            self.rows.weights,
        )
        return objective.global_family.raw(factor)

    def lengths(self, globals_):
        return self.objective.global_family.steps(self.objective.global_factor(globals_))

    def better_of(self, mixed, swept, value):
        """Return the mixed step if it climbs (to rounding), else the plain sweep."""
        if mixed is not None:
            raw, new = self.locals_and_elbo(mixed)
            if math.isfinite(new) and new >= value - _ROUNDING * abs(value):
                return mixed, raw, new
        return swept, *self.locals_and_elbo(swept)


def _anderson(pairs, lengths):
    """Mix the last sweeps so that their linearised residual is least; None without a history."""
    if len(pairs) < 2:
        return None
    residuals = torch.stack([(after - before) / lengths for before, after in pairs])
    differences = (residuals[1:] - residuals[:-1]).mT
    newest = residuals[-1].unsqueeze(-1)
    coefficients = torch.linalg.lstsq(differences, newest, rcond=_RCOND, driver="gelsd")
    after = torch.stack([after for _, after in pairs])
    return after[-1] - (after[1:] - after[:-1]).mT @ coefficients.solution[:, 0]
