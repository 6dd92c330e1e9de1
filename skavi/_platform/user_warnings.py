"""Warnings that point at the user's own line, from any depth of calls below it."""

import sys
import warnings

_BETWEEN = {"skavi", "sklearn", "joblib", "pickle"}  # packages between the user's line and `warn`


def warn(message: str | Warning, category: type[Warning] | None = None) -> None:
    """Issue a warning at the first line outside skavi and the libraries that call it."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
