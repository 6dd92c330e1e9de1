"""Newton's method on the arrow: rows meet only in the globals."""

import math

import torch

from skavi.solvers._base import Outcome, Solver, State

_MAX_GLOBALS = 400
MAX_COUPLED_UNKNOWNS = 600
MAX_PARAMETERS = 2000
_LONGEST_LOG_STEP = 2.0
_FLOOR = 1e-3
_SHRINK = 0.25
_SHORTEST = 1e-9
_AT_ROUNDING = 1e-9


class Newton(Solver):
    """Batched Newton steps for row-wise models under deterministic noise.

    For factorized VI every row has a small block of its own and rows meet only in the globals, so
    a step costs time linear in the number of rows (Schur complement). For functions linear in
    their parameters (`Constant`, `Polynomial`) the same derivatives are gathered into one dense
    system; for networks of up to 2000 parameters the step is a damped Gauss-Newton one. Each row
    accepts or rejects its own step.

    Notes
    -----
    Blocks come from differentiating the gradient once more, so any family and any row-wise model
    will do. Indefinite blocks are replaced by their absolute value (Dauphin et al. 2014) in the
    factors' natural units. Stops when the Newton decrement, half the gradient
    times the step, is below ``tol`` nats a row, after taking that step. Models that couple their
    rows are solved as one dense system, up to 600 unknowns.

    Examples
    --------
    >>> from skavi import FactorizedVI
    >>> from skavi.models import LinearModel
    >>> from skavi.solvers import Newton
    >>> vi = FactorizedVI(LinearModel(), solver=Newton()).fit([[0.0], [1.0], [5.0]])
    >>> vi.n_iter_ < 10
    True
    """

    def check_problem(self, problem):
        super().check_problem(problem)
        unknowns = n_unknowns(problem.objective, len(problem.rows))
        if not problem.objective.model.rowwise and unknowns > MAX_COUPLED_UNKNOWNS:
            raise ValueError(
                f"Newton solves up to {MAX_COUPLED_UNKNOWNS} unknowns of a model that couples its "
                f"rows, but {type(problem.objective.model).__name__} has {unknowns}: use "
                "solver=LBFGS()."
            )
        if problem.objective.space.size > _MAX_GLOBALS:
            raise ValueError(
                f"Newton handles up to {_MAX_GLOBALS} globals, this model has "
                f"{problem.objective.space.size}: use solver=LBFGS()."
            )

    def solve(self, problem, state, tol, max_iter, progress):
        rowwise = problem.objective.model.rowwise
        if problem.frozen_globals and problem.function.tabular and rowwise:
            return _solve_rows(problem, state, tol, max_iter)
        linear, tabular = problem.function.linear, problem.function.tabular
        table = _Arrow if rowwise else _Coupled
        system = (_Dense if linear else table if tabular else _GaussNewton)(problem)
        unknowns, globals_ = system.read(state), state.globals_
        value = system.value(unknowns, globals_)
        tolerance = tol * problem.total_weight
        curve: list[float] = []
        converged, decrement, gradient_norm = False, math.inf, math.inf
        while len(curve) < max_iter and not converged:
            step = system.step(unknowns, globals_)
            decrement, gradient_norm = step.decrement, step.gradient_norm
            found = system.move(unknowns, globals_, value, step)
            if found is not None:
                unknowns, globals_, value = found
            curve.append(float(value.sum()))
            converged = decrement <= tolerance
            if progress(system.write(unknowns, globals_), curve[-1]) or found is None:
                break
        at_rounding = decrement <= 1e-12 * abs(curve[-1])
        return Outcome(
            state=system.write(unknowns, globals_),
            curve=curve,
            converged=converged or at_rounding,
            suboptimality=max(decrement, 0.0),
            gradient_norm=gradient_norm,
        )


