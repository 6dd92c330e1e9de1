"""The columns of a saved fit: those that its model names, at the places that it names."""

from collections.abc import Iterable, Mapping

from skavi._data.column_roles import LABELS, RESPONSE, ColumnRoles, named_columns
from skavi.models import LatentVariableModel


def check_columns(model: LatentVariableModel, n_features: int, names) -> tuple[int, int]:
    """Return the columns of a row as the model gets it, and those that it explains.

    Parameters
    ----------
    model : LatentVariableModel
        The fitted one.
    n_features : int
        Columns of a user's table.
    names : ndarray of str, or None
        Their names, where the table had any.

    Raises
    ------
    ValueError
        If ``columns_`` of the model are not those that its arguments name.
    """
    roles, owner = model.columns_, type(model).__name__
    if not isinstance(roles, ColumnRoles) or roles.n_columns not in (0, n_features):
        raise ValueError(f"columns_ are not those of a table of {n_features} columns")
    found = {
        role: [column.place for column in columns]
        for role, columns in roles.given.items()
        if columns
    }
    if roles.response:
        found[RESPONSE] = list(roles.response)
    place = _Places(n_features, names)
    if found != {role: place.of_all(columns) for role, columns in model.named_columns().items()}:
        raise ValueError(f"columns_ are not those that {owner} names")
    for role, columns in roles.given.items():
        if any(column.of_labels != (role == LABELS) for column in columns):
            raise ValueError(f"columns_ has {role} that {owner} does not read so")
    if not _are_kinds(roles, model.named_kinds(), place):
        raise ValueError(f"columns_ have no kinds that {owner} names")
    return roles.row_width(n_features), roles.n_explained(n_features)


class _Places:
    """Where columns are that a model names, in a table of so many columns."""

    def __init__(self, n_columns: int, names):
        self.n_columns = n_columns
        self.names = [] if names is None else list(names)

    def of_all(self, columns: Iterable[str | int]) -> list[int | None]:
        """Return the place of each column; None where the table has none such."""
        return [self._of(column) for column in columns]

    def _of(self, column):
        if isinstance(column, str):
            return self.names.index(column) if column in self.names else None
        return int(column) % self.n_columns if -self.n_columns <= column < self.n_columns else None


def _are_kinds(roles, named, place):
    """Say whether each explained column is of the kind that a model names for it."""
    if named is None or not roles.kinds:
        return (named is None) == (not roles.kinds)
    kinds = [kind.likelihood for kind in roles.kinds]
    if not isinstance(named, Mapping):
        return set(kinds) <= {named}
    asked = {at: name for name, each in named.items() for at in place.of_all(named_columns(each))}
    return dict(zip(roles.explained, kinds, strict=True)) == asked
