"""Newton systems of row-wise models: a block a row, and a border of globals."""

import math

import torch

from skavi._numerics.sums import add_up
from skavi.solvers._base import State

LONGEST_LOG_STEP = 2.0
_FLOOR = 1e-3
_SHRINK = 0.25


class Step:
    """A proposed step: `local(d_globals)` gives the rows' steps for a step of the globals."""

    def __init__(self, local, d_globals, decrement, gradient_norm, row_decrement=None):
        self.local, self.d_globals, self.row_decrement = local, d_globals, row_decrement
        self.decrement, self.gradient_norm = decrement, gradient_norm


class System:
    """Derivatives of the ELBO in every row's raw parameters and in the globals'."""

    #: What a damped system carries from step to step, and one that meets kinks besides.
    damping: float = 0.0
    pieces: "list[tuple[torch.Tensor, torch.Tensor]]" = []

    def __init__(self, problem):
        self.problem, self.objective = problem, problem.objective
        self.weights, self.group = problem.rows.weights, problem.rows.group
        self.frozen = problem.frozen_globals

    def decrement_left(self):
        """Return what may be gained where no step does, in nats."""
        return math.inf

    def row_values(self, raw, globals_):
        return self.weights * self.problem.row_terms(raw, globals_)

    def elbo(self, value):
        """Return the ELBO that `value` stands for, in nats."""
        return float(value)

    def total(self, raw, globals_):
        value = self.group.sum(add_up(self.row_values(raw, globals_).reshape(-1)))
        return value if self.frozen else value + self.objective.global_term(globals_)

    def derivatives(self, raw, globals_):
        """Gradient and Hessian blocks, all in natural units; rows (n, P), globals (Q,).

        The gradient is differentiated backwards once more. Rows do not meet, so one pass for
        column p of all rows' gradients, summed, gives column p of every row's own block; a pass
        for one global gives its row of the border.
        """
        row_steps = self.objective.family.steps(self.objective.local_factors(raw))
        steps = self.objective.global_family.steps(self.objective.global_factor(globals_))
        n_global = 0 if self.frozen else globals_.numel()
        pieces = [self._plain(raw, globals_, part) for part in self.problem.parts()]
        g, H, C = (torch.cat(rows) for rows in zip(*[piece[:3] for piece in pieces], strict=True))
        sums = (sum(piece[i] for piece in pieces) for i in (3, 4))
        g_globals, H_globals = (self.group.sum(each) for each in sums)
        if not self.frozen:
            slope, curvature = self._of_global_term(globals_)
            g_globals, H_globals = g_globals + slope, H_globals + curvature
        steps_used = steps[:n_global]
        g, g_globals = g * row_steps, g_globals * steps_used
        H = H * row_steps.unsqueeze(-1) * row_steps.unsqueeze(-2)
        C = C * row_steps.unsqueeze(-1) * steps_used
        return g, g_globals, H, C, H_globals * steps_used * steps_used[:, None], row_steps, steps

    def _plain(self, raw, globals_, part):
        """Derivatives of some rows' terms in plain units: g, H, C; sums over them for globals."""
        rows, whole = self.problem.rows, len(raw)
        problem = self.problem if part == slice(0, whole) else self.problem.restricted(part)
        n_row, n_global = raw.shape[-1], 0 if self.frozen else globals_.numel()
        with torch.enable_grad():
            raw = raw[part].detach().requires_grad_(True)
            globals_ = globals_.detach().requires_grad_(n_global > 0)
            unknowns = (raw, globals_) if n_global else (raw,)
            value = (rows.weights[part] * problem.row_terms(raw, globals_)).sum()
            gradients = gradient_of(value, unknowns, create_graph=True)
            g, g_globals = gradients[0], gradients[1] if n_global else globals_
            columns = [gradient_of(g[:, p].sum(), (raw,))[0] for p in range(n_row)]
            borders = [gradient_of(g_globals[q], unknowns) for q in range(n_global)]
        H, g, g_globals = torch.stack(columns, -1), g.detach(), g_globals.detach()[:n_global]
        if not n_global:
            return g, H, raw.new_empty(*raw.shape, 0), g_globals, raw.new_empty(0, 0)
        C = torch.stack([border[0] for border in borders], -1)
        return g, H, C, g_globals, torch.stack([border[1] for border in borders])

    def _of_global_term(self, globals_):
        with torch.enable_grad():
            globals_ = globals_.detach().requires_grad_(True)
            value = self.objective.global_term(globals_)
            (slope,) = gradient_of(value, (globals_,), create_graph=True)
            rows = [gradient_of(entry, (globals_,))[0] for entry in slope]
        return slope.detach(), torch.stack(rows) if rows else slope.new_empty(0, 0)


