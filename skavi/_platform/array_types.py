"""Types of what users pass and get: tables, arrays of numbers, and seeds."""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

_F = TypeVar("_F", bound=Callable)


class SparseMatrix(Protocol):
    """A sparse matrix or array of scipy's."""

    def tocsr(self) -> Any:
        """Return it in compressed rows."""


#: Rows of columns: an array, a data frame (which gives itself as an array), or a sparse matrix.
TableLike: TypeAlias = ArrayLike | SparseMatrix
Floats: TypeAlias = NDArray[np.floating[Any]]
#: What `random_state` takes.
Seed: TypeAlias = int | np.random.RandomState | None


def keeping_types(decorator: Any) -> Callable[[_F], _F]:
    """Return a decorator of a library without types as one that keeps a function's types."""
    return decorator
