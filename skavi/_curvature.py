"""Second derivatives of the ELBO, and the elimination of the rows' part of them.

With raw factors first and q(theta)'s parameters last, minus the Hessian is

    [ A   -C ]    A: one block per row (independent rows), a band (a chain), or dense;
    [ -C'  D ]    C: a border, D: a corner.

Maximising over the rows' part leaves the Schur complement D - C'A^-1 C in theta, which Newton
steps, linear response and streaming use. Units are natural: `Family.steps`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import cho_solve_banded, cholesky_banded
from torch import Tensor

from skavi._numerics.aligned import aligned
from skavi._numerics.pairs import jacobian_by_pairs
from skavi._numerics.sums import add_up

#: Rows this far apart in a chain share no neighbour: one backward pass serves all of them.
_COLOURS = 3
#: Lifts of the diagonal, each 4 times the last: from 1e-6 to 7e10 times its largest entry.
_LIFTS = 30
#: Backward passes taken one by one, and most taken at once. 17 of a mixed model's 18 groups: 0.08
#: s, at once 0.03; but torch's first batch imports sympy, 0.4 s, as long as a fit of few numbers.
_FEW_PASSES, _BATCH = 8, 256
#: Numbers of the unknowns up to which many passes at once are faster: 8 times for the 60 rows of a
#: compressed `FactorAnalysis`, 0.7 times for 2,000 rows with missing cells.
_FEW_UNKNOWNS = 2000
#: Numbers of one evaluation times passes at once: 32 MB an array. 4,096 draws of 88 globals, all
#: 176 passes at once, took 4 GB.
_BATCHED_NUMBERS = 4_000_000
#: Rows whose columns of a band's inverse are held at once.
_COLUMNS = 256


# --- derivatives --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Derivatives:
    """Gradient and Hessian, in natural units.

    Attributes
    ----------
    g, g_globals : Tensor
        Gradient in the rows' raw parameters, and in those of q(theta), shape (Q,).
    H : Tensor
        Hessian of the rows' part: blocks (n, P, P), or a band in LAPACK's upper form (2 P, n P).
    C : Tensor
        Mixed derivatives: (n, P, Q) beside blocks, (n P, Q) beside a band.
    H_globals : Tensor of shape (Q, Q)
    row_steps, steps : Tensor
        Natural steps of the rows' parameters (n, P), and of all those of q(theta).
    """

    g: Tensor
    g_globals: Tensor
    H: Tensor
    C: Tensor
    H_globals: Tensor
    row_steps: Tensor
    steps: Tensor


def natural_lengths(problem, raw, raw_globals):
    """Return the natural steps of the rows' parameters, and of those of q(theta)."""
    objective = problem.objective
    row_steps = objective.family.steps(objective.local_factors(raw))
    return row_steps, objective.global_family.steps(objective.global_factor(raw_globals))


def arrow_derivatives(problem, raw: Tensor, raw_globals: Tensor) -> Derivatives:
    """Differentiate the ELBO of rows that are independent given theta; rows (n, P), q(theta) (Q,).

    The gradient is differentiated once more. As rows are independent, one backward pass through the
    sum over rows of entry p of their gradients gives column p of every row's block; a pass for one
    parameter of q(theta) gives its row of the border.
    """
    row_steps, steps = natural_lengths(problem, raw, raw_globals)
    n_global = 0 if problem.frozen_globals else raw_globals.numel()
    parts, ranks = problem.parts(), problem.rows.ranks
    alone = len(parts) == 1 and ranks.size == 1 and n_global > 0
    pieces = [_differentiate_part(problem, raw, raw_globals, part, alone) for part in parts]
    g, H, C = (torch.cat(rows) for rows in zip(*[piece[:3] for piece in pieces], strict=True))
    sums = (sum(piece[i] for piece in pieces) for i in (3, 4))
    g_globals, H_globals = (ranks.sum(each) for each in sums)
    if n_global and not alone:
        slope, curvature = differentiate_global_term(problem.objective, raw_globals)
        g_globals, H_globals = g_globals + slope, H_globals + curvature
    used = steps[:n_global]
    return Derivatives(
        g=g * row_steps,
        g_globals=g_globals * used,
        H=H * row_steps.unsqueeze(-1) * row_steps.unsqueeze(-2),
        C=C * row_steps.unsqueeze(-1) * used,
        H_globals=H_globals * used * used[:, None],
        row_steps=row_steps,
        steps=steps,
    )