def _solve_rows(problem, state, tol, max_iter):
    """Solve every row on its own, q(theta) given; rows that have converged are left in peace."""
    raw, globals_ = state.parameters["values"].clone(), state.globals_
    separable = not problem.objective.model.ordered
    everyone = torch.arange(len(raw), device=raw.device)
    active, decrement = everyone, raw.new_full((len(raw),), math.inf)
    longest = raw.new_ones(len(raw))
    n_iter = 0
    while len(active) and n_iter < max_iter:
        n_iter += 1
        system = _Arrow(problem.restricted(active) if separable else problem)
        which = active if separable else everyone
        step = system.step(raw[which], globals_)
        raw[which], gained = system.move_rows(raw[which], globals_, step, longest[which])
        decrement[which] = step.row_decrement
        further = (4 * longest[which]).clamp_max(1.0)
        longest[which] = torch.where(gained, further, longest[which] / 64)
        live = (decrement > tol) & (longest > _SHORTEST)
        active = live.nonzero()[:, 0]
    return Outcome(
        state=State({"values": raw}, globals_),
        curve=[math.nan] * max(n_iter, 1),
        converged=bool((decrement <= max(tol, _AT_ROUNDING)).all()),
        suboptimality=float(decrement.sum()),
        gradient_norm=math.nan,
    )


class _Step:
    """A proposed step: `local(d_globals)` gives the rows' steps for a step of the globals."""

    def __init__(self, local, d_globals, decrement, gradient_norm, row_decrement=None):
        self.local, self.d_globals, self.row_decrement = local, d_globals, row_decrement
        self.decrement, self.gradient_norm = decrement, gradient_norm


class _System:
    """Derivatives of the ELBO in every row's raw parameters and in the globals'."""

    def __init__(self, problem):
        self.problem, self.objective = problem, problem.objective
        self.weights = problem.rows.weights
        self.frozen = problem.frozen_globals

    def row_values(self, raw, globals_):
        return self.weights * self.problem.row_terms(raw, globals_)

    def total(self, raw, globals_):
        value = self.row_values(raw, globals_).sum()
        return value if self.frozen else value + self.objective.global_term(globals_)

    def derivatives(self, raw, globals_):
        """Gradient and Hessian blocks, all in natural units; rows (n, P), globals (Q,).

        The gradient is differentiated backwards once more. Rows do not meet, so one pass for
        column p of all rows' gradients, summed, gives column p of every row's own block; a pass
        for one global gives its row of the border.
        """
        row_steps = self.objective.family.steps(self.objective.local_factors(raw))
        steps = self.objective.global_family.steps(self.objective.global_factor(globals_))
        n_row, n_global = raw.shape[-1], 0 if self.frozen else globals_.numel()
        with torch.enable_grad():
            raw = raw.detach().requires_grad_(True)
            globals_ = globals_.detach().requires_grad_(n_global > 0)
            unknowns = (raw, globals_) if n_global else (raw,)
            gradients = _gradient(self.total(raw, globals_), unknowns, create_graph=True)
            g, g_globals = gradients[0], gradients[1] if n_global else globals_
            columns = [_gradient(g[:, p].sum(), (raw,))[0] for p in range(n_row)]
            borders = [_gradient(g_globals[q], unknowns) for q in range(n_global)]
        H = torch.stack(columns, -1) * row_steps.unsqueeze(-1) * row_steps.unsqueeze(-2)
        g, g_globals = g.detach() * row_steps, g_globals.detach()[:n_global] * steps[:n_global]
        if not n_global:
            nothing = raw.new_empty(0, 0)
            return g, g_globals, H, raw.new_empty(*raw.shape, 0), nothing, row_steps, steps
        C = torch.stack([border[0] for border in borders], -1)
        C = C * row_steps.unsqueeze(-1) * steps
        H_globals = torch.stack([border[1] for border in borders]) * steps * steps.unsqueeze(-1)
        return g, g_globals, H, C, H_globals, row_steps, steps


