"""Checks of integers in the user's arguments."""

from numbers import Integral


def is_whole(value, least: int) -> bool:
    """Say whether a value is a whole number >= `least`, of Python's or of numpy's kinds.

    Examples
    --------
    >>> from skavi._numerics.whole_numbers import is_whole
    >>> is_whole(3, least=1), is_whole(0, least=1), is_whole(True, least=0), is_whole(3.0, least=1)
    (True, False, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
