"""The processes that fit one model together, each with a part of the rows.

Ranks exchange sums only: of ELBO terms, of gradients, of moments. Each sum goes through a
`RankGroup`; in a single process it is returned unchanged. Every rank gets the same sums, to the
last bit, and so takes the same decisions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from skavi._data.grouped_rows import GroupedRows
from skavi._numerics.sums import triangular

if torch.distributed.is_available():
    # torch.func imports this at its first call. If a process group exists by then, the module's
    # default arguments keep it alive: its threads outlive the interpreter and may abort.
    import torch.distributed.nn.functional

#: A byte that no text in UTF-8 holds.
_NO_TEXT = b"\xff"

Method = TypeVar("Method", bound=Callable)


class LostRankError(RuntimeError):
    """Another rank of a fit is gone, so that this one cannot go on.

    Examples
    --------
    >>> from skavi.distributed import LostRankError
    >>> issubclass(LostRankError, RuntimeError)
    True
    """


class RankGroup:
    """A single process: it holds all rows, so every sum over ranks is its own.

    Attributes
    ----------
    rank, size : int
        Number of this process, and how many processes there are.
    first : int
        How many rows the ranks before this one hold.
    """

    rank, size, first = 0, 1, 0

    def count(self, n_rows: int) -> int:
        """Return how many rows all ranks hold, `n_rows` of them here."""
        return n_rows

    def of_rows(self, n_rows: int, n_features: int) -> "RankGroup":
        """Return the same ranks where each holds other rows, `n_rows` of them here."""
        return self

    def sum(self, value: Tensor) -> Tensor:
        """Add up every rank's tensor."""
        return value

    def largest(self, value: Tensor) -> Tensor:
        """Return the elementwise maximum over ranks."""
        return value

    def any(self, flag: bool) -> bool:
        """Say whether a flag is true on some rank."""
        return flag

    def first_rank(self, number: int) -> int:
        """Return the number of rank 0."""
        return number

    def gather(self, rows: Tensor) -> Tensor:
        """Concatenate the rows of all ranks, in the order of ranks."""
        return rows

    def take(self, rows: Tensor, index: Tensor) -> Tensor:
        """Return the rows at an ascending index into the rows of all ranks, on every rank."""
        return rows[index]


ALONE = RankGroup()


class Ranks(RankGroup):
    """The ranks of torch.distributed's default process group.

    Parameters
    ----------
    n_rows : int
        Rows of this rank.
    n_features : int
        Number of columns, the same on every rank.

    Raises
    ------
    ValueError
        If the ranks' columns differ.
    """

    def __init__(self, n_rows: int, n_features: int):
        distributed = torch.distributed
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        shapes = self.gather(torch.tensor([[n_rows, n_features]])).tolist()
        columns = [columns for _, columns in shapes]
        if len(set(columns)) > 1:
            raise ValueError(
                f"X has {n_features} features on rank {self.rank}, but the ranks hold {columns}: "
                "shards of one table have the same columns."
            )
        self.counts = [count for count, _ in shapes]
        self.first = sum(self.counts[: self.rank])

    def count(self, n_rows):
        return sum(self.counts)

    def of_rows(self, n_rows, n_features):
        return type(self)(n_rows, n_features)

    def sum(self, value):
        return self._reduce(value, torch.distributed.ReduceOp.SUM)

    def largest(self, value):
        return self._reduce(value, torch.distributed.ReduceOp.MAX)

    def any(self, flag):
        return bool(self.largest(torch.tensor(int(flag))))

    def first_rank(self, number):
        told = torch.tensor(number)
        with self._in_touch():
            torch.distributed.broadcast(told, 0)
        return int(told)

    def gather(self, rows):
        rows = rows.contiguous()
        mine = torch.tensor(len(rows))
        lengths = [torch.zeros_like(mine) for _ in range(self.size)]
        with self._in_touch():
            torch.distributed.all_gather(lengths, mine)
            longest = int(max(lengths))
            padded = rows.new_zeros(longest, *rows.shape[1:])
            padded[: len(rows)] = rows
            parts = [torch.empty_like(padded) for _ in range(self.size)]
            torch.distributed.all_gather(parts, padded)
        return torch.cat([part[: int(n)] for part, n in zip(parts, lengths, strict=True)])

    def take(self, rows, index):
        here = index - self.first
        own = rows[here[(here >= 0) & (here < len(rows))]]
        return own.gathered(self.gather) if isinstance(own, GroupedRows) else self.gather(own)

    def _reduce(self, value, operation):
        value = value.detach().clone(memory_format=torch.contiguous_format)
        with self._in_touch():
            torch.distributed.all_reduce(value, operation)
        return value

    @contextmanager
    def _in_touch(self) -> Iterator[None]:
        """Turn torch's error of a lost connection into a `LostRankError`."""
        try:
            yield
        except RuntimeError as error:
            raise LostRankError(
                f"Rank {self.rank} of {self.size} lost touch with the others: one of them has "
                "ended, and its own output, or its launcher's report, says of what. Nothing was "
                f"written or changed ({str(error).splitlines()[0]})."
            ) from error


