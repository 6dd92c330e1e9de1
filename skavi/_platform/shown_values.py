"""Values of a user's as messages quote them: on one line, short, and without addresses."""

import inspect
import re

#: Characters of a repr that a message quotes: more hide what the message says.
_MOST = 80


def shown(value: object) -> str:
    """Return what a message says was got: a class by name, other things by their repr.

    Examples
    --------
    >>> shown(3), shown("adam"), shown(int), shown(object()), len(shown(list(range(1000))))
    ('3', "'adam'", 'the class int', 'an object of class object', 80)
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    text = " ".join(repr(value).split())
    if re.search(r" at 0x[0-9a-f]+", text):
        return f"an object of class {type(value).__name__}"
    return text if len(text) <= _MOST else text[: _MOST - 3] + "..."


def kind_of(value: object) -> str:
    """Return the kind of a value: the name of its class; that of a class is said to be a class."""
    return "a class" if isinstance(value, type) else type(value).__name__


#: How torch writes a support, and how a message does.
_SUPPORTS = {
    r"IntegerGreaterThan\(lower_bound=(\S+)\)": r"whole numbers >= \1",
    r"IntegerInterval\(lower_bound=(\S+), upper_bound=(\S+)\)": r"whole numbers from \1 to \2",
    r"GreaterThan(?:Eq)?\(lower_bound=(\S+)\)": r"numbers above \1",
    r"Boolean\(\)": "0 and 1",
}


def support_in_words(support: object) -> str:
    """Return what a message says of the values that a distribution has.

    Examples
    --------
    >>> from torch.distributions import Gamma, Poisson
    >>> support_in_words(Poisson(1.0).support), support_in_words(Gamma(1.0, 1.0).support)
    ('whole numbers >= 0', 'numbers above 0.0')
    """
    for written, words in _SUPPORTS.items():
        if found := re.fullmatch(written, str(support)):
            return found.expand(words)
    return str(support)