def _gradient(value, unknowns, create_graph=False):
    """Differentiate a scalar; zeros where it does not depend on an unknown."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(unknown) for unknown in unknowns)
    return torch.autograd.grad(
        value, unknowns, create_graph=create_graph, retain_graph=True, materialize_grads=True
    )


class _Arrow(_System):
    """Factorized VI: a block a row and a border of globals."""

    def read(self, state):
        return state.parameters["values"]

    def write(self, raw, globals_):
        return State({"values": raw}, globals_)

    def value(self, raw, globals_):
        """Rows' values with the global term last, so that sums compare like with like."""
        rows = self.row_values(raw, globals_)
        last = rows.new_zeros(1) if self.frozen else self.objective.global_term(globals_).reshape(1)
        return torch.cat([rows, last])

    def step(self, raw, globals_):
        g, g_globals, H, C, H_globals, row_steps, steps = self.derivatives(raw, globals_)
        live = self.weights > 0
        A = _positive(-H / self.weights.clamp_min(1e-300)[:, None, None])
        identity = torch.eye(A.shape[-1]).to(A)
        A = torch.where(live[:, None, None], A * self.weights[:, None, None], identity)
        g = torch.where(live[:, None], g, torch.zeros_like(g))
        C = torch.where(live[:, None, None], C, torch.zeros_like(C))
        factor = torch.linalg.cholesky(A)
        pulled = torch.cholesky_solve(torch.cat([g.unsqueeze(-1), C], -1), factor)
        free, response = pulled[..., 0], pulled[..., 1:]
        schur = -H_globals - torch.einsum("npq,npr->qr", C, response)
        right = g_globals + torch.einsum("npq,np->q", C, free)
        schur = _positive(0.5 * (schur + schur.mT))
        d_globals = torch.linalg.solve(schur, right)

        weights = torch.where(live, self.weights, torch.ones_like(self.weights))
        each, unweighted = g / weights.unsqueeze(-1), A / weights[:, None, None]

        def local(d):
            d_raw = free + response @ d
            return _safe_logs(d_raw, each, unweighted, self.objective.n_latents) * row_steps

        row_decrement = 0.5 * (g * free).sum(-1)
        decrement = float(row_decrement.sum()) + 0.5 * float(right @ d_globals)
        norm = math.sqrt(float((g**2).sum() + (g_globals**2).sum())) / self.problem.total_weight
        d_globals = _safe_logs(d_globals, right, schur, self.objective.space.size)
        return _Step(local, (d_globals, steps), decrement, norm, row_decrement)

    def move(self, raw, globals_, value, step):
        """Try shrinking steps of the globals; each row keeps the best of its own candidates."""
        d_globals, lengths = step.d_globals
        for trial in range(9):
            scale = _SHRINK**trial if trial < 8 else 0.0
            moved = globals_ + scale * lengths * d_globals
            best, best_value, _ = self._best_of(raw, moved, step.local(scale * d_globals))
            if float(best_value.sum()) > float(value.sum()):
                return best, moved, best_value
        return None

    def move_rows(self, raw, globals_, step, longest):
        """Move every row as far as is good for it, up to its own `longest`; say which gained."""
        local = longest.unsqueeze(-1) * step.local(step.d_globals[0])
        best, _, gained = self._best_of(raw, globals_, local)
        return best, gained

    def _best_of(self, raw, globals_, local):
        """Give each row the best of its full step, two shorter ones, and none."""
        best, best_value = raw, self.value(raw, globals_)
        gained = torch.zeros(len(raw), dtype=torch.bool, device=raw.device)
        for length in (1.0, _SHRINK, _SHRINK**2):
            new = self.value(raw + length * local, globals_)
            better = (new > best_value) | ~torch.isfinite(best_value)
            best = torch.where(better[:-1].unsqueeze(-1), raw + length * local, best)
            best_value = torch.where(better, new, best_value)
            gained |= better[:-1]
            if length == 1.0 and bool(gained.all()):
                break
        return best, best_value, gained


class _Dense(_System):
    """A function linear in its parameters: all of them, and the globals, in one system."""

    def __init__(self, problem):
        super().__init__(problem)
        self.basis = problem.features

    def read(self, state):
        return state.parameters["coefficients"]

    def write(self, coefficients, globals_):
        return State({"coefficients": coefficients}, globals_)

    def value(self, coefficients, globals_):
        return self.total(self.basis @ coefficients, globals_)

    def step(self, coefficients, globals_):
        raw = self.basis @ coefficients
        g, g_globals, H, C, H_globals, row_steps, steps = self.derivatives(raw, globals_)
        # Back to plain units in the rows: the coefficients have their own, the outputs' mean step.
        unit = row_steps.log().mean(0).exp()
        to_unit = unit / row_steps
        g, C = g * to_unit, C * to_unit.unsqueeze(-1)
        H = H * to_unit.unsqueeze(-1) * to_unit.unsqueeze(-2)
        B, (p, P) = self.basis, coefficients.shape
        right = torch.cat([(B.mT @ g).reshape(-1), g_globals])
        top = torch.einsum("na,nij,nb->aibj", B, H, B).reshape(p * P, p * P)
        side = torch.einsum("na,niq->aiq", B, C).reshape(p * P, -1)
        full = torch.cat([torch.cat([top, side], 1), torch.cat([side.mT, H_globals], 1)])
        solution = torch.linalg.solve(_positive(-0.5 * (full + full.mT)), right)
        decrement = 0.5 * float(right @ solution)
        norm = float(right.norm()) / self.problem.total_weight
        local = solution[: p * P].reshape(p, P) * unit
        return _Step(local, (solution[p * P :], steps), decrement, norm)

    def move(self, coefficients, globals_, value, step):
        return _shrunk(self, coefficients, globals_, value, step)