def _differentiate_part(problem, raw, raw_globals, part, alone=False):
    """Return g, H and C of each row of a part, and sums in q(theta), in plain units.

    The sums are over the rows; where these are `alone`, the term of q(theta) is among them.
    """
    some = problem if part == slice(0, len(raw)) else problem.restricted(part)
    n_row, n_global = raw.shape[-1], 0 if problem.frozen_globals else raw_globals.numel()
    if (known := some.second_derivatives(raw[part], raw_globals)) is not None:
        if alone:
            slope, curvature = differentiate_global_term(problem.objective, raw_globals)
            known = *known[:3], known[3] + slope, known[4] + curvature
        return known
    with torch.enable_grad():
        raw, raw_globals, value = sum_of_rows(some, raw[part], raw_globals)
        unknowns = (raw, raw_globals) if n_global else (raw,)
        if alone:
            value = value + problem.objective.global_term(raw_globals)
        gradients = gradient_of(value, unknowns, create_graph=True)
        g, g_globals = gradients[0], gradients[1] if n_global else raw_globals
        slopes = torch.cat([g.sum(0), g_globals[:n_global]])
        columns = jacobian(slopes, unknowns, len(raw) * some.numbers_a_row)
    of_rows = columns[0].movedim(0, -1)
    H, C = of_rows[..., :n_row].contiguous(), of_rows[..., n_row:].contiguous()
    g, g_globals = g.detach(), g_globals.detach()[:n_global]
    H_globals = columns[1][n_row:] if n_global else raw.new_empty(0, 0)
    return g, H, C, g_globals, H_globals


def sum_of_rows(problem, raw, raw_globals):
    """Return parameters that are to be differentiated in, and the weighted sum of rows' terms."""
    raw, wanted = raw.detach().requires_grad_(True), not problem.frozen_globals
    raw_globals = raw_globals.detach().requires_grad_(wanted)
    terms = problem.row_terms(raw, raw_globals)
    return raw, raw_globals, (problem.rows.weights * terms).sum()


def differentiate_global_term(objective, raw_globals):
    """Return gradient and Hessian of the ELBO's term of q(theta) alone, in plain units."""
    with torch.enable_grad():
        raw_globals = raw_globals.detach().requires_grad_(True)
        value = objective.global_term(raw_globals)
        (slope,) = gradient_of(value, (raw_globals,), create_graph=True)
        rows = jacobian_by_pairs(slope, raw_globals)  # independent priors, and most q(theta)
        if rows is None:
            (rows,) = jacobian(slope, (raw_globals,))
    return slope.detach(), rows


def band_derivatives(problem, raw: Tensor, raw_globals: Tensor) -> Derivatives:
    """Differentiate the ELBO of a chain, in which neighbouring rows depend on each other.

    One backward pass gives a Hessian column of every third row, since such rows share no neighbour.
    """
    n_global = 0 if problem.frozen_globals else raw_globals.numel()
    row_steps, steps = natural_lengths(problem, raw, raw_globals)
    lengths, used = row_steps.reshape(-1), steps[:n_global]
    with torch.enable_grad():
        raw = raw.detach().requires_grad_(True)
        raw_globals = raw_globals.detach().requires_grad_(n_global > 0)
        unknowns = (raw, raw_globals) if n_global else (raw,)
        slopes = gradient_of(total(problem, raw, raw_globals), unknowns, create_graph=True)
        band = band_of(slopes[0], raw)
        borders = [gradient_of(slopes[1][q], unknowns) for q in range(n_global)]
    g_globals = slopes[1].detach() if n_global else raw.new_empty(0).detach()
    C, H_globals = raw.new_empty(raw.numel(), 0), raw.new_empty(0, 0)
    if borders:
        C = torch.stack([one[0].reshape(-1) for one in borders], -1).detach()
        H_globals = torch.stack([one[1] for one in borders]).detach()
    return Derivatives(
        g=slopes[0].detach().reshape(-1) * lengths,
        g_globals=g_globals * used,
        H=_scale_band(band, lengths),
        C=C.detach() * lengths.unsqueeze(-1) * used,
        H_globals=H_globals * used * used.unsqueeze(-1),
        row_steps=row_steps,
        steps=steps,
    )


