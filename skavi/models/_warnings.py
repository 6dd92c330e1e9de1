"""Warnings about a model and its data: one class a cause."""


class PriorConflictWarning(UserWarning):
    """Data lie where a fixed prior all but excludes them, so the prior decides, not the data.

    Examples
    --------
    >>> import warnings
    >>> from skavi import FactorizedVI
    >>> from skavi.models import PriorConflictWarning, RandomEffects
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always", PriorConflictWarning)
    ...     _ = FactorizedVI(RandomEffects()).fit([[501.0, 1.0], [505.0, 1.0], [498.0, 2.0]])
    >>> [w.category.__name__ for w in caught]
    ['PriorConflictWarning']
    """


class UnusedLatentsWarning(UserWarning):
    """A fit uses no latent: every row has the same factor, which tells nothing of the row.

    Examples
    --------
    >>> from skavi.models import UnusedLatentsWarning
    >>> issubclass(UnusedLatentsWarning, UserWarning)
    True
    """
