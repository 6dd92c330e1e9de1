"""Sparse rows of X: memory and time grow with the stored cells, not with the number of columns.

A model of counts, or a network's first layer, needs only two products of a sparse matrix:
`SparseRows.sampled` evaluates a product of two thin matrices at the stored cells, and
`SparseRows.product` multiplies the matrix, with any values in its cells, by a thin matrix. Each is
the other's derivative, so gradients of every order stay sparse.
"""

import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from skavi._platform.private_names import are_transforms_active

#: Cells, zeros counted, a stored one up to which all are multiplied by `CrowdedRows`: with 12
#: dimensions and 6,000 stored of 20,000 that took 0.02 ms in place of 0.7.
_CROWDED = 20
#: The same for quotients of all cells, which are more work than products: sweeps of 5 topics took
#: .75 of the time at 2.5 cells a stored one, .85 at 3.3 and 4.8, as long at 7.
_FULL = 4
_TINY = 1e-300  # near the least normal float64: keeps quotients of numbers of zero finite


@dataclass(frozen=True)
class SparseRows:
    """A matrix of shape (n_rows, n_features) by rows (CSR), cells in order of their columns.

    Attributes
    ----------
    starts : Tensor of int64 of shape (n_rows + 1,)
        Where each row's cells begin; the last entry is their number.
    columns : Tensor of int64 of shape (n_cells,)
    values : Tensor of shape (n_cells,)
    n_features : int
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    n_features: int

    @classmethod
    def from_scipy(cls, X, device="cpu") -> "SparseRows":
        """Read a scipy matrix or array, sparse or dense, in float64; its zeros are not stored."""
        X = scipy.sparse.csr_array(X, dtype=np.float64, copy=True)
        X.sum_duplicates()
        X.eliminate_zeros()
        starts, columns = (torch.tensor(a.astype(np.int64)) for a in (X.indptr, X.indices))
        values = torch.tensor(X.data)
        return cls(starts.to(device), columns.to(device), values.to(device), X.shape[1])

    @classmethod
    def of(cls, X: "Tensor | SparseRows") -> "SparseRows":
        """Return sparse rows unchanged; convert a dense tensor."""
        if isinstance(X, SparseRows):
            return X
        row, columns = X.nonzero(as_tuple=True)
        starts = torch.zeros(len(X) + 1, dtype=torch.int64, device=X.device)
        starts[1:] = torch.bincount(row, minlength=len(X)).cumsum(0)
        return cls(starts, columns, X[row, columns], X.shape[1])

    # --- the interface of a dense tensor --------------------------------------------------------

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_features)."""
        return len(self), self.n_features

    @property
    def dtype(self):
        """Dtype of the values."""
        return self.values.dtype

    @property
    def device(self):
        """Device of the values."""
        return self.values.device

    def cpu(self) -> "SparseRows":
        """Return the rows in the CPU's memory."""
        tensors = self.starts.cpu(), self.columns.cpu(), self.values.cpu()
        return SparseRows(*tensors, self.n_features)

    def numel(self) -> int:
        """Count the stored cells."""
        return len(self.values)

    def new_zeros(self, *shape) -> Tensor:
        """Return zeros of the values' dtype and device."""
        return self.values.new_zeros(*shape)

    def new_ones(self, *shape) -> Tensor:
        """Return ones of the values' dtype and device."""
        return self.values.new_ones(*shape)

    def __getitem__(self, index) -> "SparseRows":
        """Return the rows at a slice, an index tensor or a mask; views for a slice of step 1.

        With two indices, the first one ``:``, the columns at a slice of step 1.
        """
        if isinstance(index, tuple):
            return self._between(*index[1].indices(self.n_features)[:2])
        if isinstance(index, slice) and index.step in (None, 1):
            first, last, _ = index.indices(len(self))
            starts = self.starts[first : max(first, last) + 1]
            cells = slice(int(starts[0]), int(starts[-1]))
            columns, values = self.columns[cells], self.values[cells]
            return SparseRows(starts - starts[0], columns, values, self.n_features)
        chosen = torch.arange(len(self), device=self.device)[index]
        counts = self.starts.diff()[chosen]
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        shift = torch.repeat_interleave(self.starts[chosen] - starts[:-1], counts)
        where = torch.arange(len(shift), device=self.device) + shift
        return SparseRows(starts, self.columns[where], self.values[where], self.n_features)

    def _between(self, first, last):
        """Return the columns from `first` to before `last`, cut once."""
        if (first, last) not in self._cuts:
            inside = (self.columns >= first) & (self.columns < last)
            counts = torch.bincount(self.row[inside], minlength=len(self))
            starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            columns, values = self.columns[inside] - first, self.values[inside]
            width = max(last - first, 0)
            self._cuts[first, last] = SparseRows(starts, columns, values, width)
        return self._cuts[first, last]

    @cached_property
    def _cuts(self) -> "dict[tuple[int, int], SparseRows]":
        return {}

    def split(self, size: int) -> "list[SparseRows]":
        """Cut into pieces of at most `size` rows."""
        return [self[first : first + size] for first in range(0, len(self), size)]

    def equals(self, other: "SparseRows") -> bool:
        """Say whether two matrices have the same cells with the same values."""
        pairs = [(getattr(self, n), getattr(other, n)) for n in ("starts", "columns", "values")]
        return all(torch.equal(*pair) for pair in pairs)

    def dense(self) -> Tensor:
        """Return the whole matrix: for few rows only."""
        return self._matrix(self.values).to_dense()

    # --- sums and products ----------------------------------------------------------------------

    def with_values(self, values: Tensor) -> "SparseRows":
        """Return the same cells with other values in them."""
        return replace(self, values=values)

    def single(self) -> "SparseRows":
        """Return the rows in float32 and int32, whose products take half the time."""
        starts, columns = self.starts.int(), self.columns.int()
        return SparseRows(starts, columns, self.values.float(), self.n_features)

    @cached_property
    def row(self) -> Tensor:
        """The row of each cell, shape (n_cells,)."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.device), self._counts)

    @property
    def _counts(self):
        return self.starts.diff()

    @cached_property
    def totals(self) -> Tensor:
        """Sums of the rows' values, shape (n_rows,)."""
        return self.over_rows(self.values)

    @cached_property
    def log_orderings(self) -> Tensor:
        """Log multinomial coefficients of the rows as counts: log N! - sum log x!, (n_rows,)."""
        return torch.lgamma(self.totals + 1) - self.over_rows(torch.lgamma(self.values + 1))

    def over_rows(self, cells: Tensor) -> Tensor:
        """Sum numbers of cells over each row, shape (n_rows,)."""
        return cells.new_zeros(len(self)).index_add(0, self.row, cells)

    def over_columns(self, cells: Tensor) -> Tensor:
        """Sum numbers of cells over each column, shape (n_features,)."""
        return cells.new_zeros(self.n_features).index_add(0, self.columns, cells)

    def sampled(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``(left @ right.mT)`` at the stored cells, shape (..., n_cells).

        Parameters
        ----------
        left : Tensor of shape (..., n_rows, k)
        right : Tensor of shape (..., n_features, k)
            Dimensions before the last two broadcast, here and in `product`.
        """
        return _apply(_Sampled, self, left, right)

    def product(self, cells: Tensor, right: Tensor) -> Tensor:
        """Return this matrix, with `cells` for its values, times `right`: (..., n_rows, k).

        Parameters
        ----------
        cells : Tensor of shape (..., n_cells)
        right : Tensor of shape (..., n_features, k)
        """
        return _apply(_Product, self, cells, right)

    def transposed_product(self, cells: Tensor, left: Tensor) -> Tensor:
        """Return the transpose of this matrix, with `cells` for its values, times `left`."""
        return self.transposed.product(cells[..., self.transposing], left)

    def quotients_times(self, left: Tensor, right: Tensor) -> Tensor:
        """Return quotients of the values and of what is `sampled` there, times `right`."""
        return self.product(self._quotients(left, right), right)

    def transposed_quotients_times(self, left: Tensor, right: Tensor, weights: Tensor) -> Tensor:
        """Return the transpose of the same quotients times `left`, its rows times `weights`."""
        return self.transposed_product(self._quotients(left, right), weights.unsqueeze(-1) * left)

    def _quotients(self, left, right):
        return self.values / self.sampled(left, right).clamp_min(_TINY)

    def __matmul__(self, right: Tensor) -> Tensor:
        return self.product(self.values, right)

    @cached_property
    def transposing(self) -> Tensor:
        """The order of the cells by column, then by row."""
        return torch.argsort(self.columns, stable=True)

    @cached_property
    def transposed(self) -> "SparseRows":
        """The transpose, with its rows sorted."""
        counts = torch.bincount(self.columns, minlength=self.n_features)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        order = self.transposing
        return SparseRows(starts, self.row[order], self.values[order], len(self))

    def copies(self, n: int, apart: bool) -> "SparseRows":
        """Return n copies, one below the other; `apart`: each with separate columns."""
        if n == 1:
            return self
        copy = torch.arange(n, device=self.device).unsqueeze(-1)
        starts = (self.starts[:-1] + copy * self.numel()).reshape(-1)
        starts = torch.cat([starts, starts.new_full((1,), n * self.numel())])
        columns = self.columns + copy * (self.n_features if apart else 0)
        width = self.n_features * (n if apart else 1)
        return SparseRows(starts, columns.reshape(-1), self.values.repeat(n), width)

    def _matrix(self, cells: Tensor) -> Tensor:
        with warnings.catch_warnings():  # torch warns once that it is "in beta state"
            warnings.filterwarnings("ignore", "Sparse CSR tensor support", UserWarning)
            return torch.sparse_csr_tensor(
                self.starts, self.columns, cells, self.shape, check_invariants=False
            )


class CrowdedRows(SparseRows):
    """Rows with so many stored cells that a product of all cells is the quicker way to these."""

    @classmethod
    def if_crowded(cls, X: SparseRows) -> SparseRows:
        """Return such rows where most of the work is not for zeros, else X."""
        few = len(X) * X.n_features > _CROWDED * X.numel()
        return X if few else cls(X.starts, X.columns, X.values, X.n_features)

    def sampled(self, left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.mT).flatten(-2)[..., self._places]

    def quotients_times(self, left: Tensor, right: Tensor) -> Tensor:
        if not self._is_full:
            return super().quotients_times(left, right)
        return (right.mT @ self._all_quotients(left, right)).mT

    def transposed_quotients_times(self, left: Tensor, right: Tensor, weights: Tensor) -> Tensor:
        if not self._is_full:
            return super().transposed_quotients_times(left, right, weights)
        return self._all_quotients(left, right) @ (weights.unsqueeze(-1) * left)

    def _all_quotients(self, left, right):
        return self._all / (right @ left.mT).clamp_min(_TINY)

    @cached_property
    def _is_full(self):
        return len(self) * self.n_features <= _FULL * self.numel()

    @cached_property
    def _all(self):
        return self.dense().mT.contiguous()

    @cached_property
    def _places(self):
        return self.row * self.n_features + self.columns


def _apply(function, *arguments):
    """Apply an autograd function; call it directly where no gradient or vmap is active."""
    plain = not torch.is_grad_enabled() and not are_transforms_active()
    return (function.forward if plain else function.apply)(*arguments)


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(rows, left, right):
        batch = _common(left.shape[:-2], right.shape[:-2])
        many, right = _lay_out_batch(rows, batch, right)
        left = left.expand(*batch, *left.shape[-2:]).reshape(-1, left.shape[-1])
        empty = many._matrix(torch.zeros_like(many.values))
        return torch.sparse.sampled_addmm(empty, left, right.mT).values().reshape(*batch, -1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.rows, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, gradient):
        (left, right), rows = ctx.saved_tensors, ctx.rows
        _, wants_left, wants_right = ctx.needs_input_grad
        return (
            None,
            rows.product(gradient, right).sum_to_size(left.shape) if wants_left else None,
            rows.transposed_product(gradient, left).sum_to_size(right.shape)
            if wants_right
            else None,
        )

    @staticmethod
    def vmap(info, in_dims, rows, left, right):
        return _Sampled.apply(rows, *_move_batch_first((left, right), in_dims[1:], (2, 2))), 0


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(rows, cells, right):
        batch = _common(cells.shape[:-1], right.shape[:-2])
        many, right = _lay_out_batch(rows, batch, right)
        product = torch.nn.functional.embedding_bag(  # five times as fast as CSR times dense
            many.columns,
            right.contiguous(),
            many.starts,
            mode="sum",
            per_sample_weights=cells.expand(*batch, cells.shape[-1]).reshape(-1),
            include_last_offset=True,
        )
        return product.reshape(*batch, len(rows), right.shape[-1])

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.rows, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, gradient):
        (cells, right), rows = ctx.saved_tensors, ctx.rows
        _, wants_cells, wants_right = ctx.needs_input_grad
        return (
            None,
            rows.sampled(gradient, right).sum_to_size(cells.shape) if wants_cells else None,
            rows.transposed_product(cells, gradient).sum_to_size(right.shape)
            if wants_right
            else None,
        )

    @staticmethod
    def vmap(info, in_dims, rows, cells, right):
        return _Product.apply(rows, *_move_batch_first((cells, right), in_dims[1:], (1, 2))), 0


def _common(one, other):
    """Broadcast two shapes; torch's own answer is slow, and its first call imports sympy."""
    return one if one == other else torch.broadcast_shapes(one, other)


def _lay_out_batch(rows, batch, right):
    """Return the matrix that computes a batch in one product, and the right factor to match."""
    shared = right.dim() == 2
    right = right if shared else right.expand(*batch, *right.shape[-2:]).flatten(0, -2)
    return rows.copies(math.prod(batch), apart=not shared), right


def _move_batch_first(tensors, in_dims, own):
    """Move vmap's dimension to the front, and pad the others so that all batches broadcast.

    The last `own` dimensions of each tensor are its matrix or vector.
    """
    ranks = [t.dim() - (d is not None) for t, d in zip(tensors, in_dims, strict=True)]
    most = max(rank - n for rank, n in zip(ranks, own, strict=True))
    moved = []
    for tensor, where, rank, n in zip(tensors, in_dims, ranks, own, strict=True):
        if where is not None:
            tensor = tensor.movedim(where, 0)
            missing = most - (rank - n)
            tensor = tensor.reshape(len(tensor), *[1] * missing, *tensor.shape[1:])
        moved.append(tensor)
    return moved
