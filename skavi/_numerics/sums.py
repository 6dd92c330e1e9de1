"""Sums over many numbers, rounded alike whatever the number of threads.

BLAS's inner product, torch's sum of all numbers of a large tensor and LAPACK's least squares split
their sums between threads; products of matrices and sums along one dimension do not. Close to an
optimum slopes cancel, and steps along them would carry that rounding on.
"""

import torch
from torch import Tensor

#: Numbers: torch splits no sum of fewer between threads (its GRAIN_SIZE).
_FEW = 32_768
#: Numbers summed at once: 32 KB, a first-level cache; sums of 100,000 are right to 1e-15
#: (test_sums).
_BLOCK = 4096
#: Of a sum: what rounding leaves unknown of a sum of many terms.
_ROUNDING = 1e-12


def lost_in(part: float, whole: float) -> bool:
    """Say whether a part is lost in the rounding of the whole, a sum of many terms.

    Examples
    --------
    >>> from skavi._numerics.sums import lost_in
    >>> lost_in(1e-3, 1e6), lost_in(1e-3, -1e16)
    (False, True)
    """
    return part <= _ROUNDING * abs(whole)


def add_up(numbers: Tensor) -> Tensor:
    """Return the sum of a vector's numbers.

    Examples
    --------
    >>> import torch
    >>> from skavi._numerics.sums import add_up
    >>> add_up(torch.ones(10_000))
    tensor(10000.)
    """
    if len(numbers) < _FEW:
        return numbers.sum()
    n = len(numbers) // _BLOCK * _BLOCK
    sums = numbers[:n].reshape(-1, _BLOCK).sum(1)
    return add_up(torch.cat([sums, numbers[n:].sum(0, keepdim=True)]))


def inner(one: Tensor, other: Tensor) -> Tensor:
    """Return the inner product of two vectors.

    Examples
    --------
    >>> import torch
    >>> from skavi._numerics.sums import inner
    >>> inner(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    tensor(11.)
    """
    return add_up(one * other)


def triangular(rows: Tensor) -> Tensor:
    """Return rows R with the same R'R, no more than columns: all that least squares see of them.

    Source: Demmel, Grigori, Hoemmen & Langou (2012), "Communication-optimal parallel and
    sequential QR and LU factorizations", section 3.

    Examples
    --------
    >>> import torch
    >>> from skavi._numerics.sums import triangular
    >>> rows = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    >>> R = triangular(rows)
    >>> len(R), torch.allclose(R.T @ R, rows.T @ rows, rtol=1e-4)
    (2, True)
    """
    n_columns = rows.shape[1]
    size = max(512, 2 * n_columns)
    while len(rows) > size:
        n = len(rows) // size * size
        corners = torch.linalg.qr(rows[:n].reshape(-1, size, n_columns), mode="r").R
        rows = torch.cat([corners.reshape(-1, n_columns), rows[n:]])
    return torch.linalg.qr(rows, mode="r").R
