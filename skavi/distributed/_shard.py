"""The rows of a table that belong to this process."""

import atexit
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from skavi._data.process_ranks import Shard
from skavi._platform.forks_and_threads import guarded


@guarded
def shard(X, sizes: Sequence[int] | None = None, groups: ArrayLike | None = None) -> np.ndarray:
    """Return this rank's rows of a table, a contiguous part or whole groups, to pass to `fit`.

    Under torchrun the first call starts torch's process group, unless it exists: gloo between CPUs,
    NCCL between GPUs, one GPU for each rank. In a single process all rows are returned.

    Parameters
    ----------
    X : str, PathLike or array-like
        A ``.npy`` file, which is mapped and not read, or an array that every rank holds; it is
        split along the first dimension.
    sizes : sequence of int, default=None
        Rows of each rank, which add up to all rows. None: equal numbers, up to one row.
    groups : array-like of shape (n_samples,), default=None
        The group of each row, as a model of groups has it: all rows of a group then go to one
        rank. Cut ``sample_weight`` by the same labels.

    Returns
    -------
    ndarray
        The rows. With this array, ``estimator.fit`` fits the rows of all ranks together; so it does
        with a part of the array, or with an array that numpy computes from it. Every rank gets the
        same estimator. All other methods, such as ``transform``, use this rank's rows only.

    Raises
    ------
    ValueError
        If sizes do not add up, leave a rank without rows, or are given beside groups.
    RuntimeError
        If this build of torch has no torch.distributed.

    Examples
    --------
    >>> import numpy as np
    >>> from skavi import FactorizedVI
    >>> from skavi.distributed import shard
    >>> from skavi.models import LinearModel
    >>> X = shard(np.array([[0.0], [1.0], [5.0]]))  # not under torchrun: all rows
    >>> vi = FactorizedVI(LinearModel()).fit(X)
    >>> round(float(vi.global_posterior_.mean["theta"]), 6)
    2.0
    """
    rank, size = _join_group()
    if isinstance(X, str | os.PathLike):
        table: Any = np.load(X, mmap_mode="r", allow_pickle=False)
    else:
        table = np.asarray(X)
    n = len(table)
    if groups is not None:
        return table[owners(groups, sizes, size, n) == rank].view(Shard)
    counts = even(n, size) if sizes is None else [int(count) for count in sizes]
    require_sizes(counts, size, n)
    first = sum(counts[:rank])
    return table[first : first + counts[rank]].view(Shard)


def even(n_rows: int, n_ranks: int) -> list[int]:
    """Return how many rows each rank takes: equal numbers, up to one row."""
    return [n_rows // n_ranks + (rank < n_rows % n_ranks) for rank in range(n_ranks)]


def owners(groups, sizes, n_ranks: int, n_rows: int) -> np.ndarray:
    """Return the rank of each row: of whole groups, in order of appearance, of like total size."""
    labels = np.asarray(groups)
    if sizes is not None:
        raise ValueError("sizes and groups both say which rows a rank takes: give one of them.")
    if labels.shape != (n_rows,):
        raise ValueError(f"groups has shape {labels.shape}, but X has {n_rows} rows: one a row.")
    _, first, index, counts = np.unique(
        labels, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(first)
    middle = np.empty(len(order))
    middle[order] = np.cumsum(counts[order]) - 0.5 * counts[order]
    rank = (middle / n_rows * n_ranks).astype(int)
    if len(np.unique(rank)) < n_ranks:
        raise ValueError(
            f"The {len(order)} groups of X, of up to {counts.max()} of its {n_rows} rows, leave "
            f"one of {n_ranks} ranks without any: take fewer ranks."
        )
    return rank[index]


def require_sizes(sizes: list[int], n_ranks: int, n_rows: int) -> None:
    """Raise a ValueError unless every rank takes at least one row, and together they take all."""
    if len(sizes) != n_ranks or sum(sizes) != n_rows or min(sizes) < 1:
        raise ValueError(
            f"X has {n_rows} rows for {n_ranks} ranks, but sizes={sizes}: every rank needs at "
            "least one row, and together they take all."
        )


def _leave():
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _join_group():
    """Return rank and size of the process group, started first if the launcher asks for one."""
    distributed = torch.distributed
    if not distributed.is_available():
        raise RuntimeError("This build of torch has no torch.distributed: fit in one process.")
    if not distributed.is_initialized() and "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        distributed.init_process_group()
        atexit.register(_leave)  # else the group's threads may outlive the interpreter and abort
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
