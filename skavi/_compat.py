"""The private names of scikit-learn that skavi uses, in one place."""

from sklearn.base import _clone_parametrized as clone_parametrized
from sklearn.base import _fit_context as fit_context
from sklearn.callback._transport import can_reuse_listener, open_listener, send
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

__all__ = [
    "HasMethods",
    "Interval",
    "StrOptions",
    "can_reuse_listener",
    "clone_parametrized",
    "fit_context",
    "open_listener",
    "send",
]
