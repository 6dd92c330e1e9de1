"""Columns of X that a model is given: which ones, and where they are in a row."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from skavi._data.column_roles import ALL_EXPLAINED, ColumnRoles, are_columns, named_columns
from skavi._platform.shown_values import shown


class GivenColumns:
    """Every column of X is explained, unless an argument among `roles` names some."""

    #: Arguments that name columns of X which the model is given.
    roles: tuple[str, ...] = ()
    #: Those among them that one column may have together.
    roles_together: tuple[str, ...] = ()
    #: Those whose columns predictions are given, row by row.
    row_roles: tuple[str, ...] = ("covariates",)
    #: Where the given columns of the training table were; a fit sets it.
    columns_: ColumnRoles = ALL_EXPLAINED

    def named_columns(self) -> dict[str, tuple[str | int, ...]]:
        """Return the columns that each role names, for those roles that name any."""
        named = {role: named_columns(getattr(self, role)) for role in self.roles}
        return {role: columns for role, columns in named.items() if columns}

    def names_columns(self, role: str) -> bool:
        """Say whether an argument names columns: an empty list names none."""
        return bool(named_columns(getattr(self, role)))

    def named_kinds(self) -> Mapping[str, Any] | str | None:
        """Return the columns that each likelihood explains, or one that needs levels or trials.

        None: there is one likelihood, and no column has a kind.
        """
        return None

    @property
    def untold(self) -> bool:
        """Whether columns have kinds that no table has told yet."""
        return self.named_kinds() is not None and not self.columns_.kinds

    def check_roles(self) -> None:
        """Raise a ValueError that names the first of `roles` that names no columns."""
        for role in self.roles:
            value = getattr(self, role)
            if not are_columns(value):
                raise ValueError(
                    f"{type(self).__name__}({role}={shown(value)}): {role} must name columns of "
                    "X, by name or by place, each once."
                )

    def n_explained(self, X: Any) -> int:
        """Return how many columns of rows X, as the model gets them, are explained."""
        return X.shape[1] - self.columns_.width

    def explained(self, X: Any) -> Any:
        """Return the explained columns of rows X: the first ones."""
        return X[:, : self.n_explained(X)] if self.columns_.width else X

    def given_columns(self, X: Any, role: str = "covariates") -> Any:
        """Return the columns of rows X that are given in a role, (n_rows, 0) where there are none.

        Columns of categories are encoded: 0 and 1 for each level but the first.
        """
        return X[:, self.columns_.slice(role, X.shape[1])]

    def by_row(self, z: Tensor, X: Any) -> tuple[Tensor, Any]:
        """Return latents and X row by row: those of a group at each of its rows."""
        return z, X

    # --- groups that a fit has seen -------------------------------------------------------------

    def remember(self, raw: Tensor, X: Any) -> None:
        """Keep the raw factors of the fit's groups, on the fitted model."""

    def recalled(self, raw: Tensor, X: Any) -> Tensor:
        """Return raw factors, those of known groups without a response here as the fit had them."""
        return raw

    def unobserved(self, X: Any) -> Tensor | None:
        """Say which groups have no response in X; None: rows are no groups."""
        return None

    def with_given(self, explained: Tensor, X: Tensor) -> Tensor:
        """Return rows of new explained columns, with the given columns of X."""
        n = self.n_explained(X)
        return torch.cat([explained, X[:, n:]], 1) if self.columns_.width else explained
