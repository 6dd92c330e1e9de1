"""The rows of a table that belong to this process."""

import atexit
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from skavi._data.ranks import Shard


def shard(X, sizes: Sequence[int] | None = None) -> np.ndarray:
    """Return this rank's rows of a table, for `fit`, as a contiguous part of it.

    Under torchrun the first call starts torch's process group, if nobody has: gloo between CPUs,
    NCCL between GPUs, one GPU a rank. In a process on its own all rows are returned.

    Parameters
    ----------
    X : str, PathLike or array-like
        A ``.npy`` file, which is mapped and not read, or an array that every rank holds; its rows
        are split along the first dimension.
    sizes : sequence of int, default=None
        How many rows each rank takes, adding up to all of them. None: the same, give or take one.

    Returns
    -------
    ndarray
        The rows. Given this array, ``estimator.fit`` is a joint fit with all other ranks, of the
        rows of all of them; so is that of any of its rows, or of what numpy computes from it.
        Every rank ends with the same estimator. Everything else, such as ``transform``, is of the
        rows at hand.

    Raises
    ------
    ValueError
        If sizes do not add up, or leave a rank without rows.
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
    counts = even(n, size) if sizes is None else [int(count) for count in sizes]
    require_sizes(counts, size, n)
    first = sum(counts[:rank])
    return table[first : first + counts[rank]].view(Shard)


def even(n_rows: int, n_ranks: int) -> list[int]:
    """Return how many rows each rank takes: the same, give or take one."""
    return [n_rows // n_ranks + (rank < n_rows % n_ranks) for rank in range(n_ranks)]


def require_sizes(sizes: list[int], n_ranks: int, n_rows: int) -> None:
    """Raise unless every rank takes a row, and together they take all."""
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
        atexit.register(_leave)  # else threads of the group may outlive it, and abort the process
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()