class _GaussNewton(_System):
    """A network: its Jacobian in place of a basis, with Levenberg-Marquardt damping."""

    def __init__(self, problem):
        super().__init__(problem)
        self.damping = 1e-2

    def read(self, state):
        self.shapes = {name: value.shape for name, value in state.parameters.items()}
        size = sum(value.numel() for value in state.parameters.values())
        if size > MAX_PARAMETERS:
            raise ValueError(
                f"Newton fits inference functions of up to {MAX_PARAMETERS} parameters, but "
                f"{type(self.problem.function).__name__} has {size}: use solver=LBFGS()."
            )
        return torch.cat([value.reshape(-1) for value in state.parameters.values()])

    def write(self, flat, globals_):
        return State(self._named(flat), globals_)

    def _named(self, flat):
        pieces = flat.split([shape.numel() for shape in self.shapes.values()])
        return {n: v.reshape(s) for (n, s), v in zip(self.shapes.items(), pieces, strict=True)}

    def raw(self, flat):
        return self.problem.function.evaluate(self._named(flat), self.problem.features)

    def value(self, flat, globals_):
        return self.total(self.raw(flat), globals_)

    def step(self, flat, globals_):
        raw = self.raw(flat)
        g, g_globals, H, C, H_globals, row_steps, steps = self.derivatives(raw, globals_)
        J = self._jacobian(flat) / row_steps.unsqueeze(-1)
        A = _positive(-H)
        right = torch.cat([torch.einsum("npi,np->i", J, g), g_globals])
        factor = torch.linalg.cholesky(A)
        root = (factor.mT @ J).reshape(-1, J.shape[-1])
        top = root.mT @ root
        side = -torch.einsum("npi,npq->iq", J, C)
        self.system = torch.cat([torch.cat([top, side], 1), torch.cat([side.mT, -H_globals], 1)])
        self.right, self.steps = right, steps
        solution = self._solved()
        decrement = 0.5 * float(right @ solution)
        norm = float(right.norm()) / self.problem.total_weight
        return _Step(solution, (None, steps), decrement, norm)

    def _jacobian(self, flat):
        def one(flat, features):
            return self.problem.function.evaluate(self._named(flat), features.unsqueeze(0))[0]

        return torch.func.vmap(torch.func.jacrev(one), (None, 0))(flat, self.problem.features)

    def _solved(self):
        n = len(self.system)
        damping = self.damping * self.system.diagonal().abs().mean() * torch.eye(n).to(self.system)
        return torch.linalg.solve(self.system + damping, self.right)

    def move(self, flat, globals_, value, step):
        solution, size = step.local, len(flat)
        for _ in range(10):
            moved = globals_
            if not self.frozen:
                moved = globals_ + self.steps[: len(solution) - size] * solution[size:]
            new_value = self.value(flat + solution[:size], moved)
            if torch.isfinite(new_value) and new_value > value:
                self.damping = max(self.damping / 4, 1e-9)
                return flat + solution[:size], moved, new_value
            self.damping *= 8
            solution = self._solved()
        return None


