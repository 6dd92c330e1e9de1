"""Positive definite matrices near symmetric ones: curvatures of a climb away from its top."""

import math

import torch

#: Least curvature where one is negative, in units that make entries comparable. As a floor for all
#: curvatures it cost 468 iterations instead of 7 (5f64aa0).
_FLOOR = 1e-3
#: Rounds that find these units from those of the diagonal. Not measured: order of magnitude.
_ROUNDS = 8
#: Of numbers that cancel: a solution of which less is left has grown along a direction that the
#: matrix does not see.
_LEFT = 1e-10
#: Of the largest eigenvalue, with a diagonal of ones: smaller ones are rounding.
_RANK = 1e-12


def _equilibrated(A):
    """Return units in which the absolute entries of each row of symmetric matrices add up to 1.

    Source: Knight, Ruiz & Ucar (2014), "A symmetry preserving algorithm for matrix scaling".
    """
    diagonal = A.diagonal(dim1=-2, dim2=-1).abs()
    units = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt()
    for _ in range(_ROUNDS):
        scaled = units.unsqueeze(-1) * A * units.unsqueeze(-2)
        sums = scaled.abs().sum(-1)
        units = units * torch.where(sums > 0, sums, torch.ones_like(sums)).rsqrt()
    return units


def positive(A):
    """Replace negative eigenvalues of symmetric matrices by their absolute values.

    They are those in units that make entries comparable: a global of a raw column has a curvature
    of 1e-6 in its own, and its steps would be cut a hundredfold by the floor.

    Source: Dauphin et al. (2014), "Identifying and attacking the saddle point problem".
    """
    if not A.numel():
        return A
    scale = A.diagonal(dim1=-2, dim2=-1).abs().amax(-1).clamp_min(1e-300)
    ridge = 1e-12 * scale[..., None, None] * torch.eye(A.shape[-1]).to(A)
    # No floor for positive definite matrices: the ELBO of correlated globals is flat in some
    # directions, where a floor would shorten the steps.
    _, info = torch.linalg.cholesky_ex(A - 100 * ridge)
    bad = info != 0
    if not bool(bad.any()):
        return A + ridge
    chosen = A[bad] if A.dim() > 2 else A.unsqueeze(0)
    units = _equilibrated(chosen)
    values, vectors = torch.linalg.eigh(units.unsqueeze(-1) * chosen * units.unsqueeze(-2))
    vectors = vectors / units.unsqueeze(-1)
    mended = (vectors * values.abs().clamp_min(_FLOOR).unsqueeze(-2)) @ vectors.mT
    if A.dim() == 2:
        return mended[0]
    A = A.clone()
    A[bad] = mended
    return A + ridge


def root_or_nan(A):
    """Return the Cholesky factors of symmetric matrices, NaN where there is none.

    Of many draws of correlations some are 1 to rounding: one of them must not end a batch.
    """
    lower, failed = torch.linalg.cholesky_ex(A)
    return torch.where((failed == 0)[..., None, None], lower, math.nan)


def least_solution(A, right):
    """Return the solution of a symmetric positive semidefinite system, the least if there are many.

    That of `torch.linalg.solve` where A has an inverse; where covariates say the same, it has none.

    Parameters
    ----------
    A : Tensor of shape (n, n)
    right : Tensor of shape (n,) or (n, m)
    """
    solution, failed = torch.linalg.solve_ex(A, right)
    left = right.abs().max() > _LEFT * (A.abs() @ solution.abs()).max()
    if not bool(failed) and bool(left | (right == 0).all()):
        return solution
    diagonal = A.diagonal()
    units = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt()
    values, vectors = torch.linalg.eigh(units.unsqueeze(-1) * A * units)
    kept = values > _RANK * values.max()
    vectors = vectors[:, kept] * units.unsqueeze(-1)
    return (vectors / values[kept]) @ (vectors.mT @ right)
