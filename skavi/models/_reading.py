"""What inference functions read of a model's rows."""

from typing import Self

from torch import Tensor

from skavi._data.grouped_rows import GroupedRows
from skavi.families import NormalFactors


class ReadByFunctions:
    """The row itself, and no other one."""

    #: (rows before, rows after) that an inference function should read by default.
    context: tuple[int, int] = (0, 0)
    #: The window that closes the amortization gap, None if none does; "unknown": ask
    #: `skavi.can_close_gap`, which measures it.
    ideal_context: tuple[int, int] | str | None = "unknown"
    #: What rows before the first and after the last read as, in a window.
    padding: float = 0.0

    #: Whether `summary` is the factor that a row has given the training q(theta), or nearly so.
    summary_is_factor: bool = False

    def reading(self, globals_: NormalFactors) -> Self:
        """Return the model with its `summary` of rows set up by this q(theta), for good."""
        return self

    def summary(self, X: Tensor) -> Tensor:
        """Return what inference functions read of each row: the row, or a few dense numbers."""
        return X

    def sets(self, X) -> GroupedRows:
        """Return what functions of sets read: the rows of each factor: here one summary."""
        return GroupedRows.of(self.summary(X))