def band_of(slope: Tensor, unknown: Tensor) -> Tensor:
    """Return the Hessian of a chain of n rows from its gradient, both (..., n, P).

    In LAPACK's upper form (..., 2 P, n P): ``[..., u + i - j, j]`` is H[..., i, j] for i <= j.
    Leading axes are chains of their own.
    """
    n, n_row = unknown.shape[-2:]
    band = unknown.new_zeros(*unknown.shape[:-2], 2 * n_row, n * n_row).detach()
    for colour in range(min(_COLOURS, n)):
        rows = torch.arange(colour, n, _COLOURS, device=band.device)
        before = rows[rows > 0] - 1
        for p in range(n_row):
            column = gradient_of(slope[..., rows, p].sum(), (unknown,))[0].detach()
            for q in range(p + 1):  # within the row
                band[..., 2 * n_row - 1 - (p - q), rows * n_row + p] = column[..., rows, q]
            for q in range(n_row):  # with the row before
                at = n_row - 1 - (p - q), (before + 1) * n_row + p
                band[..., at[0], at[1]] = column[..., before, q]
    return band


def _scale_band(band: Tensor, lengths: Tensor) -> Tensor:
    """Convert the band to natural units."""
    upper, size = len(band) - 1, len(lengths)
    scaled = band * lengths
    for distance in range(min(upper + 1, size)):
        scaled[upper - distance, distance:] *= lengths[: size - distance]
    return scaled


def dense_derivatives(problem, raw: Tensor, raw_globals: Tensor):
    """Differentiate the ELBO in all rows' parameters, then those of q(theta), in natural units.

    Returns
    -------
    gradient : Tensor of shape (n P + Q,)
    hessian : Tensor of shape (n P + Q, n P + Q)
    row_steps, steps : Tensor
    """
    row_steps, steps = natural_lengths(problem, raw, raw_globals)
    frozen = problem.frozen_globals
    lengths = torch.cat([row_steps.reshape(-1), steps[: 0 if frozen else len(steps)]])
    with torch.enable_grad():
        origin = torch.zeros_like(lengths, requires_grad=True)
        moved = lengths * origin
        new = raw + moved[: raw.numel()].reshape(raw.shape)
        there = raw_globals if frozen else raw_globals + moved[raw.numel() :]
        (slope,) = gradient_of(total(problem, new, there), (origin,), create_graph=True)
        (hessian,) = jacobian(slope, (origin,), len(raw) * problem.numbers_a_row)
    return slope.detach(), hessian, row_steps, steps


def total(problem, raw, raw_globals):
    """Return the ELBO of coupled rows, without the term of a q(theta) that is frozen."""
    value = add_up(problem.row_terms(raw, raw_globals).reshape(-1))
    return value if problem.frozen_globals else value + problem.objective.global_term(raw_globals)


def gradient_of(value, unknowns, create_graph=False):
    """Differentiate a scalar; zeros where it does not depend on an unknown."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(unknown) for unknown in unknowns)
    return torch.autograd.grad(
        value, unknowns, create_graph=create_graph, retain_graph=True, materialize_grads=True
    )


def jacobian(values: Tensor, unknowns, numbers: int = 1) -> tuple[Tensor, ...]:
    """Differentiate every entry of a vector in each unknown; the entry's axis comes first.

    An evaluation of the vector holds arrays of as many `numbers`, about.
    """
    if not (len(values) and values.requires_grad):
        return tuple(values.new_zeros(len(values), *unknown.shape) for unknown in unknowns)
    few = sum(unknown.numel() for unknown in unknowns) <= _FEW_UNKNOWNS
    at_once = min(_BATCH, _BATCHED_NUMBERS // max(numbers, 1))
    if few and at_once > 1 and len(values) > _FEW_PASSES:
        try:
            return _batched_jacobian(values, unknowns, at_once)
        except RuntimeError:  # an operation without a batching rule
            pass
    rows = [gradient_of(entry, unknowns) for entry in values]
    return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))


def _batched_jacobian(values, unknowns, at_once):
    rows = [values.new_empty(0, *unknown.shape) for unknown in unknowns]
    for directions in torch.eye(len(values)).to(values).split(at_once):
        how = {"retain_graph": True, "is_grads_batched": True, "allow_unused": True}
        parts = torch.autograd.grad(values, unknowns, directions, **how)  # type: ignore[arg-type]
        for i, (part, unknown) in enumerate(zip(parts, unknowns, strict=True)):
            new = values.new_zeros(len(directions), *unknown.shape) if part is None else part
            rows[i] = torch.cat([rows[i], new])
    return tuple(rows)


# --- the rows' part, inverted -------------------------------------------------------------------


class Blocks:
    """One positive definite block per row.

    Raises
    ------
    torch.linalg.LinAlgError
        If a block is not positive definite.
    """

    def __init__(self, A: Tensor):
        self.factor = torch.linalg.cholesky(A)

    def solve(self, columns: Tensor) -> Tensor:
        """Return A^-1 times columns, shape (n, P, r)."""
        return torch.cholesky_solve(columns, self.factor)

    def inverse_blocks(self, n_row: int) -> Tensor:
        """Return the inverse's diagonal blocks of `n_row` parameters, one a row."""
        return torch.cholesky_inverse(self.factor)

    def contract(self, border: Tensor, other: Tensor) -> Tensor:
        """Return border' times columns, or one column (n, P), summed over rows."""
        equation = "npq,np->q" if other.dim() == 2 else "npq,npr->qr"
        return torch.einsum(equation, border, other)