def gradient_of(value, unknowns, create_graph=False):
    """Differentiate a scalar; zeros where it does not depend on an unknown."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(unknown) for unknown in unknowns)
    return torch.autograd.grad(
        value, unknowns, create_graph=create_graph, retain_graph=True, materialize_grads=True
    )


class Arrow(System):
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
        # Rows whose derivatives are no numbers stay where they are.
        known = torch.isfinite(g).all(1) & torch.isfinite(H).all(2).all(1)
        live = (self.weights > 0) & known
        identity = torch.eye(H.shape[-1]).to(H)
        H = torch.where(known[:, None, None], H, -identity)
        A = positive(-H / self.weights.clamp_min(1e-300)[:, None, None])
        A = torch.where(live[:, None, None], A * self.weights[:, None, None], identity)
        g = torch.where(live[:, None], g, torch.zeros_like(g))
        C = torch.where(live[:, None, None], C, torch.zeros_like(C))
        factor = torch.linalg.cholesky(A)
        pulled = torch.cholesky_solve(torch.cat([g.unsqueeze(-1), C], -1), factor)
        free, response = pulled[..., 0], pulled[..., 1:]
        schur = -H_globals - self.group.sum(torch.einsum("npq,npr->qr", C, response))
        right = g_globals + self.group.sum(torch.einsum("npq,np->q", C, free))
        schur = positive(0.5 * (schur + schur.mT))
        d_globals = torch.linalg.solve(schur, right)

        weights = torch.where(live, self.weights, torch.ones_like(self.weights))
        each, unweighted = g / weights.unsqueeze(-1), A / weights[:, None, None]

        def local(d):
            d_raw = free + response @ d
            return safe_logs(d_raw, each, unweighted, self.objective.n_latents) * row_steps

        row_decrement = torch.where(known, 0.5 * (g * free).sum(-1), math.inf)
        own = torch.stack([add_up(row_decrement), add_up((g**2).reshape(-1)), (~known).sum().to(g)])
        gained, squares, unknown = self.group.sum(own).tolist()
        decrement = gained + 0.5 * float(right @ d_globals)
        norm = math.sqrt(squares + float((g_globals**2).sum())) / self.problem.total_weight
        norm = math.inf if unknown else norm
        d_globals = safe_logs(d_globals, right, schur, self.objective.space.size)
        return Step(local, (d_globals, steps), decrement, norm, row_decrement)

    def move(self, raw, globals_, value, step):
        """Try shrinking steps of the globals; each row keeps the best of its own candidates."""
        d_globals, lengths = step.d_globals
        for trial in range(9):
            scale = _SHRINK**trial if trial < 8 else 0.0
            moved = globals_ + scale * lengths * d_globals
            best, best_value, _ = self._best_of(raw, moved, step.local(scale * d_globals))
            if self.elbo(best_value) > self.elbo(value):
                return best, moved, best_value
        return None

    def elbo(self, value):
        """Add up the rows of all ranks, and the global term once."""
        if self.group.size == 1:
            return float(add_up(value))
        return float(self.group.sum(add_up(value[:-1])) + value[-1])

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


def positive(A):
    """Replace symmetric matrices that are not positive by ones with the eigenvalues' sizes."""
    if not A.numel():
        return A
    scale = A.diagonal(dim1=-2, dim2=-1).abs().amax(-1).clamp_min(1e-300)
    ridge = 1e-12 * scale[..., None, None] * torch.eye(A.shape[-1]).to(A)
    # However narrow: a ridge between correlated globals must be walked in one step, not a floor's.
    _, info = torch.linalg.cholesky_ex(A - 100 * ridge)
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


def safe_logs(step, gradient, curvature, k):
    """Mend a step where log scales (coordinates k, ..., 2k - 1) are far from their optimum.

    In log s the gradient is 1 - s^2 E[-d2 log p], so s has the fixed point log s - log(1 - g) / 2,
    while Newton creeps towards it (or leaps past it). The means then take a Newton step of their
    own, so that each part, and so the whole, points uphill. Units are natural: sqrt(1/2) in log s.
    """
    root = math.sqrt(0.5)
    g = gradient[..., k : 2 * k] / root
    floor = math.exp(-2 * LONGEST_LOG_STEP)
    fixed_point = -0.5 * (1 - g).clamp_min(floor).log() / root
    far = (g.abs() > 0.5).any(-1, keepdim=True)
    if not bool(far.any()):
        return step
    own = torch.linalg.solve(curvature[..., :k, :k], gradient[..., :k].unsqueeze(-1)).squeeze(-1)
    means = torch.where(far, own, step[..., :k])
    logs = torch.where(far, fixed_point, step[..., k : 2 * k])
    rest = torch.where(far, torch.zeros_like(step[..., 2 * k :]), step[..., 2 * k :])
    return torch.cat([means, logs, rest], -1)