class _Coupled(_System):
    """Factorized VI of a model that couples its rows: one dense system, for few rows."""

    def read(self, state):
        return state.parameters["values"]

    def write(self, raw, globals_):
        return State({"values": raw}, globals_)

    def value(self, raw, globals_):
        return self.total(raw, globals_)

    def row_values(self, raw, globals_):
        return self.problem.row_terms(raw, globals_)

    def step(self, raw, globals_):
        objective = self.objective
        row_steps = objective.family.steps(objective.local_factors(raw))
        steps = objective.global_family.steps(objective.global_factor(globals_))
        lengths = torch.cat([row_steps.reshape(-1), steps[: 0 if self.frozen else len(steps)]])

        with torch.enable_grad():
            origin = torch.zeros_like(lengths, requires_grad=True)
            moved = lengths * origin
            new = raw + moved[: raw.numel()].reshape(raw.shape)
            there = globals_ if self.frozen else globals_ + moved[raw.numel() :]
            (slope,) = _gradient(self.total(new, there), (origin,), create_graph=True)
            hessian = torch.stack([_gradient(entry, (origin,))[0] for entry in slope])
        gradient = slope.detach()
        solution = torch.linalg.solve(_positive(-0.5 * (hessian + hessian.mT)), gradient)
        decrement = 0.5 * float(gradient @ solution)
        norm = float(gradient.norm()) / self.problem.total_weight
        k, longest = objective.n_latents, _LONGEST_LOG_STEP / math.sqrt(0.5)
        local = solution[: raw.numel()].reshape(raw.shape).clone()
        local[:, k : 2 * k] = local[:, k : 2 * k].clamp(-longest, longest)
        return _Step(local * row_steps, (solution[raw.numel() :], steps), decrement, norm)

    def move(self, raw, globals_, value, step):
        return _shrunk(self, raw, globals_, value, step)


def n_unknowns(objective, n_rows):
    """Count the numbers that factorized VI moves."""
    local = objective.family.n_parameters(objective.n_latents)
    return n_rows * local + objective.global_family.n_parameters(objective.space.size)


def _shrunk(system, unknowns, globals_, value, step):
    """Shrink a step of everything until the ELBO rises; None if it does not."""
    d_globals, lengths = step.d_globals
    for trial in range(12):
        scale = _SHRINK**trial
        moved = globals_
        if not system.frozen:
            moved = globals_ + scale * lengths[: len(d_globals)] * d_globals
        new = unknowns + scale * step.local
        new_value = system.value(new, moved)
        if torch.isfinite(new_value) and new_value > value:
            return new, moved, new_value
    return None


def _positive(A):
    """Replace symmetric matrices that are not positive by ones with the eigenvalues' sizes."""
    if not A.numel():
        return A
    scale = A.diagonal(dim1=-2, dim2=-1).abs().amax(-1).clamp_min(1e-300)
    ridge = 1e-12 * scale[..., None, None] * torch.eye(A.shape[-1]).to(A)
    _, info = torch.linalg.cholesky_ex(A - _FLOOR * torch.eye(A.shape[-1]).to(A))
    bad = info != 0
    if not bool(bad.any()):
        return A + ridge
    chosen = A[bad] if A.dim() > 2 else A.unsqueeze(0)
    values, vectors = torch.linalg.eigh(chosen)
    floor = (1e-10 * values.abs().amax(-1, keepdim=True)).clamp_min(_FLOOR)
    mended = (vectors * values.abs().clamp_min(floor).unsqueeze(-2)) @ vectors.mT
    if A.dim() == 2:
        return mended[0]
    A = A.clone()
    A[bad] = mended
    return A + ridge


def _safe_logs(step, gradient, curvature, k):
    """Mend a step where log scales (coordinates k, ..., 2k - 1) are far from their optimum.

    In log s the gradient is 1 - s^2 E[-d2 log p], so s has the fixed point log s - log(1 - g) / 2,
    while Newton creeps towards it (or leaps past it). The means then take a Newton step of their
    own, so that each part, and so the whole, points uphill. Units are natural: sqrt(1/2) in log s.
    """
    root = math.sqrt(0.5)
    g = gradient[..., k : 2 * k] / root
    floor = math.exp(-2 * _LONGEST_LOG_STEP)
    fixed_point = -0.5 * (1 - g).clamp_min(floor).log() / root
    far = (g.abs() > 0.5).any(-1, keepdim=True)
    if not bool(far.any()):
        return step
    own = torch.linalg.solve(curvature[..., :k, :k], gradient[..., :k].unsqueeze(-1)).squeeze(-1)
    means = torch.where(far, own, step[..., :k])
    logs = torch.where(far, fixed_point, step[..., k : 2 * k])
    rest = torch.where(far, torch.zeros_like(step[..., 2 * k :]), step[..., 2 * k :])
    return torch.cat([means, logs, rest], -1)