class NonnegativeBlocks(Blocks):
    """Blocks inverted on their eigenvectors of positive eigenvalue only."""

    def __init__(self, A: Tensor):
        values, self.vectors = torch.linalg.eigh(0.5 * (A + A.mT))
        self.inverse_values = torch.where(values > 0, 1 / values, torch.zeros_like(values))

    def solve(self, columns):
        return self.vectors @ (self.inverse_values.unsqueeze(-1) * (self.vectors.mT @ columns))

    def inverse_blocks(self, n_row):
        return (self.vectors * self.inverse_values.unsqueeze(-2)) @ self.vectors.mT


class Band:
    """A banded matrix, with a multiple of the identity added until it is positive definite.

    Attributes
    ----------
    lift : float
        The multiple: 0 for a positive definite matrix.

    Raises
    ------
    FloatingPointError
        If it is not finite.
    """

    def __init__(self, band: Tensor):
        matrix = band.cpu().numpy()
        self.lift, size = 0.0, float(np.abs(matrix[-1]).max(initial=1e-300))
        for _ in range(_LIFTS):
            lifted = matrix.copy()
            lifted[-1] += self.lift
            try:
                self.factor = cholesky_banded(lifted), False
                return
            except np.linalg.LinAlgError:
                self.lift = max(4 * self.lift, 1e-6 * size)
        raise FloatingPointError("Newton's matrix of the chain is not finite.")

    def solve(self, columns: Tensor) -> Tensor:
        """Return A^-1 times columns, shape (n P, r)."""
        return aligned(cho_solve_banded(self.factor, columns.cpu().numpy())).to(columns)

    def inverse_blocks(self, n_row: int) -> Tensor:
        """Return the inverse's diagonal blocks of `n_row` parameters, one a row."""
        size, blocks = self.factor[0].shape[1], []
        for first in range(0, size, n_row * _COLUMNS):
            at = torch.arange(first, min(first + n_row * _COLUMNS, size))
            columns = torch.zeros(size, len(at), dtype=torch.float64)
            columns[at, at - first] = 1.0
            few = self.solve(columns)[at].reshape(-1, n_row, len(at) // n_row, n_row)
            blocks.append(few.diagonal(dim1=0, dim2=2).permute(2, 0, 1))
        return torch.cat(blocks)

    def contract(self, border: Tensor, other: Tensor) -> Tensor:
        """Return border' times columns, or one column."""
        return border.mT @ other


@dataclass(frozen=True)
class Eliminated:
    """A bordered system without its rows: ``schur @ d_globals = right``.

    Attributes
    ----------
    free : Tensor
        The rows' own step, theta held.
    response : Tensor
        Derivative of the rows' step in that of theta.
    schur : Tensor of shape (Q, Q)
    right : Tensor of shape (Q,)
    """

    free: Tensor
    response: Tensor
    schur: Tensor
    right: Tensor


def eliminate(rows_part, d: Derivatives, add_up=lambda value: value) -> Eliminated:
    """Eliminate the rows; `add_up` sums over ranks."""
    solution = rows_part.solve(torch.cat([d.g.unsqueeze(-1), d.C], -1))
    free, response = solution[..., 0], solution[..., 1:]
    schur = -d.H_globals - add_up(rows_part.contract(d.C, response))
    right = d.g_globals + add_up(rows_part.contract(d.C, free))
    return Eliminated(free, response, schur, right)