# --- sums inside a model's or a function's own methods --------------------------------------------

_joined: ContextVar[RankGroup] = ContextVar("skavi_group", default=ALONE)


@contextmanager
def joined(ranks: RankGroup) -> Iterator[None]:
    """Make `total`, `largest`, `anywhere` and `stacked` use these ranks in the body."""
    token = _joined.set(ranks)
    try:
        yield
    finally:
        _joined.reset(token)


def total(value: Tensor) -> Tensor:
    """Add up a tensor over the ranks that fit a model together.

    Parameters
    ----------
    value : Tensor
        A sum over the rows at hand, of one shape on every rank.

    Returns
    -------
    Tensor
        The sum over all rows; `value` itself in a process on its own.

    Examples
    --------
    >>> import torch
    >>> from skavi.distributed import total
    >>> weights, x = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 4.0])
    >>> total(weights @ x) / total(weights.sum())
    tensor(3.)
    """
    return _joined.get().sum(value)


def largest(value: Tensor) -> Tensor:
    """Return the elementwise maximum over ranks."""
    return _joined.get().largest(value)


def anywhere(flag: bool) -> bool:
    """Say whether a flag is true on some rank."""
    return _joined.get().any(flag)


def stacked(rows: Tensor) -> Tensor:
    """Concatenate the rows of all ranks."""
    return _joined.get().gather(rows)


def stacked_texts(texts: list[str]) -> list[str]:
    """Concatenate the texts of all ranks."""
    encoded = [text.encode() for text in texts]
    width = int(largest(torch.tensor(max(map(len, encoded), default=0))))
    padded = b"".join(each.ljust(width, _NO_TEXT) for each in encoded)
    rows = np.frombuffer(padded, dtype=np.uint8).reshape(len(texts), width)
    everyone = stacked(torch.from_numpy(rows.copy())).numpy()
    return [bytes(row).rstrip(_NO_TEXT).decode() for row in everyone]


def squeezed(rows: Tensor) -> Tensor:
    """Return rows R with the same R'R as those of all ranks, at most n_columns for each rank.

    Least-squares problems depend on their rows through R'R alone.
    """
    return _joined.get().gather(triangular(rows))


def over_ranks(method: Method) -> Method:
    """Mark a method whose sums over rows go through `total`.

    A model's ``adapted``, ``initial_globals``, ``drawn_globals``, ``global_optimum`` and
    ``compressed``, an inference function's ``fit_inputs`` and ``start`` and a solver's ``begin``
    read all rows: where a subclass overrides one without this mark, a fit over several ranks
    refuses it.

    Examples
    --------
    >>> from skavi.distributed import over_ranks, total
    >>> from skavi.models import LinearModel
    >>> class FromTheMean(LinearModel):
    ...     @over_ranks
    ...     def initial_globals(self, X, weights):
    ...         return {"theta": total(weights @ X[:, 0]) / total(weights.sum())}
    """
    method.over_ranks = True  # type: ignore[attr-defined]
    return method


class Shard(np.ndarray):
    """This rank's rows of a table; other ranks hold the rest."""


def shared_by_ranks(X) -> bool:
    """Say whether X is this rank's part of a table of which other ranks hold the rest."""
    distributed = torch.distributed
    together = distributed.is_available() and distributed.is_initialized()
    return isinstance(X, Shard) and together and distributed.get_world_size() > 1
